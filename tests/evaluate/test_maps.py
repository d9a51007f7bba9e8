from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growtx.evaluate.maps import (
    chance_share,
    kind_of,
    make_maps,
    project,
    read_maps,
    same_group_share,
    save_maps,
    word_states,
)
from growtx.exceptions import ConfigError
from growtx.report.growth import write_report
from growtx.storage import Storage

GROUPS = {"cities": ("Berlin", "Берлине", "柏林"), "people": ("Anna", "Анна", "安娜")}


def test_states_are_those_that_the_blocks_produce(model: Any, tokenizer: Any) -> None:
    states = word_states(model, tokenizer, ["Anna", "Berlin"])
    assert set(states) == {(site, layer) for site in ("v_proj", "o_proj", "block") for layer in (0, 1)}
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode("Berlin")]])
    with torch.no_grad():
        wanted = model.forward_prefix(ids, 2)[0, 1:].mean(0).numpy()
    np.testing.assert_allclose(states["block", 1][1], wanted, rtol=1e-4, atol=1e-6)


def test_looking_leaves_no_hooks_behind(model: Any, tokenizer: Any) -> None:
    word_states(model, tokenizer, ["Anna"])
    assert not any(module._forward_hooks for module in model.modules())


def test_neighbours_of_separate_groups_are_their_own() -> None:
    directions = np.repeat(np.eye(3, dtype=np.float32), 6, axis=0)
    labels = [label for label in "abc" for _ in range(6)]
    assert same_group_share(directions, labels) == 1.0
    mixed = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    many = [label for label in "abc" for _ in range(100)]
    assert same_group_share(mixed, many) == pytest.approx(chance_share(many), abs=0.05)


def test_projection_repeats_and_keeps_clusters_apart() -> None:
    states = np.repeat(np.eye(2, 8, dtype=np.float32), 10, axis=0)
    points = project(states)
    assert points == project(states)
    plane = np.asarray(points)
    within = np.linalg.norm(plane[:10] - plane[:10].mean(0), axis=1).max()
    assert np.linalg.norm(plane[:10].mean(0) - plane[10:].mean(0)) > within


@pytest.mark.parametrize(
    ("surface", "kind"),
    [
        ("7", "digits"),
        ("a", "Latin"),
        ("th", "Latin n-grams"),
        ("я", "Cyrillic"),
        ("柏林", "Han n-grams"),
        ("?!", "signs"),
    ],
)
def test_tokens_are_sorted_by_what_they_look_like(surface: str, kind: str) -> None:
    assert kind_of(surface) == kind


def test_maps_are_kept_and_shown_in_the_report(run_dir: Path, model: Any, tokenizer: Any, rough: None) -> None:
    maps = make_maps(model, tokenizer, groups=GROUPS)
    storage = Storage(run_dir)
    save_maps(storage, maps)
    assert read_maps(storage) == maps
    assert sum(kind.num_tokens for kind in maps.substrate.kinds) == len(maps.substrate.labels)
    assert all(0 <= kind.same_kind <= 1 and kind.chance < 1 for kind in maps.substrate.kinds)
    assert {(layer.site, layer.layer) for layer in maps.layers} == {
        (s, d) for s in ("v_proj", "o_proj", "block") for d in (1, 2)
    }
    html = Path(write_report(str(run_dir))).read_text()
    assert "Meaning, layer by layer" in html
    assert (run_dir / "plots" / "layer_maps.png").exists()


def test_a_model_without_growtx_blocks_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="Linear has no growtx blocks"):
        word_states(torch.nn.Linear(2, 2), tokenizer, ["Anna"])
