from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from growtx.exceptions import SubstrateError
from growtx.substrate import build
from growtx.substrate.build import Kind, Substrate, SubstrateConfig, build_substrate, rebuild_substrate

SURFACES = ["<pad>", "<s>", "a", "а", "b", "th", "the", "река", "山", "\n", " ", "４１", "\ue000", "\ue001", "A", "Α"]
KINDS: list[Kind] = ["glyph", "glyph+code", "binary", "random", "learned"]


def make(kind: Kind, hidden_size: int = 32, **options: Any) -> Substrate:
    return build_substrate(SubstrateConfig(kind=kind, **options), SURFACES, hidden_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_substrate_has_a_row_of_float32_per_token(kind: Kind) -> None:
    substrate = make(kind)
    assert substrate.weight.dtype == torch.float32 and substrate.weight.shape[0] == len(SURFACES)
    assert 32 % substrate.weight.shape[1] == 0


@pytest.mark.parametrize("kind", ["glyph", "glyph+code"])
def test_drawn_rows_have_length_one(kind: Kind) -> None:
    assert (torch.linalg.vector_norm(make(kind).weight.double(), dim=1) - 1).abs().max() < 1e-6


def test_look_alikes_share_a_glyph_but_not_a_glyph_with_code() -> None:
    glyph, coded = make("glyph").weight, make("glyph+code").weight
    latin, cyrillic = SURFACES.index("a"), SURFACES.index("а")
    assert torch.equal(glyph[latin], glyph[cyrillic])
    assert len(torch.unique(coded, dim=0)) == len(SURFACES)
    assert torch.equal(coded[latin], glyph[latin])  # the first of a group keeps its vector


@pytest.mark.parametrize("layout", ["interleave", "tile"])
def test_binary_codes_fill_the_hidden_size_either_way(layout: Any) -> None:
    substrate = make("binary", layout=layout)
    assert substrate.expansion == layout and substrate.weight.shape == (len(SURFACES), 4)
    assert make("glyph").expansion == "none"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_built_again_bit_by_bit_from_its_recipe(kind: Kind) -> None:
    substrate = make(kind)
    recipe = json.loads(json.dumps(substrate.recipe))
    again = rebuild_substrate(recipe, SURFACES)
    assert torch.equal(again.weight, substrate.weight)
    assert (again.fingerprint, again.expansion) == (substrate.fingerprint, substrate.expansion)


def test_everything_that_matters_changes_the_fingerprint() -> None:
    variants = [
        *(make(kind) for kind in KINDS),
        make("glyph", cell_pixels=64),
        make("glyph", augment=False),
        make("glyph", hidden_size=16),
        make("binary", layout="tile"),
        build_substrate(SubstrateConfig(kind="learned"), SURFACES, 32, seed=1),
        build_substrate(SubstrateConfig(), SURFACES[::-1], 32),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


def test_what_is_augmented_is_drawn_in_another_way() -> None:
    assert not torch.equal(make("glyph").weight, make("glyph", augment=False).weight)


def test_fingerprints_are_the_same_on_every_platform_and_in_every_version() -> None:
    assert make("binary").fingerprint == "96ae0262ba470777094ea193226ae07d190e53787051acb2aca22672bf9d10db"
    assert make("learned").fingerprint == "12e7bff7ec95c1df051ee553eb773f5e171fe1e7687f96c194e6dd414b8acde2"
    tiled = make("binary", layout="tile").fingerprint
    assert tiled == "8ffa531fa62419fe37d89a87be3972a3409eace49aa93c52dda2ab57496eb20e"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("glyph", "ae7d7e6fca76bd5ef97b429ab2cf0fbf8cc7ff8df596345194fd1e84df2cc326"),
        ("glyph+code", "51b6701ca9a952730a3af5a002b40c16f994d331a81102af0f9f1c2284bf7230"),
    ],
)
def test_drawn_substrates_are_the_same_on_every_machine(kind: Kind, expected: str) -> None:
    assert make(kind).fingerprint == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("glyph", "4299f8f646edec2b9135abe16b1f5b5e04bf5e9f0ebe57d7c9024de657653567"),
        ("glyph+code", "9aad669b9154c2eb9d72e19b1c65faab9890c011586a3cddcb02dbfbe9489864"),
    ],
)
def test_fingerprints_of_drawn_substrates_are_those_that_runs_have_recorded(kind: Kind, expected: str) -> None:
    try:
        substrate = make(kind, font="unifont")
    except SubstrateError as error:
        pytest.skip(str(error))
    if substrate.recipe["font_sha256"] != "db1960227adcb14640063e7384fdcd2867aaf819d9ca4866bca289d4db9a9f67":
        pytest.skip("pinned for Unifont 15.0.01, and this machine has another")
    assert substrate.fingerprint == expected


def test_the_fingerprint_of_learned_vectors_is_their_start() -> None:
    substrate = make("learned")
    trained = substrate.weight.numpy() + 1
    assert build.substrate_fingerprint(substrate.recipe, trained) == substrate.fingerprint
    drawn = make("glyph")
    assert build.substrate_fingerprint(drawn.recipe, drawn.weight.numpy() + 1) != drawn.fingerprint


def test_another_tokenizer_cannot_rebuild_it() -> None:
    with pytest.raises(SubstrateError, match="drawn for another tokenizer"):
        rebuild_substrate(make("glyph").recipe, [*SURFACES[:-1], "Z"])


class TestCache:
    def test_a_drawn_matrix_is_made_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = SubstrateConfig(kind="glyph")
        first = build_substrate(config, SURFACES, 32, cache_dir=str(tmp_path / "cache"))
        monkeypatch.setattr(build, "render_strips", None)
        again = build_substrate(config, SURFACES, 32, cache_dir=str(tmp_path / "cache"))
        assert again.fingerprint == first.fingerprint and torch.equal(again.weight, first.weight)

    @pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
    def test_a_damaged_file_is_noticed_and_made_again(self, tmp_path: Path, damage: bytes | None) -> None:
        config = SubstrateConfig(kind="glyph")
        first = build_substrate(config, SURFACES, 32, cache_dir=str(tmp_path))
        (file,) = tmp_path.iterdir()
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content) if damage is None else damage)
        again = build_substrate(config, SURFACES, 32, cache_dir=str(tmp_path))
        assert again.fingerprint == first.fingerprint
        assert np.array_equal(np.load(file), first.weight.numpy())

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(SubstrateError, match="cannot be written"):
            build_substrate(SubstrateConfig(), SURFACES, 32, cache_dir=str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize(("kind", "hidden_size"), [("glyph", 1025), ("binary", 3)])
def test_a_hidden_size_that_the_kind_cannot_have_is_refused(kind: Kind, hidden_size: int) -> None:
    with pytest.raises(SubstrateError, match=f"hidden_size={hidden_size}|hidden_size asks for"):
        make(kind, hidden_size)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "binary", "recode_seed": 3},
        {"kind": "random", "width": 16, "layout": "tile"},
        {"kind": "random", "width": 16, "values": "floats"},
        {"kind": "random", "random_seed": 1},
    ],
)
def test_codes_are_rebuilt_from_their_recipe_and_differ_from_all_others(options: dict[str, Any]) -> None:
    substrate = make(**options)
    again = rebuild_substrate(json.loads(json.dumps(substrate.recipe)), SURFACES)
    assert again.fingerprint == substrate.fingerprint and torch.equal(again.weight, substrate.weight)
    assert substrate.fingerprint not in {make("binary").fingerprint, make("random", width=8).fingerprint}
    config = SubstrateConfig(**options)
    assert substrate.weight.shape[1] == config.stored_width(len(SURFACES), 32)
    assert (substrate.expansion == "none") == (substrate.weight.shape[1] == 32)


@pytest.mark.parametrize(
    "options",
    [{"kind": "glyph", "recode_seed": 1}, {"kind": "random", "recode_seed": 1}, {"kind": "binary", "width": 8}],
)
def test_an_option_of_another_kind_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="and this is kind="):
        SubstrateConfig(**options)
