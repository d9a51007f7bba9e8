"""lm-eval on a model that is already loaded: its registered tasks by name, and the task files that ship with growtx.

The same task files work with its command line:
    lm_eval run --model hf --model_args pretrained=DIR --include_path growtx/evaluate/tasks \
        --tasks growtx_arc_easy --metadata '{"data_dir": "DIR"}'
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from growtx.compat.lm_eval import SeamHFLM, as_loaded
from growtx.evaluate import microworld_tasks
from growtx.evaluate.outcomes import TaskOutcome, pooled
from growtx.exceptions import ConfigError, DataError
from growtx.microworld import MicroworldConfig

TASKS_DIR = Path(__file__).parent / "tasks"
TASK_PREFIX = "growtx_"


class HarnessModel(SeamHFLM):
    """lm-eval's Hugging Face model around ours."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        with _quiet():
            super().__init__(
                pretrained=model,
                backend="causal",
                tokenizer=tokenizer,
                batch_size=batch_size,
                prefix_token_id=tokenizer.eos_token_id,  # documents begin after </s> in training
            )


@dataclass(frozen=True)
class LoadedTask:
    """One task, or the tasks of a group, with their questions."""

    name: str
    found: Any  # as lm-eval's task manager returns it: tasks, groups, group_map
    limit: int | None = None  # questions per task

    @property
    def tasks(self) -> dict[str, Any]:
        """Tasks that have questions, by name."""
        return self.found["tasks"]  # type: ignore[no-any-return]

    def prompts(self, num_prompts: int) -> list[str]:
        """Some prompts without examples, evenly from all tasks."""
        texts = [task.doc_to_text(doc) for task, doc in self._some(num_prompts)]
        return [text for text in texts if isinstance(text, str)]

    def translations(self, num_docs: int) -> list[str]:
        """Some target texts of translations, if there are any: a model may know only the language of the prompts."""
        return [doc["tgt"] for _, doc in self._some(num_docs) if "tgt" in doc]

    def _some(self, num_docs: int) -> Iterator[tuple[Any, Any]]:
        per_task = max(1, num_docs // len(self.tasks))
        return ((task, doc) for task in self.tasks.values() for doc in itertools.islice(task.eval_docs, per_task))


@cache
def shipped_tasks() -> tuple[str, ...]:
    """Names of the task files that come with growtx."""
    return tuple(sorted(path.stem for path in TASKS_DIR.glob(f"{TASK_PREFIX}*.yaml")))


def resolve_task(name: str, *, has_data_dir: bool) -> tuple[str, ...]:
    """Full names of what a name stands for: one task, or those of the microworld.

    With a data directory, `arc_easy` means our `growtx_arc_easy`, which reads from it.

    Raises:
        ConfigError: no such task, with the nearest names.
    """
    if parts := microworld_tasks.task_names(name):
        return parts
    if name in shipped_tasks():
        return (name,)
    if has_data_dir and TASK_PREFIX + name in shipped_tasks():
        return (TASK_PREFIX + name,)
    registered = _registered().all_tasks
    if name in registered:
        return (name,)
    close = difflib.get_close_matches(name, [*shipped_tasks(), *registered], n=3)
    remedy = f"Did you mean {' or '.join(close)}?" if close else f"Tasks of growtx: {', '.join(shipped_tasks())}"
    raise ConfigError(f"task {name} is unknown to growtx and to lm-eval", remedy)


def load_task(
    name: str,
    *,
    data_dir: str | None = None,
    num_fewshot: int | None = None,
    world: MicroworldConfig | None = None,
    limit: int | None = None,
) -> LoadedTask:
    """The questions of a task, or of every task of a group.

    Args:
        data_dir: where the task files of growtx find their questions.
        world: what `microworld` tasks ask about; there `limit` counts per task and language.

    Raises:
        DataError: they cannot be loaded.
    """
    if microworld_tasks.task_names(name):
        if world is None:
            raise DataError(f"{name} asks about a microworld, and this model was not trained on one", "Leave it out")
        with _quiet():
            tasks = {name: microworld_tasks.build_task(name, world, limit)}
        return LoadedTask(name, as_loaded(tasks))
    if name in shipped_tasks():
        with _quiet():
            return LoadedTask(name, _shipped(data_dir, num_fewshot or 0).load([name]), limit)
    loaded = LoadedTask(name, _load_registered(name), limit)
    for task in loaded.tasks.values():
        _set_fewshot(task, num_fewshot)
    return loaded


def run_task(model: HarnessModel, loaded: LoadedTask) -> list[TaskOutcome]:
    """Score a loaded task with lm-eval, seeded as its own command is, so that both give the same numbers."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    with _quiet():
        results: Any = evaluate(model, loaded.found, limit=loaded.limit, bootstrap_iters=0)
    group = loaded.name if loaded.found["groups"] else ""
    outcomes = [_outcome(leaf, task, group, results) for leaf, task in loaded.tasks.items()]
    return [pooled(group, outcomes), *outcomes] if group else outcomes


def _outcome(name: str, task: Any, group: str, results: Any) -> TaskOutcome:
    values = {
        key.partition(",")[0]: float(value)
        for key, value in results["results"][name].items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }
    choice = task.OUTPUT_TYPE == "multiple_choice"
    return TaskOutcome(name, group, values, results["samples"][name], choice)


@cache
def _shipped(data_dir: str | None, num_examples: int) -> TaskManager:
    metadata: Any = {"data_dir": data_dir, "num_examples": num_examples}
    return TaskManager(include_path=TASKS_DIR, include_defaults=False, metadata=metadata)


@cache
def _registered() -> TaskManager:
    """lm-eval's own tasks; listing them takes many seconds, so only when one is asked for."""
    with _quiet():
        return TaskManager()


def _load_registered(name: str) -> Any:
    with _quiet():
        try:
            return _registered().load([name])
        except Exception as error:  # whatever the hub, the network, a cache or a loading script raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            problem = f"the questions of task {name} cannot be loaded ({reason})"
            raise DataError(problem, "Check the network, or use a task of growtx with --data-dir") from error


def _set_fewshot(task: Any, num_fewshot: int | None) -> None:
    """lm-eval's rule: a task defined with zero examples keeps zero, and zero is the default for all others."""
    default = task.get_config("num_fewshot")
    if default != 0 and (num_fewshot is not None or default is None):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval, which reports every step and draws progress bars; errors still arrive as exceptions."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
