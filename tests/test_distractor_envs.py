"""Distracted tasks as environments: what is kept, the clocks, processes, replay, the protocol."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from test_envs_contract import random_actions

from reverie.envs.distractors import build as build_module
from reverie.envs.distractors import natural
from reverie.envs.distractors.build import clips, distraction, mark
from reverie.envs.distractors.masks import segmentation_mask, surfaces
from reverie.envs.distractors.sources import ClipSource, make_source
from reverie.envs.dmc import DmControl
from reverie.envs.process_vec import ProcessVec
from reverie.envs.registry import make_vec
from reverie.envs.settings import EnvSettings
from reverie.envs.single import Obs
from reverie.envs.specs import Array, EnvError
from reverie.envs.vector import InlineVec

SIZE = 32
TASK = "cartpole_swingup"


def build(task: str, own: dict[str, Any]) -> DmControl:
    """Build a quick task that shows pictures and its state."""
    settings = EnvSettings(f"dmc/{task}", image_size=SIZE, observe="both", **own)
    found = None if settings.distractor == "none" else distraction(settings, clips(settings))
    return DmControl(task, image_size=SIZE, render="quick", observe="both", distraction=found)


def play(env: DmControl, seed: int, steps: int) -> tuple[list[Obs], list[float], list[Array]]:
    """Play an episode's first steps; observations, rewards and physics states."""
    observed, rewards, states = [env.reset(seed)], [], [env._env.physics.get_state().copy()]
    for action in random_actions(env.spec, 1, steps):
        arrival = env.step(action[0])
        observed.append(arrival.obs)
        rewards.append(arrival.reward)
        states.append(env._env.physics.get_state().copy())
    return observed, rewards, states


@pytest.mark.dmc
@pytest.mark.parametrize("name", [*natural.PRESETS, "dcs-hard-dynamic", "dmcgb-video_hard"])
def test_only_the_pictures_differ_from_the_plain_task(name: str) -> None:
    plain, distracted = build(TASK, {}), build(TASK, {"distractor": name})
    for seed in (3, 4):
        before, after = play(plain, seed, 5), play(distracted, seed, 5)
        assert before[1] == after[1]
        assert all(map(np.array_equal, before[2], after[2]))
        for scene, seen in zip(before[0], after[0], strict=True):
            assert np.array_equal(scene["vector"], seen["vector"])
            assert not np.array_equal(scene["image"], seen["image"])
            assert seen["image"].shape == (SIZE, SIZE, 3) and seen["image"].dtype == np.uint8
    plain.close()
    distracted.close()


@pytest.mark.dmc
@pytest.mark.parametrize("name", natural.PRESETS)
def test_an_episode_follows_from_its_seed_whatever_was_played_before(name: str) -> None:
    env = build(TASK, {"distractor": name})
    first = play(env, 3, 5)[0]
    other = play(env, 4, 7)[0]
    again = play(env, 3, 5)[0]
    env.close()
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one["image"], two["image"])
    assert not np.array_equal(first[0]["image"], other[0]["image"])


@pytest.mark.dmc
@pytest.mark.parametrize(
    ("name", "pace"), [("dreamerpro", 1), ("dbc", 1), ("tpc", 2), ("repo", 2), ("mudreamer", 2)]
)
def test_the_film_moves_by_its_clock_at_an_action_repeat_of_two(name: str, pace: int) -> None:
    env = build(TASK, {"distractor": name})
    assert env.spec.action_repeat == 2 and isinstance(env._distraction, natural.Natural)
    player = env._distraction.player
    env.reset(0)
    start = player.position
    assert start == 0 or name != "mudreamer"
    assert player.clip is not None and start + 5 * pace < player.clip.length
    for count, action in enumerate(random_actions(env.spec, 1, 5), start=1):
        env.step(action[0])
        assert player.position == start + count * pace
    env.close()


def simulator_steps(env: DmControl) -> int:
    return round(env._env.physics.time() / env._env.control_timestep())


@pytest.mark.dmc
def test_the_simulators_clock_counts_the_steps_that_were_made() -> None:
    own = EnvSettings(f"dmc/{TASK}", SIZE, distractor="mudreamer")
    env = DmControl(
        TASK,
        image_size=SIZE,
        action_repeat=3,
        render="quick",
        distraction=distraction(own, clips(own)),
    )
    assert isinstance(env._distraction, natural.Natural)
    env.reset(0)
    arrival = env.step(np.zeros(1, np.float32))
    while not arrival.is_last:
        arrival = env.step(np.zeros(1, np.float32))
    made = simulator_steps(env)
    assert made % 3 != 0, "the last repeat was cut short"
    # 20 seconds of 30 frames each
    assert env._distraction.player.position == made % 600
    env.close()


@pytest.mark.dmc
@pytest.mark.parametrize("task", ["reacher_easy", "walker_walk"])
def test_segmentation_keeps_bodies_in_the_reference_picture_too(task: str) -> None:
    own = EnvSettings(f"dmc/{task}", SIZE, distractor="dreamerpro", distractor_mask="exact")
    plain = DmControl(task, image_size=SIZE)
    distracted = DmControl(task, image_size=SIZE, distraction=distraction(own, clips(own)))
    scene, seen = (env.reset(1)["image"] for env in (plain, distracted))
    segmented = plain._camera.render(segmentation=True)
    background = surfaces(plain._env.physics.model, floor=True)
    cut = segmentation_mask(segmented, background)
    assert 0.5 < cut.mean() < 1.0
    assert np.array_equal(seen[~cut], scene[~cut])
    assert isinstance(distracted._distraction, natural.Natural)
    assert np.array_equal(seen[cut], distracted._distraction.player.frame()[cut])
    plain.close()
    distracted.close()


def rows(vec: Any, steps: int) -> list[Array]:
    found = [vec.reset().obs["image"]]
    found += [vec.step(a).obs["image"] for a in random_actions(vec.spec, vec.num_envs, steps)]
    vec.close()
    return found


@pytest.mark.dmc
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpc", "dbc"])
def test_one_process_one_worker_and_two_show_the_same_films(name: str) -> None:
    ctor = functools.partial(build, TASK, {"distractor": name})
    alone = rows(InlineVec(ctor, 2, seed=5), 6)
    assert not np.array_equal(alone[0][0], alone[0][1])
    for workers in (1, 2):
        spread = rows(ProcessVec(ctor, 2, seed=5, num_workers=workers), 6)
        assert all(map(np.array_equal, alone, spread)), workers


@pytest.mark.dmc
@pytest.mark.parametrize("name", ["tpc", "dbc", "mudreamer"])
def test_a_replayed_episode_goes_on_with_the_same_pictures(name: str) -> None:
    make = functools.partial(
        make_vec,
        f"dmc/{TASK}",
        1,
        seed=2,
        image_size=SIZE,
        render="quick",
        time_limit=4,
        distractor=name,
    )
    played, resumed = make(), make()
    played.reset()
    actions = random_actions(played.spec, 1, 9)
    seen = [played.step(action) for action in actions]
    assert played.episodes[0] == 1
    # rows 0 to 3 end episode 0, row 4 begins episode 1
    back = resumed.restore([1], [actions[5:7, 0]])
    assert np.array_equal(back.obs["image"], seen[6].obs["image"])
    for action, row in zip(actions[7:], seen[7:], strict=True):
        assert np.array_equal(resumed.step(action).obs["image"], row.obs["image"])
    played.close()
    resumed.close()


def test_every_environment_opens_its_clips_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(text: str, *, size: int) -> ClipSource:
        opened.append(text)
        return make_source(text, size=size)

    monkeypatch.setattr(build_module, "make_source", counted)
    make_vec("toy/dot", 2, seed=0, image_size=SIZE, distractor="tpc").close()
    assert len(opened) == 1 + 2, "one look before any environment is built"


# what results are reported with


def marked(**own: Any) -> str:
    settings = EnvSettings("dmc/walker_run", **own)
    return mark(settings, clips(settings))


def test_results_say_what_distracted_and_which_clips_were_really_shown() -> None:
    test: dict[str, Any] = {"split": "test"}
    plain = "source=procedural,mask=blue"
    assert marked(distractor="natural", **test) == f"distractor=dreamerpro,{plain},split=test"
    assert marked(distractor="repo", **test) == f"distractor=repo,{plain},split=train"
    assert marked(distractor="tpc") == f"distractor=tpc,{plain},split=train"
    exact = marked(distractor="tpc", distractor_mask="exact", distractor_source="noise")
    assert exact == "distractor=tpc,source=noise,mask=exact,split=train"
    assert marked(distractor="subtle", **test) == "distractor=subtle"


@pytest.mark.dmc
def test_the_spec_of_a_distracted_task_names_it() -> None:
    own: dict[str, Any] = {"render": "quick", "image_size": SIZE, "split": "test"}
    vec = make_vec(f"dmc/{TASK}", 1, seed=0, distractor="dreamerpro", **own)
    wanted = "render=quick,distractor=dreamerpro,source=procedural,mask=blue,split=test"
    assert vec.spec.protocol == wanted
    vec.close()


@pytest.mark.dmc
def test_clips_of_another_size_are_refused() -> None:
    film = natural.PRESETS["tpc"].build(make_source("noise", size=SIZE + 8), "train", "preset")
    with pytest.raises(EnvError, match="Expected clips of the pictures' 32 pixels, found 40"):
        DmControl(TASK, image_size=SIZE, render="quick", distraction=film)
