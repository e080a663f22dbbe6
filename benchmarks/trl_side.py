"""TRL's side of a comparison: its DPO trainer through its public interface, with training steps that take turns."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import Turn
from own_side import LORA, Record, Setup

from spo_bench.engine.attempt import keep_freed_memory
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.training.loop import TrainSettings

Ids = list[list[list[int]]]


def same_settings(settings: TrainSettings, out: Path, pairs: int | None = None) -> dict[str, Any]:
    """Return what of our settings any TRL configuration takes: the same optimizer steps over the rows in the order given.

    Args:
        settings: of our loop, with a constant learning rate.
        out: a directory; nothing is saved there.
        pairs: of a forward pass; the rest of a step is accumulated. None: all.
    """
    micro = pairs or settings.batch_size
    return {
        "output_dir": str(out),
        "max_steps": settings.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // micro,
        "train_sampling_strategy": "sequential",
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "max_length": settings.max_length,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def token_ids(dataset: Any) -> Ids:
    """Return [prompt, chosen, rejected] of the rows of the DPO trainer's tokenised dataset."""
    return [[list(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")] for row in dataset]


def attention_there() -> str:
    """Return the fastest attention TRL's models can take here."""
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def dpo_trainer(
    model: Any, tokenizer: Any, records: Sequence[Record], setup: Setup, out: Path, pairs: int, loss: str = "sigmoid"
) -> Any:
    """Return TRL's DPO trainer at its best settings here, its reference pass done; ``loss`` is one of its losses.

    Fused AdamW; its own chunked head, which is its default; the reference log-probabilities computed before training; no
    evaluation, no saving; logs of numbers it computes anyway; activations held unless the setup says otherwise.
    """
    import datasets
    import transformers
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]  # its __init__ loads them lazily

    warnings.filterwarnings("ignore", category=FutureWarning)  # of names the two libraries are about to change
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    cuda = setup.device.startswith("cuda")
    config = DPOConfig(
        **same_settings(setup.loop(), out, pairs),
        optim="adamw_torch_fused",
        bf16=setup.dtype == "bfloat16",
        gradient_checkpointing=setup.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if setup.checkpointing else None,
        precompute_ref_log_probs=True,
        use_cpu=not cuda,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        beta=0.1,
        loss_type=[loss],
    )
    rows = [{"prompt": record["prompt_text"], "chosen": record["chosen"], "rejected": record["rejected"]} for record in records]
    lora = LoraConfig(
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        target_modules=LORA["target_modules"],
        task_type="CAUSAL_LM",
    )
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora if setup.lora else None,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def trl_side(
    turn: Turn,
    model: Path | Callable[[], tuple[Any, Any]],
    records: Sequence[Record],
    setup: Setup,
    keep_memory: bool = False,
) -> None:
    """Train with TRL: a side for ``take_turns``. ``setup.micro`` counts pairs.

    Says when ready ``ids`` of every row and ``tokens`` of every step, padding included; of every step ``loss`` and ``grad_norm``.
    A turn ends with TRL's log of the step; what the trainer does between that and its next forward pass counts for the next turn.
    """
    from transformers import TrainerCallback

    if keep_memory:
        keep_freed_memory()
    policy, tokenizer = (load_policy(model, setup.numerics), load_tokenizer(model)) if isinstance(model, Path) else model()
    if setup.device.startswith("cuda"):
        policy.set_attn_implementation(attention_there())

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
            if "loss" in logs:
                turn.done(loss=float(logs["loss"]), grad_norm=float(logs["grad_norm"]))

    with tempfile.TemporaryDirectory() as out:
        trainer = dpo_trainer(policy, tokenizer, records, setup, Path(out), setup.micro)
        trainer.add_callback(Turns())
        ids = token_ids(trainer.train_dataset)
        passes = [ids[i : i + setup.micro] for i in range(0, len(ids), setup.micro)]
        padded = [2 * len(part) * max(len(p) + max(len(a), len(b)) for p, a, b in part) for part in passes]
        each = setup.batch_size // setup.micro
        turn.ready(ids=ids, tokens=[sum(padded[i : i + each]) for i in range(0, len(padded), each)])
        trainer.train()
