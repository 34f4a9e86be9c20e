import dataclasses

import pytest

from apt_bench.core.errors import UserError
from apt_bench.suites import EpisodeSpec, load_suite
from apt_bench.suites.probes import PROBES, SWAPPED_TASK, expand


@pytest.fixture(scope="module")
def specs() -> list[EpisodeSpec]:
    return load_suite("libero_pro").select(cells=["spatial_task", "goal_pos"], episodes=2)


def test_scene_and_goal_stay_only_the_sentence_changes(specs: list[EpisodeSpec]) -> None:
    probed = expand(specs, list(PROBES), specs)
    assert len({s.key for s in probed}) == len(probed)
    own = {(s.key.cell, s.key.task, s.key.init): s for s in specs}
    for spec in probed[len(specs) :]:
        base = own[spec.key.cell, spec.key.task, spec.key.init]
        assert (spec.prompt == base.prompt) == (spec.key.prompt == "repeat")
        assert (spec.args, spec.env_seed, spec.group) == (base.args, base.env_seed, base.group)
        assert spec.noise_key == base.noise_key
        assert spec.prompt_source == f"probe:{spec.key.prompt}"


def test_swapped_is_another_task_of_the_same_scene(specs: list[EpisodeSpec]) -> None:
    prompts = {(s.key.cell, s.key.task): s.prompt for s in specs}
    swapped = [s for s in expand(specs, ["swapped"], specs) if s.key.prompt == "swapped"]
    assert len(swapped) == len(specs)
    for spec in swapped:
        assert spec.prompts[SWAPPED_TASK] != spec.key.task
        assert spec.prompt == prompts[spec.key.cell, spec.prompts[SWAPPED_TASK]]


def test_swapped_is_another_task_also_where_each_initial_state_has_its_sentence() -> None:
    specs = load_suite("rigid_pick_place").select(["so"], episodes=3)
    assert len({s.key.task for s in specs}) > 1
    swapped = [s for s in expand(specs, ["swapped"], specs) if s.key.prompt == "swapped"]
    assert [s.key.task for s in swapped if s.prompts[SWAPPED_TASK] == s.key.task] == []


@pytest.mark.parametrize(("suite", "cell"), [("libero_compose", "coaching"), ("composite", "coaching_seen")])
def test_a_probe_changes_both_sentences_of_a_coached_cell(suite: str, cell: str) -> None:
    specs = load_suite(suite).select([cell], episodes=1)[:2]
    own = specs[0].prompts["second"]
    second = {s.key.prompt: s.prompts["second"] for s in expand(specs[:1], list(PROBES), specs)}
    assert second["null"] == ""
    assert second["default"] == second["repeat"] == own
    assert own not in (second["paraphrase"], second.get("swapped"))
    if "swapped" in second:
        assert second["swapped"] == specs[1].prompts["second"]


def test_swapped_needs_another_sentence(specs: list[EpisodeSpec]) -> None:
    one = [dataclasses.replace(s, prompt="do it") for s in specs]
    assert expand(one, ["swapped"], one) == one


def test_stale_only_where_the_sentences_differ(specs: list[EpisodeSpec]) -> None:
    stale = [s for s in expand(specs, ["stale"], specs) if s.key.prompt == "stale"]
    assert {s.key.cell for s in stale} == {"spatial_task"}
    assert all(s.prompt == s.prompts["file"] for s in stale)


def test_wording() -> None:
    spec = load_suite("libero_pro").select(cells=["spatial_pos"], tasks=["0"], episodes=1)[0]
    texts = {s.key.prompt: s.prompt for s in expand([spec], ["null", "paraphrase", "punctuation"], [spec])}
    assert texts["null"] == ""
    assert texts["punctuation"] == spec.prompt.capitalize() + "."
    assert texts["paraphrase"].startswith("grab the black bowl")
    assert "plate" in texts["paraphrase"]


def test_every_probed_episode_is_repeated_once(specs: list[EpisodeSpec]) -> None:
    def repeated(*probes: str) -> set[tuple[str, str, int]]:
        again = [s.key for s in expand(specs, probes, specs) if s.key.prompt == "repeat"]
        assert len({*again}) == len(again)
        return {(k.cell, k.task, k.init) for k in again}

    every = {(s.key.cell, s.key.task, s.key.init) for s in specs}
    assert repeated() == set()
    assert repeated("null") == repeated("null", "paraphrase") == repeated("repeat") == every
    assert {cell for cell, *_ in repeated("stale")} == {"spatial_task"}


def test_a_probe_that_is_named_twice_runs_once(specs: list[EpisodeSpec]) -> None:
    assert expand(specs, ["null", "null"], specs) == expand(specs, ["null"], specs)


def test_unknown_probe() -> None:
    with pytest.raises(UserError, match="Did you mean 'swapped'"):
        expand([], ["swaped"], [])
