"""From the paths in the settings to models that an engine can run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from growtx.data.tokenizer import tokenizer_fingerprint
from growtx.exceptions import ConfigError, FingerprintError
from growtx.growth.results import find_result, load_model
from growtx.models import GrowtxForCausalLM
from growtx.models.ensemble import GrowtxEnsembleForCausalLM, from_members
from growtx.serving.settings import ServeSettings

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]


def load_depths(settings: ServeSettings) -> tuple[dict[int | None, PreTrainedModel], PreTrainedTokenizerFast]:
    """The model at every depth that is served, and the tokenizer; `None` is the depth of the last stage.

    Weights that depths have in common are held once, on the device that serves: moving them apart undoes that.

    Raises:
        GrowtxError: a path has no model, members do not fit together, or a depth does not exist.
    """
    last, tokenizer = load_combined(settings.models, None, settings.rule)
    models: dict[int | None, PreTrainedModel] = {None: last}
    for depth in served_depths(settings):
        models[depth] = load_combined(settings.models, depth, settings.rule)[0]
    if settings.gpus_per_replica:
        models = {depth: on_gpu(model) for depth, model in models.items()}
    share_equal_tensors(list(models.values()))
    return models, tokenizer


def on_gpu(model: PreTrainedModel) -> PreTrainedModel:
    """As it is served on the GPU that Ray gave this replica."""
    return model.to(device="cuda", dtype=torch.bfloat16)  # type: ignore[arg-type]


def load_combined(paths: Sequence[str], depth: int | None, rule: str | None) -> Loaded:
    """One model as it is, several as an ensemble."""
    if len(paths) == 1:
        model, tokenizer = load_model(paths[0], depth)
        if isinstance(model, GrowtxEnsembleForCausalLM) and rule is not None:
            model.set_rule(rule)
        elif rule is not None:
            raise ConfigError(f"rule={rule} combines models, and {paths[0]} is one", "Give model as a list, or no rule")
        return model, tokenizer
    members: dict[str, GrowtxForCausalLM] = {}
    tokenizers = []
    for name, path in zip(member_names(paths), paths, strict=True):
        member, tokenizer = load_model(path, depth)
        if not isinstance(member, GrowtxForCausalLM):
            raise ConfigError(f"{path} is a {type(member).__name__}", "Only growtx models can be combined")
        members[name] = member
        tokenizers.append(tokenizer)
    for path, tokenizer in zip(paths, tokenizers, strict=True):
        if tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(tokenizers[0]):
            raise FingerprintError(
                f"{paths[0]} and {path} have different tokenizers", "Combine models that were grown on one tokenizer"
            )
    return from_members(members, rule=rule or "mean"), tokenizers[0]


def served_depths(settings: ServeSettings) -> list[int]:
    """The requested depths; all members must have them."""
    if settings.depths == "last":
        return []
    common = set.intersection(*(set(find_result(path).depths) for path in settings.models))
    if settings.depths == "all":
        return sorted(common)
    missing = sorted(set(settings.depths) - common)
    if missing:
        known = ", ".join(map(str, sorted(common))) or "none"
        raise ConfigError(f"depths {missing} do not exist", f"The depths of {' and '.join(settings.models)}: {known}")
    return sorted(settings.depths)


def member_names(paths: Sequence[str]) -> list[str]:
    """Last parts of the paths, made distinct."""
    names = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return [name if names.count(name) == 1 else f"{name}-{index}" for index, name in enumerate(names)]


@torch.no_grad()
def share_equal_tensors(models: Sequence[PreTrainedModel]) -> None:
    """Let parameters with equal values share one storage: the depths of a lineage differ in little more than heads."""
    kept: dict[tuple[torch.Size, float], list[torch.nn.Parameter]] = {}
    for model in models:
        for parameter in model.parameters():
            alike = kept.setdefault((parameter.shape, float(parameter.double().sum())), [])
            twin = next((other for other in alike if torch.equal(other, parameter)), None)
            if twin is None:
                alike.append(parameter)
            else:
                parameter.data = twin.data
