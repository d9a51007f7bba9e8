"""Configuration: what is written is what is meant, and what cannot be meant is refused in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from growtx.config import (
    ConfigModel,
    apply_overrides,
    build_config,
    fingerprint,
    load_preset,
    parse_yaml,
    preset_names,
    to_yaml,
)
from growtx.exceptions import ConfigError


class Part(ConfigModel):
    rate: float = Field(1e-3, gt=0)
    names: str | tuple[str, ...] = ()
    kind: Literal["plain", "fancy"] = "plain"


class Whole(ConfigModel):
    title: str = "untitled"
    num_parts: int = 1
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    maybe: Part | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    needed: int


def error_of(tree: dict[str, Any], model: type[ConfigModel] = Whole) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build_config(model, {"needed": 1, **tree})
    return caught.value


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"tilte": "x"}, "tilte: unknown key (value 'x'). Did you mean 'title'?"),
        ({"part": {"rat": 1}}, "part.rat: unknown key (value 1). Did you mean 'rate'?"),
        ({"parts": [{}, {"nam": 1}]}, "parts.1.nam: unknown key (value 1). Did you mean 'names'?"),
        ({"maybe": {"kin": 1}}, "maybe.kin: unknown key (value 1). Did you mean 'kind'?"),
        ({"part": {"zzz": 1}}, "part.zzz: unknown key (value 1). Known keys here: kind, names, rate."),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_that_may_be_meant(tree: dict[str, Any], sentence: str) -> None:
    assert str(error_of(tree)) == sentence


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"num_parts": "many"}, "num_parts='many': input should be a valid integer"),
        ({"part": {"rate": -1}}, "part.rate=-1: input should be greater than 0"),
        ({"parts": [{"rate": 1}, {"rate": 0}]}, "parts.1.rate=0: input should be greater than 0"),
        ({"part": {"kind": "odd"}}, "part.kind='odd': input should be 'plain' or 'fancy'"),
        ({"part": 3}, "part=3: input should be a mapping of keys to values"),
        ({"parts": 3}, "parts=3: input should be a list"),
        ({"maybe": {"rate": "fast"}}, "maybe.rate='fast': input should be a valid number"),
        ({"pair": [0.5]}, "pair.1: required key is missing"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_the_remedy(tree: dict[str, Any], sentence: str) -> None:
    error = error_of(tree)
    assert error.problem.startswith(sentence)
    assert error.remedy.startswith(("Change ", "Set ")) and error.exit_code == 2


def test_what_does_not_fit_a_union_is_named_by_its_key_and_not_by_pydantics_types() -> None:
    whole = error_of({"part": {"names": 5}})
    assert whole.problem == "part.names=5: input should be a valid string; part.names=5: input should be a list"
    item = error_of({"parts": [{"names": ["a", 5]}]})
    assert str(item) == "parts.0.names.1=5: input should be a valid string. Change parts.0.names.1."


def test_every_wrong_key_is_named_at_once() -> None:
    error = error_of({"num_parts": "many", "part": {"rate": 0}, "colour": "red"})
    assert all(key in error.problem for key in ("num_parts='many'", "part.rate=0", "colour: unknown key"))


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^needed: required key is missing\. Set needed\.$"):
        build_config(Whole, {})


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_must_be_finite(value: str) -> None:
    assert "finite number" in error_of({"part": {"rate": parse_yaml(value, "here")}}).problem


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(error_of({"num_parts": "x" * 10_000}).problem) < 300


def test_a_block_is_immutable_and_its_defaults_are_checked_too() -> None:
    with pytest.raises(ValidationError):
        Part().rate = 2.0  # type: ignore[misc]

    class Wrong(ConfigModel):
        rate: float = Field(-1.0, gt=0)

    with pytest.raises(ConfigError, match="greater than 0"):
        build_config(Wrong, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e9", 1e9),
        ("1.5E+3", 1500.0),
        ("-2e0", -2.0),
        (".5e1", 5.0),
        ("2_000_000", 2_000_000),
        ("2026-01-01", "2026-01-01"),
        ("2026-13-45", "2026-13-45"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("null", None),
        ("[1, {a: 2e1}]", [1, {"a": 20.0}]),
    ],
)
def test_yaml_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    found = parse_yaml(text, "here")
    assert found == value and type(found) is type(value)


def test_an_integer_may_be_written_with_an_exponent_or_with_underscores() -> None:
    for text in ("1e6", "1_000_000", "1000000.0"):
        assert build_config(Whole, {"needed": parse_yaml(text, "here")}).needed == 1_000_000
    assert "fractional part" in error_of({"num_parts": parse_yaml("15e-1", "here")}).problem


@pytest.mark.parametrize("text", ["[1", "a: b: c", "!!int many", "\x07", "!!python/object:os.system x", "{[1]: 2}"])
def test_text_that_is_no_yaml_is_a_sentence_that_names_its_source(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^override x is not valid YAML"):
        parse_yaml(text, "override x")


def test_overrides_are_applied_in_order_and_leave_the_tree_alone() -> None:
    tree = {"part": {"rate": 1.0}, "parts": [{"rate": 1.0}, {"rate": 2.0}]}
    overrides = ["part.rate=3", "parts.1.rate=4", "maybe.kind=fancy", "part.rate=5", "title=a=b"]
    result = apply_overrides(tree, overrides)
    assert result["part"]["rate"] == 5 and result["title"] == "a=b"
    assert [part["rate"] for part in result["parts"]] == [1.0, 4]
    assert result["maybe"] == {"kind": "fancy"}
    assert tree == {"part": {"rate": 1.0}, "parts": [{"rate": 1.0}, {"rate": 2.0}]}


def test_an_override_may_replace_a_value_by_a_section_and_a_list_item_as_a_whole() -> None:
    tree = {"maybe": None, "parts": [{"rate": 1.0}], "names": ["a"]}
    result = apply_overrides(tree, ["maybe.rate=2", "parts.0={kind: fancy}", "names.0.x=1"])
    assert result == {"maybe": {"rate": 2}, "parts": [{"kind": "fancy"}], "names": [{"x": 1}]}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("title", "override 'title' is not a key and a value. Write it as section.key=value."),
        ("=3", "override '=3' is not a key and a value. Write it as section.key=value."),
        ("parts.1.rate=3", "override parts.1.rate: '1' is not an index of a list of 1. Use a number from 0 to 0, or"),
        ("parts.first=3", "override parts.first: 'first' is not an index of a list of 1. Use a number from 0 to 0, or"),
        ("parts.².rate=3", "override parts.².rate: '²' is not an index of a list of 1. Use a number from 0 to 0, or"),
        ("parts.-1=3", "override parts.-1: '-1' is not an index of a list of 1. Use a number from 0 to 0, or"),
    ],
)
def test_an_override_that_cannot_be_applied_says_why(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"parts": [{}]}, [override])
    assert str(caught.value).startswith(sentence)


def test_overrides_beat_the_preset_and_the_preset_beats_the_defaults(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("needed: 3\npart: {rate: 0.5}\ndate: 2026-01-01\n")
    tree = load_preset(str(preset))
    assert tree.pop("date") == "2026-01-01"
    whole = build_config(Whole, apply_overrides(tree, ["part.rate=0.7", "part.rate=0.9"]))
    assert (whole.needed, whole.part.rate, whole.part.kind) == (3, 0.9, "plain")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no such file"),
        (b"\xff\xfe", "cannot be read"),
        (b"- 1", "not a mapping"),
        (b"a: [", "not valid"),
    ],
)
def test_a_preset_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_preset(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="--preset dmo: unknown preset") as caught:
        load_preset("dmo")
    assert all(name in caught.value.remedy for name in preset_names())


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)


@settings(max_examples=50, deadline=None)
@given(title=TEXT, rate=st.floats(min_value=1e-300, max_value=1e300), names=st.lists(TEXT, max_size=3))
def test_what_is_printed_reads_back_as_the_same_configuration(title: str, rate: float, names: list[str]) -> None:
    whole = build_config(Whole, {"needed": 1, "title": title, "parts": [{"rate": rate, "names": names}]})
    assert build_config(Whole, parse_yaml(to_yaml(whole), "printed")) == whole


@pytest.mark.parametrize("title", ["1e5", "123e4", "2026-01-01", "null", "yes", "0x10", "", " ", "1_0", "~"])
def test_text_that_looks_like_another_type_stays_text_when_printed(title: str) -> None:
    whole = build_config(Whole, {"needed": 1, "title": title})
    assert build_config(Whole, parse_yaml(to_yaml(whole), "printed")).title == title


def test_equal_configurations_have_equal_fingerprints_and_others_do_not() -> None:
    assert fingerprint({"a": 1, "b": [2, {"c": "ж"}]}) == fingerprint({"b": [2, {"c": "ж"}], "a": 1})
    assert (
        build_config(Whole, {"needed": 1, "part": {}}).fingerprint() == build_config(Whole, {"needed": 1}).fingerprint()
    )
    assert build_config(Whole, {"needed": 1}).fingerprint() != build_config(Whole, {"needed": 2}).fingerprint()


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 2}", "x:\n - {k: 1}\n - y: {k: 1, k: 2}"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"the key '[ak]' stands twice .*line \d"):
        parse_yaml(text, "f")


def test_merged_keys_may_be_overridden() -> None:
    assert parse_yaml("b: &b {a: 1}\nc: {<<: *b, a: 2}", "f")["c"] == {"a": 2}


class Inner(ConfigModel):
    renamed_keys: ClassVar[Mapping[str, str]] = {"breadth": "width"}
    width: int = Field(1, ge=1)
    depth: int = 1


class Renamed(ConfigModel):
    renamed_keys: ClassVar[Mapping[str, str]] = {"form": "shape", "depth": "shape.depth", "lanes": "num_lanes"}
    shape: Inner = Inner()
    num_lanes: int = 1


@pytest.mark.parametrize(
    "tree",
    [
        {"form": {"breadth": 3, "depth": 4}, "lanes": 2},
        {"form": {"width": 3}, "depth": 4, "num_lanes": 2},
        {"shape": {"width": 3, "depth": 9}, "depth": 4, "lanes": 2},
        {"depth": 9, "shape": {"breadth": 3, "depth": 4}, "num_lanes": 9, "lanes": 2},
    ],
)
def test_old_names_of_keys_are_read_as_their_new_ones(tree: dict[str, Any]) -> None:
    expected = Renamed(shape=Inner(width=3, depth=4), num_lanes=2)
    assert build_config(Renamed, tree) == Renamed.model_validate(tree) == expected
    assert "form" not in to_yaml(expected)


@pytest.mark.parametrize("old", [["form.width=3", "depth=4"], ["form={width: 3, depth: 4}"]])
@pytest.mark.parametrize("tree", [{"shape": {"width": 7}}, {"form": {"width": 7}}, {}, {"shape": {}, "depth": 9}])
def test_an_override_counts_more_than_the_file_whichever_name_each_uses(tree: dict[str, Any], old: list[str]) -> None:
    new = [f"shape{override.removeprefix('form')}" if "form" in override else f"shape.{override}" for override in old]
    expected = Inner(width=3, depth=4)
    assert build_config(Renamed, tree, old).shape == build_config(Renamed, tree, new).shape == expected


def test_errors_use_the_new_name_of_a_key() -> None:
    assert str(error_of_renamed({"form": {"width": 0}})).startswith("shape.width=0: input should be greater")
    assert "shape.dept: unknown key (value 2). Did you mean 'depth'" in str(error_of_renamed({"form": {"dept": 2}}))


def error_of_renamed(tree: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        build_config(Renamed, tree)
    return caught.value
