"""The image recipes: every step that can be checked without building them."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
CLUSTER = PROJECT / "cluster"
IMAGES = {"growtx:cuda": CLUSTER / "Dockerfile", "growtx:cpu": CLUSTER / "Dockerfile.cpu"}
each_image = pytest.mark.parametrize("path", IMAGES.values(), ids=lambda path: path.name)


def steps(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of every step, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def arguments_of(path: Path, command: str) -> list[str]:
    """The words after `command` in the one RUN step that has it."""
    (found,) = [text for instruction, text in steps(path) if instruction == "RUN" and command in text]
    return shlex.split(found.split(command, 1)[1].split(" && ")[0])


@each_image
def test_recipes_consist_of_known_instructions_and_start_from_the_tested_python(path: Path) -> None:
    assert {instruction for instruction, _ in steps(path)} <= {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "CMD"}
    assert steps(path)[0] == ("FROM", "python:3.11-slim-bookworm")


@each_image
def test_the_head_of_a_recipe_has_the_command_that_builds_it(path: Path) -> None:
    (tag,) = [tag for tag, recipe in IMAGES.items() if recipe == path]
    assert f"docker build --file cluster/{path.name} --tag {tag} ." in path.read_text()


@each_image
def test_everything_copied_exists_and_is_not_ignored(path: Path) -> None:
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    sources = [word for instruction, text in steps(path) if instruction == "COPY" for word in text.split()[:-1]]
    assert {"growtx", "serve", "rayjobs", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (PROJECT / source).exists()
        assert f"!{source}" in ignored


@each_image
def test_images_install_as_the_makefile_does(path: Path) -> None:
    """The same constraints and the same project, with every extra but those of tests, developers and other machines."""
    (recipe,) = [line for line in (PROJECT / "Makefile").read_text().splitlines() if "--editable" in line]
    made = shlex.split(recipe.split("pip install", 1)[1].replace("--quiet", ""))
    image = arguments_of(path, "pip install")
    for option in ("--constraint", "--editable"):
        assert option in made
        assert option in image
    assert image[image.index("--constraint") + 1] == made[made.index("--constraint") + 1] == "constraints.txt"
    extras = set(re.fullmatch(r"\.\[(.*)]", image[image.index("--editable") + 1])[1].split(","))
    known = set(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert extras == known - {"test", "dev"} - ({"gpu"} if path.suffix == ".cpu" else set())


@each_image
def test_images_hold_the_font_of_the_paper_and_run_as_an_ordinary_user(path: Path) -> None:
    assert "fonts-unifont" in arguments_of(path, "apt-get install")
    assert ("USER", "1000") in steps(path)
    assert steps(path).index(("USER", "1000")) > max(i for i, (name, _) in enumerate(steps(path)) if name == "RUN")


def test_the_cuda_compiler_is_of_the_version_that_the_pinned_torch_was_built_with() -> None:
    pinned = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().split() if "==" in line)
    (toolkit,) = [
        word for word in arguments_of(IMAGES["growtx:cuda"], "pip install") if word.startswith("cuda-toolkit")
    ]
    assert pinned["torch"] == "2.13.0", "look up the CUDA version of the new torch (its dependency cuda-toolkit)"
    assert toolkit.endswith("==13.0.3")


def test_manifests_name_only_images_that_there_are() -> None:
    named = set()
    for path in CLUSTER.rglob("*.yaml"):
        named |= set(re.findall(r"growtx:\w+", path.read_text()))
    assert named == set(IMAGES)


def test_constraints_pin_what_is_installed_here() -> None:
    """Only for packages whose versions decide results or formats; torch may carry a local build tag."""
    pinned = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().split() if "==" in line)
    for name in ("torch", "ray", "deepspeed", "transformers", "tokenizers", "safetensors", "peft"):
        assert version(name).split("+")[0] == pinned[name]


def test_every_tracked_yaml_and_json_file_of_the_folder_parses() -> None:
    for path in CLUSTER.rglob("*.y*ml"):
        assert all(tree is not None for tree in yaml.safe_load_all(path.read_text())), path
