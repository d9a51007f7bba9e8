"""A run's substrate is proven by building it again; another one, however it came to be there, is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from growtx.cli.main import main
from growtx.data.tokenizer import token_surfaces
from growtx.exceptions import StoreError, SubstrateError
from growtx.growth.assembly import SUBSTRATE_KEY
from growtx.growth.ensembles import assemble_ensemble, new_ensemble, write_ensemble
from growtx.growth.lineage import open_lineage
from growtx.growth.substrate_proof import verify_substrate
from growtx.store.blobs import BlobStore
from growtx.substrate.build import SUBSTRATE_FILE, Kind, SubstrateConfig, build_substrate
from growtx.substrate.fonts import find_font
from tests import tiny


def write_run(path: Path, tokenizer: Any, kind: Kind = "glyph+code", font: str | None = None, **stage: Any) -> Path:
    built = build_substrate(SubstrateConfig(kind=kind, font=font), token_surfaces(tokenizer), tiny.HIDDEN_SIZE)
    tiny.write_run(path, tokenizer, {"stages": [{"add": 1, **stage}]}, built=built)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A run on a drawn substrate. Read-only."""
    return write_run(tmp_path_factory.mktemp("drawn") / "run", tokenizer)


@pytest.fixture
def run(drawn: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(drawn, tmp_path / "run"))


def test_a_drawn_substrate_is_built_again_bit_for_bit(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--substrate", str(drawn)]) == 0
    proven, intact = capsys.readouterr().out.splitlines()
    assert proven == f"substrate: rebuilt from its recipe, {tiny.VOCAB_SIZE} x {tiny.HIDDEN_SIZE}, bit for bit"
    assert intact.startswith("intact: 1 manifests")


def test_the_font_may_lie_anywhere_and_is_known_by_its_hash(
    drawn: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(find_font().paths[0])
    other = str(write_run(tmp_path / "other", tokenizer, font=file))
    monkeypatch.setattr("growtx.substrate.fonts._unifonts", lambda: iter(()))
    monkeypatch.setattr("growtx.substrate.fonts._packaged", lambda: iter(()))
    with pytest.raises(SubstrateError, match=r"which is not on this machine\. Run pip install weblate-fonts==2026\.1"):
        verify_substrate(open_lineage(str(drawn)))
    with pytest.raises(SubstrateError, match=r"which is not on this machine\. Give its file as the font"):
        verify_substrate(open_lineage(other))
    elsewhere = shutil.copy(file, tmp_path / "mine.otf")
    assert "bit for bit" in verify_substrate(open_lineage(other), str(elsewhere))


def test_bits_of_ids_are_proven_too_and_learned_vectors_cannot_be(tmp_path: Path, tokenizer: Any) -> None:
    assert "bit for bit" in verify_substrate(open_lineage(str(write_run(tmp_path / "bits", tokenizer, "binary"))))
    with pytest.raises(SubstrateError, match=r"is learned, not built from a recipe\. Verify without --substrate"):
        verify_substrate(open_lineage(str(write_run(tmp_path / "learned", tokenizer, "learned"))))


def test_a_substrate_that_the_first_stage_trained_is_said_to_be_one(tmp_path: Path, tokenizer: Any) -> None:
    path = write_run(tmp_path / "run", tokenizer, train_substrate=True)
    assert verify_substrate(open_lineage(str(path))).endswith("a first stage then trained it")


def other_recipe(run: Path) -> None:
    record = json.loads((run / SUBSTRATE_FILE).read_text())
    record["recipe"]["augment"] = False
    (run / SUBSTRATE_FILE).write_text(json.dumps(record))


def other_weights(run: Path) -> None:
    """A matrix with a value changed, under a name that hashes right."""
    record = json.loads((run / SUBSTRATE_FILE).read_text())
    weight = BlobStore(str(run)).get(record["blob"])[SUBSTRATE_KEY].clone()
    weight[5, 3] += 1e-6
    record["blob"] = BlobStore(str(run)).put({SUBSTRATE_KEY: weight})
    (run / SUBSTRATE_FILE).write_text(json.dumps(record))


@pytest.mark.parametrize("change", [other_recipe, other_weights])
def test_a_substrate_that_its_recipe_does_not_make_is_refused(
    change: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run)
    with pytest.raises(StoreError, match="is not what its recipe makes"):
        verify_substrate(open_lineage(str(run)))
    assert main(["verify", "--substrate", str(run)]) == 1
    assert "is not what its recipe makes" in capsys.readouterr().err


def test_an_ensemble_is_proven_by_its_first_member(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(run.parent / "merged")
    manifest = new_ensemble(out, {"a": str(run), "b": str(run)})
    write_ensemble(out, manifest, assemble_ensemble(out, manifest)[0])
    assert main(["verify", "--substrate", out]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_a_font_without_the_substrate_to_draw_is_refused(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--font", "x.ttf", str(drawn)]) == 2
    assert "--font only works with --substrate" in capsys.readouterr().err
