"""spo-bench: does adding SPO to a preference method make a better policy, and how sure are we?"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def __getattr__(name: str) -> Any:
    """Load ``spo_bench.run`` when it is first asked for: importing the package stays light."""
    if name == "run":
        from spo_bench.api import run

        return run
    raise AttributeError(f"module 'spo_bench' has no attribute '{name}'")
