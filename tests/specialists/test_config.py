"""Configurations of specialists: what is shared, what is refused, and the runs that follow from them."""

from __future__ import annotations

from typing import Any

import pytest

from growtx.config import build_config
from growtx.exceptions import ConfigError
from growtx.growth.plan import resolve
from growtx.models.counting import monolithic_flops
from growtx.run.config import RunConfig
from growtx.specialists.config import SpecialistsConfig, all_data, load_specialists_config
from tests import tiny


def tree(**changes: Any) -> dict[str, Any]:
    """Two bilingual specialists that share their English."""
    english = {"name": "English", "files": "en.txt"}
    return {
        "plan": {"stages": [{"add": 1}, {"add": 2}], "train": {"tokens": 1000, "learning_rate": 2e-3}},
        "specialists": [
            {"name": "ru", "data": {"sources": [english, {"name": "Russian", "files": "ru.txt", "weight": 3}]}},
            {"name": "zh", "data": {"sources": [{**english, "name": "en"}, {"name": "Chinese", "files": "zh.txt"}]}},
        ],
        **changes,
    }


def config(**changes: Any) -> SpecialistsConfig:
    return build_config(SpecialistsConfig, tree(**changes))


def test_the_data_of_all_has_every_source_once_and_every_specialist_equally() -> None:
    weights = {source.name: source.weight for source in all_data(config()).sources}
    assert weights == {"English": 0.75, "Russian": 0.75, "Chinese": 0.5}


def test_unlike_sources_of_one_name_are_told_apart() -> None:
    specialists = [
        {"name": name, "data": {"sources": [{"microworld": {"seed": seed}}]}} for seed, name in enumerate("ab")
    ]
    assert all_data(config(specialists=specialists)).source_names == ("microworld", "b-microworld")


def test_a_specialist_is_a_run_with_what_it_has_of_its_own() -> None:
    given = tree(seed=4, resources={"num_workers": 2}, cache_dir="/cache")
    given["specialists"][1] |= {"seed": 9, "plan": {"grow": {"blocks": 1}, "train": {"steps": 5}}, "resources": {}}
    made = build_config(SpecialistsConfig, given)
    first, second = (made.run_config(specialist) for specialist in made.specialists)
    assert isinstance(first, RunConfig) and (first.name, second.name) == ("ru", "zh")
    assert (first.seed, second.seed) == (4, 9)
    assert [stage.num_blocks for stage in resolve(first.plan)] == [1, 3]
    assert [stage.num_blocks for stage in resolve(second.plan)] == [1]
    assert (first.resources.num_workers, second.resources.num_workers) == (2, 1)
    assert first.cache_dir == second.cache_dir == "/cache" and first.data.source_names == ("English", "Russian")


def test_the_control_trains_every_block_at_once_on_all_data() -> None:
    given = config(plan={**tree()["plan"], "budget": {"active_parameters": 5}})
    length = given.model.context_length
    shape = tiny.config(3, max_position_embeddings=length)
    per_step = given.training.global_batch_size * length * monolithic_flops(shape, length).total
    control = given.control_config(shape, 7.4 * per_step, num_blocks=3, num_blocks_before=0)
    (stage,) = resolve(control.plan)
    assert (stage.add, stage.num_active, stage.train.steps, stage.train.tokens) == (3, 3, 7, None)
    assert stage.train.learning_rate == 2e-3
    assert control.plan.budget.active_parameters is None and len(control.data.sources) == 3
    assert build_config(RunConfig, control.model_dump(mode="json")) == control


def test_a_trunk_is_a_run_on_all_data_that_every_specialist_continues() -> None:
    plan = {"grow": {"blocks": 2}, "train": {"steps": 7}}
    made = config(
        trunk={"plan": plan, "resources": {"num_workers": 4}},
        plan={"stages": [{"add": 0, "active": 1}], "train": {"steps": 5}},
    )
    trunk = made.trunk_config()
    assert (trunk.name, trunk.resources.num_workers, trunk.parent) == ("trunk", 4, None)
    assert trunk.data == all_data(made) and [stage.num_blocks for stage in resolve(trunk.plan)] == [1, 2]
    member = made.run_config(made.specialists[0], trunk="/runs/x/trunk")
    assert member.parent == "/runs/x/trunk" and member.plan == made.plan
    assert made.shared_config().plan == trunk.plan, "the specialists' plan cannot begin with nothing"


def test_the_control_of_branches_begins_with_nothing() -> None:
    """It trains as the trunk does, or as the branches do where the trunk is there already."""
    branches = {"stages": [{"add": 0, "active": 1}], "train": {"steps": 5, "learning_rate": 1e-4}}
    grown = config(trunk={"plan": {"grow": {"blocks": 2}, "train": {"steps": 7, "learning_rate": 5e-3}}}, plan=branches)
    for given, learning_rate in ((grown, 5e-3), (config(trunk={"run": "runs/a"}, plan=branches), 1e-4)):
        shape = tiny.config(3, max_position_embeddings=given.model.context_length)
        control = given.control_config(shape, 1e12, num_blocks=3, num_blocks_before=0)
        (stage,) = resolve(control.plan)
        assert (control.parent, stage.add, stage.num_active, stage.train.learning_rate) == (None, 3, 3, learning_rate)


def test_what_may_change_on_resume_is_not_decisive() -> None:
    given = tree(retries=5, resources={"num_workers": 2}, training={"global_batch_size": 32, "zero_stage": 3})
    given["specialists"][0]["resources"] = {"num_workers": 4}
    assert build_config(SpecialistsConfig, given).identity_fields() == config().identity_fields()
    assert config(control=True).identity_fields() != config().identity_fields()
    trunks = [{"plan": tree()["plan"], "resources": resources} for resources in (None, {"num_workers": 2})]
    first, second = (config(trunk=trunk).identity_fields() for trunk in trunks)
    assert first == second and first != config().identity_fields()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"specialists": []}, "specialists"),
        ({"specialists": [tree()["specialists"][0]] * 2}, "a name of its own"),
        ({"specialists": [{**tree()["specialists"][0], "name": "control"}]}, "none may be called control or trunk"),
        ({"specialists": [{**tree()["specialists"][0], "name": "trunk"}]}, "none may be called control or trunk"),
        ({"trunk": {}}, "trunk has neither plan nor run; give trunk.plan to grow one, or trunk.run to take a run"),
        (
            {"trunk": {"run": "runs/a", "plan": tree()["plan"]}},
            "trunk.plan and trunk.run=runs/a are both given; remove",
        ),
        ({"trunk": {"run": "runs/a", "resources": {}}}, "trunk.run=runs/a is not trained; remove trunk.resources"),
        ({"trunk": {"run": "runs/a"}, "parent": "runs/b"}, "trunk.run=runs/a and parent=runs/b both say"),
        ({"trunk": {"plan": tree()["plan"], "resources": {"num_workers": 3}}}, "does not split over 3 workers"),
        ({"trunk": {"plan": {"grow": {"blocks": 1}}}}, "a stage needs an upper limit"),
        ({"resources": {"num_workers": 3}}, "does not split over 3 workers"),
        ({"merge": {"rule": "median"}}, "median is not a combination rule; use mean"),
        ({"tune_heads": {}}, "tune_heads.tokens: required key is missing"),
        ({"retrys": 1}, "Did you mean 'retries'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert sentence in str(caught.value)


def test_unequal_held_out_shares_are_refused() -> None:
    given = tree()
    given["specialists"][0]["data"]["validation_fraction"] = 0.1
    with pytest.raises(ConfigError, match="must hold out the same"):
        build_config(SpecialistsConfig, given)


def test_overrides_reach_into_specialists() -> None:
    made = load_specialists_config("specialists-text", ["specialists.2.data.sources.1.files=de.txt", "seed=3"])
    assert made.specialists[2].data.sources[1].files == "de.txt" and made.seed == 3
