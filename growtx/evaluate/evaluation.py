"""Scoring a model: bits per byte, lm-eval tasks, the paper's protocol, each with intervals, in one list of scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from growtx.config import ConfigModel, build_config
from growtx.evaluate import bits_per_byte
from growtx.evaluate.outcomes import scores_of
from growtx.evaluate.results import COMPRESSION_TASK, Score
from growtx.evaluate.training_text import Groups
from growtx.exceptions import ConfigError, DataError
from growtx.microworld import MicroworldConfig
from growtx.storage import resolve_address

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from growtx.evaluate.harness import HarnessModel, LoadedTask
    from growtx.evaluate.outcomes import TaskOutcome

UNKNOWN_LANGUAGE = 1.1  # times the bits per byte of a uniform guess; an untrained model lies at 1.0
PROBE_PROMPTS = 24


class TaskSelection(ConfigModel):
    """Which tasks to score, on how many questions: the block `benchmarks` of a study, and the core of a run's."""

    tasks: tuple[str, ...] = Field((), description="bits_per_byte, microworld, growtx tasks or lm-eval tasks")
    data_dir: str | None = Field(None, description="directory of the JSON Lines files that growtx tasks read")
    limit: int | None = Field(None, ge=1, description="questions per task; null: all")
    protocols: tuple[Literal["log-likelihood", "sampled letter"], ...] = Field(
        ("log-likelihood", "sampled letter"), description="ways to score multiple choice"
    )

    def benchmark(self) -> BenchmarkConfig:
        """The same selection as `growtx evaluate` would be told; a relative directory lies where runs lie.

        Raises:
            ConfigError: no task is selected.
        """
        chosen = {key: getattr(self, key) for key in TaskSelection.model_fields}
        return build_config(BenchmarkConfig, {**chosen, "data_dir": self.data_dir and resolve_address(self.data_dir)})


class BenchmarkConfig(TaskSelection):
    """What to measure, and how."""

    tasks: tuple[str, ...] = Field(min_length=1, description="bits_per_byte, microworld, growtx tasks or lm-eval tasks")
    texts: tuple[str, ...] = Field((), description="text files for bits per byte; default: the run's held-out text")
    text_column: str = "text"
    max_text_bytes: int = Field(100_000, gt=0, description="bytes of text per group for bits per byte")
    microworld: MicroworldConfig | None = Field(None, description="world of the microworld tasks; default: the run's")
    num_fewshot: int | None = Field(None, ge=0, description="solved examples before each question")
    overlap: bool = Field(True, description="look for the questions in the training text, if the run records it")
    num_runs: int = Field(10, ge=1, description="number of runs of the sampled-letter protocol")
    temperature: float = Field(1.0, gt=0, description="temperature of the sampled-letter protocol")
    batch_size: int = Field(16, ge=1)
    seed: int = Field(0, ge=0)


def benchmark_config(overrides: Iterable[str], **values: Any) -> BenchmarkConfig:
    """A configuration from the values of options that were given, and `key=YAML` overrides.

    Raises:
        ConfigError: naming key, value and remedy.
    """
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value}
    return build_config(BenchmarkConfig, given, overrides)


def resolve_tasks(config: BenchmarkConfig) -> list[str]:
    """Full names of all tasks, with `microworld` expanded into its parts; no model needs to be loaded.

    Raises:
        ConfigError: no such task; names the closest ones.
    """
    names: list[str] = []
    for task in config.tasks:
        if task == COMPRESSION_TASK:
            names.append(task)
        else:
            names += _harness().resolve_task(task, has_data_dir=config.data_dir is not None)
    return list(dict.fromkeys(names))


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    config: BenchmarkConfig,
    *,
    texts: Groups | None = None,
) -> list[Score]:
    """All scores of one task, given by its full name.

    Raises:
        DataError: its questions or texts cannot be loaded, or are in a language that the model does not know.
    """
    depth = int(model.config.num_hidden_layers)
    if task == COMPRESSION_TASK:
        return list(_compression(model, tokenizer, config, texts, depth))
    harness = _harness()
    loaded: LoadedTask = harness.load_task(
        task,
        data_dir=config.data_dir,
        num_fewshot=config.num_fewshot,
        world=config.microworld,
        limit=config.limit,
    )
    for probe in (loaded.prompts(PROBE_PROMPTS), loaded.translations(PROBE_PROMPTS)):
        check_language(model, tokenizer, task, probe)
    wrapped: HarnessModel = harness.HarnessModel(model, tokenizer, config.batch_size)
    outcomes = harness.run_task(wrapped, loaded)
    scores: list[Score] = []
    for outcome in outcomes:
        if "log-likelihood" in config.protocols or not outcome.is_multiple_choice:
            scores.extend(scores_of(outcome, wrapped, depth))
        if "sampled letter" in config.protocols:
            scores.extend(_sampled(model, tokenizer, outcome, config, depth))
    return scores


def check_language(model: Any, tokenizer: Any, task: str, texts: list[str]) -> None:
    """Refuse texts in a language that the model has never seen: it predicts them worse than a uniform guess.

    Raises:
        DataError: naming the task.
    """
    if not texts:
        return
    measured = bits_per_byte.of_documents(model, tokenizer, texts, context_length=model.config.max_position_embeddings)
    uniform = bits_per_byte.uniform_bits_per_byte(tokenizer, texts)
    if measured.value > UNKNOWN_LANGUAGE * uniform:
        raise DataError(
            f"this model does not know the language of {task}: {measured.value:.1f} bits per byte on its texts, "
            f"where guessing uniformly takes {uniform:.1f}",
            "Leave the task out, or evaluate a model that was trained on that language",
        )


def _compression(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    config: BenchmarkConfig,
    texts: Groups | None,
    depth: int,
) -> Iterator[Score]:
    if not texts:
        raise DataError("there is no text to measure bits per byte on", "Pass text files with --texts")
    for group, documents in texts.items():
        measured = bits_per_byte.of_documents(
            model,
            tokenizer,
            documents,
            context_length=model.config.max_position_embeddings,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        yield Score(
            task=COMPRESSION_TASK,
            metric="bits_per_byte",
            protocol="compression",
            depth=depth,
            group=group,
            **measured.interval._asdict(),
            num_items=len(documents),
        )


def _sampled(model: Any, tokenizer: Any, outcome: TaskOutcome, config: BenchmarkConfig, depth: int) -> Iterator[Score]:
    """The paper's protocol, where the questions are in our format."""
    from growtx.evaluate.paper_protocol import score_letters

    docs = [row["doc"] for row in outcome.rows]
    if outcome.is_multiple_choice and "letter_prompt" in docs[0]:
        yield score_letters(
            model,
            tokenizer,
            outcome.name,
            docs,
            depth=depth,
            num_runs=config.num_runs,
            temperature=config.temperature,
            batch_size=config.batch_size,
            seed=config.seed,
        )


def _harness() -> Any:
    """The lm-eval harness; it is an optional extra, because training alone does not need it."""
    try:
        from growtx.evaluate import harness
    except ImportError as error:
        raise ConfigError(
            f"tasks need the package {error.name}, which is not installed", "Run pip install lm-eval sacrebleu"
        ) from error
    return harness
