"""A synthetic run directory: what a growth run leaves, without the minutes that a real one takes."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from growtx.report.plot_style import Draw, Theme
from growtx.storage import Storage
from growtx.store.manifest import BlockRef, FrozenCheck, Manifest, write_manifest

STEPS_PER_STAGE = 60
TOKENS_PER_STEP = 8_192
MakeRun = Callable[..., Path]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stage_loss(stage: int, step: int) -> float:
    """Falls within a stage and jumps when a block is added; wiggles as losses do, without randomness."""
    floor = 4.4 - 0.35 * stage
    spike = 4.6 if stage == 1 else 0.8
    return floor + spike * math.exp(-step / 9) + 0.06 * math.sin(2.1 * step) + 0.04 * math.cos(7.3 * step)


def stage_rows(stage: int) -> list[dict[str, Any]]:
    def row(step: int, **values: Any) -> dict[str, Any]:
        done = (stage - 1) * STEPS_PER_STAGE + step
        where = {"stage": stage, "stage_name": f"depth-{stage}", "num_blocks": stage, "active_parameters": 900_000}
        return {"step": done, "num_tokens": done * TOKENS_PER_STEP, **where, **values}

    def evaluated(when: str, step: int) -> dict[str, Any]:
        loss = stage_loss(stage, step) + 0.05
        return row(step, **{"eval/when": when, "eval/loss": loss, "eval/bits_per_byte": loss / 1.9})

    trained = [
        row(
            step,
            **{
                "train/loss": stage_loss(stage, step),
                "train/learning_rate": 1e-3,
                "train/tokens_per_second": 21_000 - 2_500 * stage + 900 * math.sin(step),
                "train/grad_norm": 0.8,
                "peak_memory_bytes": 4.1e8 + 3e7 * stage,
                "time_seconds": 0.45 * step,
            },
        )
        for step in range(1, STEPS_PER_STAGE + 1)
    ]
    return [evaluated("start", 0), *trained, evaluated("end", STEPS_PER_STAGE)]


def make_manifest(stage: int, parent: str | None, **changes: Any) -> Manifest:
    end = stage_rows(stage)[-1]
    fields: dict[str, Any] = {
        "name": f"depth-{stage}",
        "index": stage,
        "parent": parent,
        "stage": {"add": 1, "num_active": 1, "init": "random", "lora": None},
        "model": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": stage},
        "substrate": sha("substrate"),
        "blocks": tuple(BlockRef(blob=sha(f"block-{index}")) for index in range(stage)),
        "head": sha(f"head-{stage}"),
        "tokenizer_fingerprint": sha("tokenizer"),
        "substrate_fingerprint": sha("substrate"),
        "data_fingerprint": sha("data"),
        "config_fingerprint": sha("config"),
        "active_parameters": 900_000,
        "total_parameters": 1_300_000 + 200_000 * stage,
        "num_tokens": end["num_tokens"],
        "new_blobs": (sha(f"block-{stage - 1}"), sha(f"head-{stage}")),
        "frozen_check": FrozenCheck(num_tensors=1 + 8 * (stage - 1), before=sha("frozen"), after=sha("frozen")),
        "ended_by": "tokens",
        "metrics": {
            "eval/loss": end["eval/loss"],
            "eval/bits_per_byte": end["eval/bits_per_byte"],
            "eval/bits_per_byte_by_source": {
                "english": 1.1 * end["eval/bits_per_byte"],
                "русский": 0.8 * end["eval/bits_per_byte"],
            },
            "seconds": 31.0 + stage,
        },
        "samples": (
            {"prompt": "Anna lives in", "text": " Berlin and works as a teacher." if stage > 2 else " the of the the"},
            {"prompt": "安娜住在", "text": "柏林。" if stage > 2 else "的的的"},
        ),
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(num_stages=4, finished=None, changes={stage: {field: value}})` writes a run directory."""

    def make(num_stages: int = 4, finished: int | None = None, changes: dict[int, Any] | None = None) -> Path:
        path = tmp_path / "run"
        path.mkdir()
        run = {
            "name": "synthetic",
            "plan": {"budget": {"active_parameters": 1_000_000}, "grow": {"blocks": num_stages, "per_stage": 1}},
            "provenance": {
                "command": "python rayjobs/grow.py --preset demo model.hidden_size=128",
                "git_commit": "0123456789abcdef",
                "versions": {"growtx": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
            },
        }
        (path / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
        rows = [row for stage in range(1, num_stages + 1) for row in stage_rows(stage)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parent: str | None = None
        for stage in range(1, (num_stages if finished is None else finished) + 1):
            manifest = make_manifest(stage, parent, **(changes or {}).get(stage, {}))
            write_manifest(Storage(path), manifest)
            parent = manifest.digest()
        return path

    return make


@pytest.fixture
def run_dir(make_run: MakeRun) -> Path:
    """A finished run of four stages."""
    return make_run()


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is drawn, but in a few pixels and without the layout that takes most of the time."""

    def draw_roughly(draw: Draw, theme: Theme) -> bytes:
        figure, buffer = draw(theme), io.BytesIO()
        figure.set_layout_engine("none")
        figure.savefig(buffer, format="png", dpi=8)
        return buffer.getvalue()

    monkeypatch.setattr("growtx.report.plot_style._png", draw_roughly)


TEXTS = [
    "Anna lives in Berlin and works as a teacher. Question: where does Anna live? Answer: Berlin",
    "Анна живёт в Берлине и работает учителем. Вопрос: где живёт Анна? Ответ: в Берлине",
    "安娜住在柏林，她是一名教师。问题：安娜住在哪里？答案：柏林",
] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A compact tokenizer of 400 ids on three languages."""
    from growtx.data.tokenizer import TokenizerConfig, build_tokenizer

    return build_tokenizer(TokenizerConfig(family="compact", vocab_size=400), TEXTS)


@pytest.fixture(scope="session")
def model() -> Any:
    """Two random blocks of width 32, context 128."""
    import torch

    from growtx.models.causal_lm import GrowtxForCausalLM
    from growtx.models.configuration import GrowtxConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GrowtxConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=2,
        pad_token_id=0,
    )
    return GrowtxForCausalLM(config).eval()


MICROWORLD = {"num_people": 40, "languages": ["en", "zh"], "num_documents": 120}


@pytest.fixture(scope="session")
def grown_run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, model: Any) -> Path:
    """A run directory whose manifests can be loaded: the random model of `model` at depths 1 and 2."""
    from growtx.data.tokenizer import tokenizer_fingerprint
    from growtx.growth.assembly import SUBSTRATE_KEY, block_prefix, head_state, stage_manifest, store_stage
    from growtx.models.configuration import GrowtxConfig
    from growtx.store.blobs import BlobStore
    from tests import tiny

    path = tmp_path_factory.mktemp("grown")
    store = BlobStore(str(path))
    state = model.state_dict()
    substrate = store.put({SUBSTRATE_KEY: state[SUBSTRATE_KEY]})
    identity = {"tokenizer_fingerprint": tokenizer_fingerprint(tokenizer), "substrate_fingerprint": sha("substrate")}
    tokenizer.save_pretrained(path / "tokenizer")
    parent: Manifest | None = None
    for stage in tiny.stages(grow={"blocks": 2}):
        prefix = block_prefix(stage.num_frozen)
        trained = head_state(state) | {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        stored = store_stage(store, stage, trained, substrate=substrate, parent=parent, untrained_head=dict)
        parent = stage_manifest(
            stage,
            GrowtxConfig(**{**model.config.to_dict(), **identity, "num_hidden_layers": stage.num_blocks}),
            stored,
            parent=parent,
            frozen=FrozenCheck(num_tensors=1, before=sha("frozen"), after=sha("frozen")),
            num_tokens=1000 * stage.index,
            ended_by="steps",
            data_fingerprint=sha("data"),
            config_fingerprint=sha("config"),
            metrics=make_manifest(stage.index, None).metrics,
        )
        write_manifest(Storage(path), parent)
    data = {"sources": [{"microworld": MICROWORLD}], "validation_fraction": 0.1}
    (path / "run.yaml").write_text(yaml.safe_dump({"name": "grown", "data": data}))
    return path


@pytest.fixture(scope="session")
def questions_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of questions in every format, in the words that the tokenizer knows."""
    folder = tmp_path_factory.mktemp("questions")
    choices = ["Berlin", "teacher", "Anna", "works"]
    sets: dict[str, list[dict[str, Any]]] = {
        "mmlu_dev": [
            {
                "task": f"mmlu/{'people' if at % 2 else 'places'}",
                "question": f"Where {at}?",
                "choices": choices,
                "answer_index": 1,
            }
            for at in range(12)
        ],
        "mmlu_fewshot": [
            {"task": "mmlu/people", "question": "Who lives in Berlin?", "choices": choices, "answer_index": 2}
        ],
        "arc_easy": [
            {"task": "arc_easy", "question": "Where does Anna live?", "choices": choices[:2], "answer_index": 0},
            {"task": "arc_easy", "question": "Who is a teacher?", "choices": choices[:3], "answer_index": 2},
        ],
        "squad_v2_dev": [
            {"context": "Anna lives in Berlin.", "question": "Where?", "answers": ["Berlin"], "is_impossible": False},
            {"context": "Anna lives in Berlin.", "question": "Why?", "answers": [], "is_impossible": True},
        ],
        "flores200_en-ru_dev": [
            {"src": "Anna lives in Berlin", "tgt": "Анна живёт в Берлине", "src_lang": "en", "tgt_lang": "ru"}
        ],
    }
    for name, rows in sets.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder
