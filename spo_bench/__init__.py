"""spo-bench: does adding SPO to a preference method make a better policy, and how sure are we?"""

__version__ = "0.1.0"
