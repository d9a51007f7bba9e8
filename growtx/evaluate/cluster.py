"""Evaluating a result at one or all of its depths, (depth, task) pairs spread over a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from growtx import formatting as fmt
from growtx.compat.ray import is_connected
from growtx.data.sources import DataConfig
from growtx.evaluate import training_text
from growtx.evaluate.evaluation import BenchmarkConfig, resolve_tasks, score_task
from growtx.evaluate.maps import Maps, make_maps, save_maps
from growtx.evaluate.results import COMPRESSION_TASK, MICROWORLD_TASK, Evaluation, Overlap, Score
from growtx.evaluate.training_text import Groups
from growtx.exceptions import ConfigError, DataError, GrowtxError, ResourceError, StoreError
from growtx.growth.results import Result, find_result, load_model

NODE_CHECK_SECONDS = 30.0  # while nothing finishes, how often to check that a node is left to run on
OnProgress = Callable[[str], None]
Jobs = dict[tuple[str, int | None], tuple[Callable[..., Any], tuple[Any, ...]]]  # (task, depth) -> what to run


def evaluate_path(
    path: str, config: BenchmarkConfig, *, depths: str = "last", command: str = "", say: OnProgress = print
) -> Evaluation:
    """Score a run, a manifest, an ensemble or a Hugging Face directory; without Ray, in this process.

    Args:
        depths: `all`, `last`, or numbers of blocks separated by commas.
        say: gets a line for every part that is done.

    Raises:
        ConfigError: a task or a depth does not exist.
        StoreError: the model cannot be loaded.
        DataError: not a single part could be scored.
    """
    tasks = resolve_tasks(config)
    result = find_result(path)
    path = result.address  # Ray's workers run in another working directory
    parts = [(task, depth) for task in tasks for depth in resolve_depths(result, depths)]
    data = training_text.recorded_data(result.home.root)
    texts, config = with_training_text(path, config, data)
    scores: dict[tuple[str, int | None], list[Score]] = {part: [] for part in parts}
    notes: dict[str, str] = {}  # one a task: other depths fail for the same reason
    overlaps: list[Overlap] = []
    jobs: Jobs = {
        part: (_score_part, (path, *part, config, texts if part[0] == COMPRESSION_TASK else {})) for part in parts
    }
    if config.overlap and data and (questions := [task for task in tasks if not _is_generated(task)]):
        jobs["overlap", None] = (_overlap_part, (data, questions, config, training_text.parts_read(result.home.root)))
    for (task, depth), outcome in _outcomes(jobs):
        where = f"{task}, {fmt.plural(depth, 'block')}" if depth is not None else task
        if isinstance(outcome, GrowtxError):
            notes.setdefault(task, f"{task}: {outcome}")
            say(f"{where}: not scored. {outcome}")
        elif task == "overlap":
            overlaps = outcome
        else:
            scores[task, depth] = outcome
            say(f"{where}: {summary(outcome)}")
    found = tuple(score for part in parts for score in scores[part])
    if not found:
        raise DataError("nothing could be scored: " + " ".join(notes.values()), "Correct the tasks or their data")
    return Evaluation(model=path, command=command, scores=found, overlaps=tuple(overlaps), notes=tuple(notes.values()))


def map_path(path: str, *, command: str = "") -> None:
    """Keep t-SNE maps of the deepest model in its directory, where its report finds them; Ray must be connected.

    Raises:
        ConfigError: the model has no growtx blocks.
        StoreError: the model cannot be loaded.
    """
    result = find_result(path)
    ((_, outcome),) = _outcomes({("maps", None): (_map_part, (result.address,))})
    if isinstance(outcome, GrowtxError):
        raise outcome
    save_maps(result.home, outcome.model_copy(update={"command": command}))


def default_tasks(path: str) -> tuple[str, ...]:
    """Bits per byte, and the microworld's questions for a model that was trained on one."""
    world = training_text.recorded_microworld(training_text.recorded_data(find_result(path).home.root))
    return (COMPRESSION_TASK, MICROWORLD_TASK) if world else (COMPRESSION_TASK,)


def resolve_depths(result: Result, depths: str) -> list[int | None]:
    """The depths to load; [None] where a result is one model only.

    Raises:
        ConfigError: a depth that the lineage does not have, or that is not a number.
    """
    available = result.depths
    if depths == "last" or (depths == "all" and not available):
        return [None]
    if depths == "all":
        return list(available)
    known = ", ".join(map(str, available)) or "none, so use last"
    try:
        wanted = [int(depth) for depth in depths.split(",")]
    except ValueError as error:
        raise ConfigError(f"--depths {depths}: not numbers of blocks", f"Use all, last, or some of {known}") from error
    if missing := [depth for depth in wanted if depth not in available]:
        raise ConfigError(
            f"--depths {depths}: {result.address} has no stage of depth {missing[0]}", f"Use some of {known}"
        )
    return list(wanted)


def with_training_text(path: str, config: BenchmarkConfig, data: DataConfig | None) -> tuple[Groups, BenchmarkConfig]:
    """The text for bits per byte, and the configuration with the world that the run was trained on.

    Raises:
        DataError: no text is named, and the run does not record what it was trained on.
    """
    if config.microworld is None:
        config = config.model_copy(update={"microworld": training_text.recorded_microworld(data)})
    if COMPRESSION_TASK not in config.tasks:
        return {}, config
    if config.texts:
        groups = training_text.read_groups(
            config.texts, text_column=config.text_column, max_bytes=config.max_text_bytes
        )
    elif data is not None:
        groups = training_text.held_out_groups(data, max_bytes=config.max_text_bytes)
    else:
        raise DataError(f"{path} does not say what text its model was trained on", "Pass text files with --texts")
    return groups, config


def summary(scores: Sequence[Score]) -> str:
    """The whole-task scores in a line."""
    whole = [score for score in scores if not score.group] or list(scores)
    parts = []
    for score in whole[:6]:
        value = f"{score.value:.3f}" if score.protocol == "compression" else f"{100 * score.value:.1f} %"
        label = score.group or score.metric + (" (sampled)" if score.protocol == "sampled letter" else "")
        parts.append(f"{label} {value}")
    return ", ".join(parts)


def _is_generated(task: str) -> bool:
    """Whether a task has no fixed questions that could occur in a training text."""
    return task == COMPRESSION_TASK or task.startswith(MICROWORLD_TASK)


def _outcomes(jobs: Jobs) -> Iterator[tuple[tuple[str, int | None], Any]]:
    """Keys and outcomes of the jobs as they finish; a store error ends it, because no model can be loaded."""
    if is_connected():
        yield from _outcomes_on_cluster(jobs)
    else:
        yield from ((key, _result(function(*arguments))) for key, (function, arguments) in jobs.items())


def _outcomes_on_cluster(jobs: Jobs) -> Iterator[tuple[tuple[str, int | None], Any]]:
    import ray

    num_gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    pending = {}
    for key, (function, arguments) in jobs.items():
        remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=2)(function)
        pending[remote.remote(*arguments)] = key
    while pending:
        finished, _ = ray.wait(list(pending), num_returns=1, timeout=NODE_CHECK_SECONDS)
        if not finished:
            _check_nodes(num_gpus)
            continue
        (done,) = finished
        yield pending.pop(done), _result(ray.get(done))


def _result(outcome: Any) -> Any:
    if isinstance(outcome, StoreError):
        raise outcome
    return outcome


def _check_nodes(num_gpus: int) -> None:
    """Refuse to wait for nodes that went away.

    Raises:
        ResourceError: no node is left that a part could run on.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= num_gpus for node in nodes):
        needs = f"a CPU{' and a GPU' if num_gpus else ''}"
        raise ResourceError(f"no node left in the Ray cluster has {needs}", "Add nodes, and evaluate again")


def _score_part(
    path: str, task: str, depth: int | None, config: BenchmarkConfig, texts: Groups
) -> list[Score] | GrowtxError:
    try:
        return score_task(*_loaded(path, depth), task, config, texts=texts)
    except GrowtxError as error:  # returned, not raised: Ray would wrap it in a traceback
        return error


def _overlap_part(
    data: DataConfig, tasks: list[str], config: BenchmarkConfig, parts: dict[str, int]
) -> list[Overlap] | GrowtxError:
    from growtx.evaluate.contamination import overlaps_with
    from growtx.evaluate.harness import load_task

    try:
        return overlaps_with(data, [load_task(task, data_dir=config.data_dir) for task in tasks], parts=parts)
    except GrowtxError as error:
        return error


def _map_part(path: str) -> Maps | GrowtxError:
    try:
        return make_maps(*_loaded(path, None))
    except GrowtxError as error:
        return error


@lru_cache(maxsize=1)
def _loaded(path: str, depth: int | None) -> tuple[Any, Any]:
    """The model on the worker's GPU if Ray gave it one, else on the CPU; the worker keeps it for its next part."""
    model, tokenizer = load_model(path, depth)
    return model.to(_device()), tokenizer  # type: ignore[arg-type]


def _device() -> torch.device:
    if not is_connected():
        return torch.device("cpu")
    import ray

    if not ray.get_gpu_ids():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32: scores differ in the fourth digit
    return torch.device("cuda")
