"""An evaluation as sections of a page: benchmark scores by depth, subjects, compression, overlap with training text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from growtx import formatting as fmt
from growtx.evaluate.results import Evaluation, Score
from growtx.report import evaluation_figures as figures
from growtx.report.page import Page, Section, Table, render_page
from growtx.report.plot_style import save
from growtx.storage import Storage

EVALUATION_PAGE = "evaluation.html"
SUBJECTS_WORTH_A_FIGURE = 8
PROTOCOL_NOTE = (
    "Log-likelihood: the choice to which the model gives the highest probability (lm-eval's numbers). Sampled letter: "
    "the paper's protocol, the first character of a sampled text, averaged over runs; a non-letter counts as wrong. "
    "Majority and shortest are baselines without a model: the offered answer that is most often right in other "
    "questions, and the shortest one; where a text may hold no answer, majority always says that there is none. "
    "Cut: prompts longer than the context, which lose their beginning. Brackets hold 95 % intervals."
)


def evaluation_sections(evaluation: Evaluation, storage: Storage) -> Iterator[Section]:
    """Sections with their figures, which are saved below `plots/` of the storage."""
    if leading := figures.whole_tasks(evaluation.scores):
        everything = [score for score in evaluation.scores if not score.group and score.protocol != "compression"]
        yield Section(
            "Benchmark scores by depth",
            "What the model can do as it grows. Bars are 95 % intervals: a smaller difference is no gain.",
            save(partial(figures.benchmarks_against_depth, evaluation), storage, "benchmarks_against_depth"),
            _task_table(leading, evaluation.depths),
            PROTOCOL_NOTE,
            folded=[("All metrics", _task_table(everything, evaluation.depths)), *_small_parts(evaluation)],
            command=evaluation.command,
        )
    for task, scores in figures.subject_scores(evaluation.scores).items():
        if _num_parts(scores) >= SUBJECTS_WORTH_A_FIGURE:
            name = figures.short_name(task)
            yield Section(
                f"{name} by subject",
                "Subjects, sorted by the score of the deepest model.",
                save(partial(figures.subjects_against_depth, task, scores), storage, f"{name}_subjects"),
                _part_table({task: scores}),
                command=evaluation.command,
            )
    if figures.compression_scores(evaluation.scores):
        yield Section(
            "Bits per byte by language and source",
            "Whole documents that the model was not trained on; lower is better.",
            save(partial(figures.compression_against_depth, evaluation), storage, "compression_against_depth"),
            _compression_table(evaluation),
            command=evaluation.command,
        )
    if evaluation.overlaps:
        yield Section(
            "Overlap with the training text",
            f"Questions that share a run of {evaluation.overlaps[0].ngram} words with the training text may have been "
            "memorised.",
            table=_overlap_table(evaluation),
        )
    if evaluation.notes:
        yield Section("Not scored", " ".join(evaluation.notes))


def write_evaluation_page(evaluation: Evaluation, storage: Storage) -> str:
    """`evaluation.html` for a model that has no run directory around it; returns its address."""
    page = Page(
        title="growtx · evaluation",
        headline=f"{len(evaluation.tasks)} tasks scored on {evaluation.model}.",
        sections=[*evaluation_sections(evaluation, storage)],
        command=evaluation.command,
    )
    storage.write_text(EVALUATION_PAGE, render_page(page))
    return storage.path(EVALUATION_PAGE)


def bracketed(score: Score, *, scale: float = 100, digits: int = 1) -> str:
    """`27.3 [24.9, 29.9]`."""
    value = fmt.decimal(scale * score.value, digits)
    if score.low is None or score.high is None:
        return value
    return f"{value} [{fmt.decimal(scale * score.low, digits)}, {fmt.decimal(scale * score.high, digits)}]"


def _task_table(scores: list[Score], depths: list[int]) -> Table:
    rows = []
    lines: dict[tuple[str, str], dict[int, Score]] = {}
    for score in scores:
        what = figures.series(score, f"{score.metric}, {score.protocol}")
        lines.setdefault((figures.short_name(score.task), what), {})[score.depth] = score
    for (task, what), members in lines.items():
        last = members[max(members)]
        by_depth = [bracketed(members[depth]) if depth in members else fmt.MISSING for depth in depths]
        baselines = [fmt.percent(value) for value in (last.chance, last.majority, last.shortest)]
        trouble = [fmt.percent(last.format_failures), fmt.percent(last.truncated)]
        sigma = f", σ {100 * last.sigma:.1f}" if last.sigma is not None else ""
        rows.append([task, what + sigma, *by_depth, str(last.num_items), *baselines, *trouble])
    headers = [
        "task",
        "score",
        *_depth_headers(depths),
        "questions",
        "chance",
        "majority",
        "shortest",
        "no answer",
        "cut",
    ]
    return Table(headers, rows, text_columns=(0, 1))


def _small_parts(evaluation: Evaluation) -> list[tuple[str, Table]]:
    """One table of the parts (languages) of tasks that have too few of them for a figure."""
    parts = figures.subject_scores(evaluation.scores)
    small = {task: scores for task, scores in parts.items() if _num_parts(scores) < SUBJECTS_WORTH_A_FIGURE}
    return [("By language", _part_table(small))] if small else []


def _part_table(parts: dict[str, list[Score]]) -> Table:
    depths = sorted({score.depth for scores in parts.values() for score in scores})
    found: dict[tuple[str, str], dict[int, Score]] = {}
    for task, scores in parts.items():
        for score in sorted(scores, key=lambda score: score.group):
            found.setdefault((task, score.group), {})[score.depth] = score
    rows = [
        [
            figures.short_name(task),
            part.replace("_", " "),
            *(bracketed(at[depth]) if depth in at else fmt.MISSING for depth in depths),
            str(at[max(at)].num_items),
        ]
        for (task, part), at in found.items()
    ]
    return Table(["task", "part", *_depth_headers(depths), "questions"], rows, text_columns=(0, 1))


def _num_parts(scores: list[Score]) -> int:
    return len({score.group for score in scores})


def _depth_headers(depths: list[int]) -> list[str]:
    return [fmt.plural(depth, "block") for depth in depths]


def _compression_table(evaluation: Evaluation) -> Table:
    scores = figures.compression_scores(evaluation.scores)
    rows = []
    for group in dict.fromkeys(figures.series(score, score.group) for score in scores):
        at = {score.depth: score for score in scores if figures.series(score, score.group) == group}
        by_depth = [bracketed(at[d], scale=1, digits=3) if d in at else fmt.MISSING for d in evaluation.depths]
        rows.append([group, *by_depth, str(at[max(at)].num_items)])
    return Table(["text", *_depth_headers(evaluation.depths), "documents"], rows)


def _overlap_table(evaluation: Evaluation) -> Table:
    rows = []
    for overlap in evaluation.overlaps:
        judged = overlap.num_items - overlap.num_too_short
        counts = [overlap.num_items, overlap.num_too_short, overlap.num_overlapping, overlap.num_contained]
        share = fmt.percent(overlap.num_overlapping / judged, 2) if judged else fmt.MISSING
        rows.append([figures.short_name(overlap.task), *map(str, counts), share])
    headers = ["task", "questions", "too short to judge", "sharing a run", "mostly contained", "share of those judged"]
    return Table(headers, rows)
