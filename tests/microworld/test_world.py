from __future__ import annotations

import pytest

from growtx.microworld.config import LANGUAGES, MicroworldConfig
from growtx.microworld.world import World


@pytest.mark.parametrize("num_people", [40, 12_000])  # 12,000 need middle names
def test_nobody_shares_a_name_in_any_language(num_people: int) -> None:
    world = World(MicroworldConfig(num_people=num_people))
    everybody = range(0, world.strangers.first + world.strangers.size, 1 if num_people < 100 else 3)
    for language in LANGUAGES:
        assert len({str(world.name(language, number)) for number in everybody}) == len(everybody)


def test_middle_names_are_of_the_same_gender_and_not_the_first_again() -> None:
    world = World(MicroworldConfig(num_people=12_000))
    for number in range(500):
        given, middle, _ = world.person(number).name
        assert middle is not None
        assert (given < 60) == (middle < 60)
        assert given != middle


def test_groups_are_disjoint_and_cover_everybody() -> None:
    world = World(MicroworldConfig(num_people=100, held_out_people=0.3))
    assert (world.known.size, world.held_out.size) == (70, 30)
    groups = [world.group_of(number) for number in range(200)]
    assert groups == [world.known] * 70 + [world.held_out] * 30 + [world.strangers] * 100


def test_mentors_are_older_and_of_the_same_group() -> None:
    world = World(MicroworldConfig(num_people=200))
    mentored = [person for person in map(world.person, range(400)) if person.mentor is not None]
    assert len(mentored) > 250
    for person in mentored:
        assert person.mentor is not None
        mentor = world.person(person.mentor)
        assert mentor.year <= person.year - 10
        assert world.group_of(mentor.number) == world.group_of(person.number)


def test_the_world_depends_on_its_seed_and_on_nothing_that_is_written_about_it() -> None:
    people = [
        World(MicroworldConfig(seed=5, **size)).person(7) for size in ({}, {"target_bytes": 9}, {"paraphrases": 1})
    ]
    assert people[0] == people[1] == people[2]
    assert World(MicroworldConfig(seed=6)).person(7) != people[0]
