"""The model card of a run's Hugging Face directory: lineage, data, licences, results, and how to reproduce it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from growtx import formatting as fmt
from growtx.command import resume_command
from growtx.evaluate.results import Evaluation, Score, read_evaluation
from growtx.exceptions import StoreError
from growtx.redaction import redact_text
from growtx.report.evaluation import bracketed
from growtx.report.evaluation_figures import whole_tasks
from growtx.report.growth import headline
from growtx.report.page import Table
from growtx.report.run_record import Json, RunRecord, read_run

CARD_FILE = "model/README.md"
NOT_STATED = "not stated"


def write_model_card(run_dir: str) -> str:
    """Write the card beside the model of a run; returns its address.

    Raises:
        StoreError: no stage is finished, so there is no model yet.
    """
    run = read_run(run_dir)
    if not run.manifests:
        raise StoreError(f"{run_dir} has no finished stage", f"Go on with it: {resume_command('grow', run_dir)}")
    run.storage.write_text(CARD_FILE, model_card(run, read_evaluation(run.storage)))
    return run.storage.path(CARD_FILE)


def model_card(run: RunRecord, evaluation: Evaluation | None) -> str:
    """The card as Markdown with the YAML front matter that model hubs read."""
    head = yaml.safe_dump(_head(run, evaluation), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {run.name}\n", headline(run) + "\n"]
    if description := run.config.get("description"):
        parts.append(f"{description}\n")
    for title, body in (
        ("Load it", _loading()),
        ("Lineage", _lineage(run)),
        ("Data and licences", _data(run)),
        ("Results", _results(run, evaluation)),
        ("Limits", _limits(run)),
        ("Reproduce it", _repeating(run)),
    ):
        parts.append(f"## {title}\n\n{body}\n")
    return redact_text("\n".join(parts))


def markdown(table: Table) -> str:
    """A table of Markdown, numbers aligned right."""
    lines = [
        table.headers,
        [":--" if at in table.text_columns else "--:" for at in range(len(table.headers))],
        *table.rows,
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _head(run: RunRecord, evaluation: Evaluation | None) -> Json:
    head: Json = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["growtx", "grown-in-stages", "frozen-embeddings"],
    }
    if licence := run.config.get("license"):
        head["license"] = licence
    results = [_index_entry(score) for score in _final_scores(evaluation)]
    if results:
        head["model-index"] = [{"name": run.name, "results": results}]
    return head


def _index_entry(score: Score) -> Json:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": score.task, "type": score.task},
        "metrics": [
            {"name": f"{score.metric} ({score.protocol})", "type": score.metric, "value": round(score.value, 4)}
        ],
    }


START_NOTE = "In training every document stands after `tokenizer.bos_token`; the tokenizer does not add it by itself."


def _loading() -> str:
    return (
        "```python\nimport torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'path = "PATH TO THIS DIRECTORY"\n'
        "model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)\n"
        'ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("Text to continue")["input_ids"]]])\n'
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0], skip_special_tokens=True))\n```\n"
        f"{START_NOTE}\n"
    )


def _lineage(run: RunRecord) -> str:
    rows = [
        [
            str(manifest.index),
            manifest.name,
            str(manifest.num_blocks),
            f"{manifest.active_parameters:,}",
            f"{manifest.total_parameters:,}",
            f"{manifest.num_tokens:,}",
            fmt.decimal(manifest.metrics.get("eval/bits_per_byte")),
            fmt.short_hash(manifest.blocks[-1].blob),
        ]
        for manifest in run.manifests
    ]
    headers = ["stage", "name", "blocks", "active", "all", "tokens so far", "bits per byte", "newest block"]
    last = run.manifests[-1]
    return markdown(Table(headers, rows, text_columns=(1, 7))) + (
        f"\nTokenizer `{fmt.short_hash(last.tokenizer_fingerprint)}`, substrate "
        f"`{fmt.short_hash(last.substrate_fingerprint)}`, data `{fmt.short_hash(last.data_fingerprint)}`.\n"
    )


def _data(run: RunRecord) -> str:
    rows = [[name, what, weight, licence] for name, what, weight, licence in _sources(run.config)]
    if not rows:
        return "The run does not record its data.\n"
    missing = [row[0] for row in rows if row[3] == NOT_STATED]
    note = f"\nNo licence is stated for {', '.join(missing)}: find out before you share the model.\n" if missing else ""
    return markdown(Table(["source", "what", "weight", "licence"], rows, text_columns=(0, 1, 3))) + note


def _sources(config: Json) -> Iterator[tuple[str, str, str, str]]:
    data = config.get("data")
    for source in data.get("sources", ()) if isinstance(data, Mapping) else ():
        kind, what = next(
            (kind, source[kind]) for kind in ("files", "hf", "microworld") if source.get(kind) is not None
        )
        licence = source.get("license") or ("generated" if kind == "microworld" else NOT_STATED)
        shown = (
            "generated text"
            if kind == "microworld"
            else f"{kind}: {what if isinstance(what, str) else ', '.join(what)}"
        )
        yield str(source.get("name") or kind), shown, f"{source.get('weight', 1.0):g}", licence


def _results(run: RunRecord, evaluation: Evaluation | None) -> str:
    last = run.manifests[-1].metrics
    lines = [f"Held-out bits per byte: {fmt.decimal(last.get('eval/bits_per_byte'))}."]
    by_source: Any = last.get("eval/bits_per_byte_by_source") or {}
    lines += [f"- {name}: {fmt.decimal(value)}" for name, value in by_source.items() if len(by_source) > 1]
    rows = [
        [
            score.task,
            f"{score.metric}, {score.protocol}",
            bracketed(score),
            fmt.percent(score.chance),
            fmt.percent(score.majority),
            str(score.num_items),
        ]
        for score in _final_scores(evaluation)
    ]
    if not rows:
        return "\n".join([*lines, "", "No benchmark was run."]) + "\n"
    table = Table(["task", "score", "% [95 % interval]", "chance", "majority", "questions"], rows, text_columns=(0, 1))
    return "\n".join([*lines, "", markdown(table)])


def _final_scores(evaluation: Evaluation | None) -> list[Score]:
    """Whole tasks at the greatest evaluated depth."""
    scores = evaluation.own_scores if evaluation else []
    deepest = max((score.depth for score in scores), default=0)
    return [score for score in whole_tasks(scores) if score.depth == deepest]


def _limits(run: RunRecord) -> str:
    context = run.manifests[-1].model.get("max_position_embeddings", "?")
    tokens = fmt.abbreviated(run.manifests[-1].num_tokens)
    return (
        f"Trained on {tokens} tokens with a context of {context} tokens, without instruction tuning or safety "
        "training: it continues text, states falsehoods fluently, and repeats what its data contain.\n"
    )


def _repeating(run: RunRecord) -> str:
    provenance = run.provenance
    versions = provenance.get("versions") or {}
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    command = provenance.get("command") or "growtx grow --preset run.yaml"
    commit = f"growtx at commit {provenance['git_commit']}" if provenance.get("git_commit") else "growtx"
    return f"```\n{command}\n```\n\nWith {commit}{f' and {known}' if known else ''}.\n"
