"""What cannot go together, or is not in a model: refused before anything is made."""

from __future__ import annotations

from spo_bench.errors import InputError
from spo_bench.matrix.axes import Point, check_point
from spo_bench.matrix.spec import MethodSpec, Spec
from spo_bench.methods import get_method


def check_size(spec: Spec, name: str, layers: int | None, positions: int | None) -> None:
    """Refuse lengths and layers that a model does not have.

    Raises:
        InputError: what was given, and what the model has.
    """
    wanted = spec.train.max_length + spec.generate.max_new_tokens
    if positions is not None and wanted > positions:
        raise InputError(
            f"max_length {spec.train.max_length} plus max_new_tokens {spec.generate.max_new_tokens} for '{name}'",
            f"prompt and answer must fit into the model's {positions} positions",
            "lower train.max_length or generate.max_new_tokens",
        )
    for spo in spec.spo:
        if spo is not None and layers is not None and not -layers - 1 <= spo.layer <= layers:
            rule = f"the model has hidden states 0 (the embeddings) to {layers}, or -1 to {-layers - 1} from the end"
            raise InputError(f"spo layer {spo.layer} for '{name}'", rule, "choose one of these")


def check_together(spec: Spec, method: MethodSpec, point: Point) -> None:
    """Refuse a method, and a point of the data axes, that make no sense together or with the rest of the spec.

    Raises:
        InputError: what was given, and why not.
    """
    check_point(point)
    declaration, train = get_method(method.name), spec.train.model_copy(update=method.train)
    added = {one.name: one.settings for one in method.plus}
    own_answers = min(point.regime.samples, 1) if spec.generate.temperature == 0 else point.regime.samples
    on_policy = [spo.label() for spo in spec.spo if spo is not None and spo.text == "on_policy"]
    where = f"method '{method.label}'"
    regime = point.regime.label()
    rules = [
        (
            declaration.needs_kl and train.batch_size < 2,
            f"{where} with batch_size {train.batch_size}",
            "it pairs each prompt with another one's answer",
            "set batch_size to at least 2",
        ),
        (
            train.lora is not None and added.get("ref_sync", {}).get("mixup", 1) < 1,
            f"{where} with an adapter and mixup below 1",
            "a mixture of low-rank factors is not the mixture of the weights",
            "set mixup to 1, or train the full weights",
        ),
        (
            point.regime.refresh > 0 and "ref_sync" in added,
            f"{where} in regime {regime}",
            "both replace the reference",
            "leave +ref_sync or refresh out",
        ),
        (
            point.regime.name != "offline" and bool(on_policy),
            f"{', '.join(on_policy)} in regime {regime}",
            "there the pairs are the policy's own answers already",
            "set text: dataset",
        ),
        (
            point.regime.name != "offline" and spec.generate.backend == "vllm",
            f"{where} in regime {regime} with generate.backend vllm",
            "there the policy answers while it is trained, where vLLM does not see its weights",
            "set generate.backend to transformers",
        ),
        (
            point.regime.name != "offline"
            and own_answers + 2 * point.regime.human + point.regime.greedy + len(point.regime.models) < 2,
            f"{where} in regime {regime} with generate.temperature 0",
            "greedy answers to one prompt are all the same, and a preference needs two",
            "raise the temperature, or let others compete (human, models)",
        ),
    ]
    for broken, given, rule, remedy in rules:
        if broken:
            raise InputError(given, rule, remedy)
