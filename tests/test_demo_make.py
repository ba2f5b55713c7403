"""Demonstrations are what was played, repeat themselves, and survive a recording cut short."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import start_child, wait_for_line
from demo_doubles import (
    HOME,
    Idler,
    Stroller,
    Walker,
    assert_replayed,
    contents,
    home_job,
    register_home,
    same_world,
)

from reverie.agents.demos.make import ATTEMPTS, Job, RecordingStopped, Tally, observed, record
from reverie.agents.demos.store import DemoError, open_dataset
from reverie.agents.demos.workers import record_all
from reverie.envs.settings import EnvSettings
from reverie.envs.single import episode_seed
from reverie.envs.specs import EnvError

LANDER = EnvSettings("gym/LunarLander-v3", render="quick", time_limit=40)
LQR = EnvSettings("dmc/lqr_lqr_2_1", action_repeat=2, render="quick", time_limit=30)
LARGE_LQR = EnvSettings("dmc/lqr_lqr_6_2", action_repeat=2, render="quick", time_limit=30)


@pytest.fixture(autouse=True)
def home() -> None:
    register_home()


@pytest.mark.parametrize("settings", [LQR, LANDER], ids=lambda settings: settings.task)
def test_an_episode_is_what_its_seed_and_its_actions_lead_to(
    settings: EnvSettings, tmp_path: Path
) -> None:
    tally = record(Job(settings, tmp_path, episodes=3, seed=7, shard_episodes=2))
    assert (tally.episodes, tally.played, tally.solved) == (3, 3, None)
    dataset = open_dataset(tmp_path)
    assert [ref.seed for ref in dataset.episodes] == [
        episode_seed(7, "demo", 0, k) for k in range(3)
    ]
    env = same_world(observed(settings))
    for number, ref in enumerate(dataset.episodes):
        assert not assert_replayed(dataset.episode(number), env, ref.seed, spec=env.spec)
    env.close()
    action = dataset.episode(0)["action"]
    if env.spec.discrete:
        assert set(np.unique(action)) == {0.0, 1.0} and (action.sum(1) == 1).all()
    assert tally.frames == sum(ref.length for ref in dataset.episodes)


def test_unsolved_episodes_are_dropped_and_counted(tmp_path: Path) -> None:
    tally = record(home_job(tmp_path))
    dataset = open_dataset(tmp_path)
    attempts = [solved_at(0, k) for k in range(tally.played)]
    kept = [k for k, solved in enumerate(attempts) if solved]
    assert tally.solved == len(kept) == tally.episodes == 6 < tally.played and attempts[-1]
    assert [ref.seed for ref in dataset.episodes] == [episode_seed(0, "demo", 0, k) for k in kept]
    assert all(ref.success for ref in dataset.episodes)
    env = same_world(EnvSettings(HOME))
    for number, ref in enumerate(dataset.episodes):
        assert assert_replayed(dataset.episode(number), env, ref.seed, spec=env.spec)
    told = [shard.header["settings"] for shard in dataset.shards]
    assert sum(settings["attempts"] for settings in told) == tally.played
    assert sum(settings["failures"] for settings in told) == tally.played - 6


def solved_at(seed: int, attempt: int) -> bool:
    """Whether the feet are free in an attempt."""
    env = same_world(EnvSettings(HOME))
    return not env.reset(episode_seed(seed, "demo", 0, attempt))["vector"][2]


def test_unsolved_episodes_can_be_kept(tmp_path: Path) -> None:
    tally = record(home_job(tmp_path, keep_failures=True))
    dataset = open_dataset(tmp_path)
    solved = [solved_at(0, k) for k in range(6)]
    assert [ref.success for ref in dataset.episodes] == solved
    assert (tally.played, tally.solved) == (6, sum(solved)) and not all(solved)


def test_a_player_without_skill_is_given_up_in_words(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=rf"0 of {ATTEMPTS} \(0%\).*--keep-failures") as caught:
        record(home_job(tmp_path, player=Stroller))
    assert HOME in str(caught.value) and "walker 1" in str(caught.value)
    assert contents(tmp_path) == {}
    assert record(home_job(tmp_path, player=Stroller, keep_failures=True)).solved == 0


def test_the_same_seed_gives_the_same_bytes_whatever_the_shards(tmp_path: Path) -> None:
    for name in ("one", "two"):
        record(home_job(tmp_path / name))
    record(home_job(tmp_path / "long", shard_episodes=50))
    record(home_job(tmp_path / "other", seed=1))
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two") and len(first) > 6
    short, long = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "long")
    assert len(short.shards) == 3 and len(long.shards) == 1
    for number in range(6):
        left, right = short.episode(number), long.episode(number)
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[key], right[key]) for key in left)
    other = open_dataset(tmp_path / "other")
    assert not {ref.seed for ref in other.episodes} & {ref.seed for ref in short.episodes}


KILLED = """
import sys, time
from pathlib import Path
from demo_doubles import home_job, register_home
from reverie.agents.demos.make import record

def report(tally):
    if tally.episodes == 3:
        print("in the second shard", flush=True)
        time.sleep(60)

register_home()
record(home_job(Path(sys.argv[1])), report=report)
"""


def test_fault_01_a_killed_recording_continues_to_the_same_bytes(tmp_path: Path) -> None:
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    child = start_child(KILLED, folder)
    wait_for_line(child, "in the second shard")
    child.kill()
    child.communicate()
    assert len(open_dataset(folder).episodes) == 2, "half a shard is no demonstration"
    first = folder / "home-000" / "header.json"
    before = first.stat()
    tally = record(home_job(folder))
    assert (tally.found, tally.episodes) == (2, 6)
    assert first.stat() == before, "a finished shard is not made again"
    counts = record(home_job(whole))
    assert contents(folder) == contents(whole)
    assert (tally.played, tally.solved, tally.frames) == (counts.played, 6, counts.frames)
    again = record(home_job(folder), stop=lambda: True)  # nothing is left to be stopped
    assert (again.found, again.episodes, again.played) == (6, 6, tally.played)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: it has 0, asked for 1"),
        ({"keep_failures": True}, "keep_failures: it has False, asked for True"),
        ({"settings": EnvSettings(HOME, time_limit=9)}, "time_limit: it has None, asked for 9"),
        ({"player": functools.partial(Walker, name="walker 2")}, "generator: it has 'walker 1'"),
    ],
)
def test_shards_of_other_settings_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    record(home_job(tmp_path, episodes=2))
    before = contents(tmp_path)
    with pytest.raises(DemoError, match="choose another --out") as caught:
        record(home_job(tmp_path, **changes))
    assert words in str(caught.value) and "home-000" in str(caught.value)
    assert contents(tmp_path) == before


def test_what_does_not_show_is_no_difference(tmp_path: Path) -> None:
    record(home_job(tmp_path, episodes=2))
    other = EnvSettings(HOME, image_size=32, render="reference")
    assert record(home_job(tmp_path, episodes=2, settings=other)).found == 2


def test_more_episodes_continue_where_fewer_ended(tmp_path: Path) -> None:
    record(home_job(tmp_path / "grown", episodes=3))
    tally = record(home_job(tmp_path / "grown"))
    assert (tally.found, tally.episodes) == (3, 6)
    record(home_job(tmp_path / "whole"))
    grown, whole = open_dataset(tmp_path / "grown"), open_dataset(tmp_path / "whole")
    assert [ref.seed for ref in grown.episodes] == [ref.seed for ref in whole.episodes]


def test_a_missing_shard_is_made_again_but_never_mixed(tmp_path: Path) -> None:
    record(home_job(tmp_path))
    before = contents(tmp_path)
    for path in (tmp_path / "home-001").iterdir():
        path.unlink()
    (tmp_path / "home-001").rmdir()
    with pytest.raises(DemoError, match="first_attempt"):
        record(home_job(tmp_path, shard_episodes=1))
    for path in (tmp_path / "home-001").iterdir():
        path.unlink()
    (tmp_path / "home-001").rmdir()
    record(home_job(tmp_path))
    assert contents(tmp_path) == before


def test_a_request_to_stop_leaves_whole_shards_only(tmp_path: Path) -> None:
    steps = itertools.count()
    with pytest.raises(RecordingStopped):
        record(home_job(tmp_path), stop=lambda: next(steps) > 20)
    found = {path.name for path in tmp_path.iterdir()}
    assert found <= {"home-000", "home-001", "home-002"} and len(found) < 3
    record(home_job(tmp_path))
    record(home_job(tmp_path / "whole"))
    assert (
        contents(tmp_path / "whole").items()
        <= {name.removeprefix("whole/"): data for name, data in contents(tmp_path).items()}.items()
    )


def test_a_world_without_end_asks_for_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reverie.agents.demos.make.ENDLESS", 5)
    with pytest.raises(DemoError, match="--time-limit"):
        record(home_job(tmp_path))


def test_fault_12_a_world_that_fails_is_no_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, action: Any) -> Any:
        raise ValueError("a leg is off")

    monkeypatch.setattr("demo_doubles.Home.step", broken)
    with pytest.raises(EnvError, match="attempt 0"):
        record(home_job(tmp_path))
    assert contents(tmp_path) == {}


# several processes


def two_jobs(folder: Path) -> list[Job]:
    return [Job(settings, folder, episodes=2) for settings in (LQR, LARGE_LQR)]


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    alone = record_all(two_jobs(tmp_path / "one"))
    tallies = record_all(two_jobs(tmp_path / "two"), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [tally.task for tally in tallies] == [LQR.task, LARGE_LQR.task]
    assert [tally.frames for tally in tallies] == [tally.frames for tally in alone] == [60, 60]


@pytest.mark.slow
def test_fault_14_an_error_in_a_process_is_told_and_ends_the_others(tmp_path: Path) -> None:
    blind = Job(EnvSettings("dmc/walker_walk", action_repeat=2, time_limit=5), tmp_path)
    endless = Job(EnvSettings("dmc/lqr_lqr_2_1", action_repeat=2), tmp_path, episodes=10_000)
    with pytest.raises(EnvError, match="has no expert"):
        record_all([endless, blind], workers=2)
    assert multiprocessing.active_children() == []
    assert contents(tmp_path) == {}


@pytest.mark.slow
def test_a_request_to_stop_reaches_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "kill", killed.append)
    seen: list[Tally] = []
    # minutes in one episode: nothing is reported before
    long = EnvSettings("dmc/humanoid_CMU_walk", action_repeat=10, time_limit=99_999)
    jobs = [Job(LQR, tmp_path, episodes=10_000), Job(long, tmp_path, player=Idler)]
    with pytest.raises(RecordingStopped):
        record_all(jobs, workers=2, report=seen.append, stop=lambda: len(seen) > 3)
    assert multiprocessing.active_children() == [] and not killed
    assert list(tmp_path.iterdir()) == []
