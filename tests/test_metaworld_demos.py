"""Demonstrations of Meta-World's own experts: recorded from the command line, replayed, shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_doubles import assert_replayed, contents

from reverie.agents.demos.store import open_dataset
from reverie.benchmarks import cli
from reverie.envs import make_env
from reverie.envs.registry import TASK_SETS

pytestmark = pytest.mark.metaworld
TWO = ("metaworld/button-press", "metaworld/reach")


@pytest.mark.parametrize("observe", ["state", "both"])
def test_two_tasks_are_recorded_replayed_and_shown(
    observe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TASK_SETS, "metaworld/two", TWO)
    args = ["demos", "make", "--task", "metaworld/two", "--episodes", "2", "--observe", observe]
    assert cli.main([*args, "--image-size", "32", "--out", str(tmp_path / "d")]) == 0
    dataset = open_dataset(tmp_path / "d")
    assert set(dataset.tasks) == set(TWO) and len(dataset.episodes) == 4
    assert (dataset.spec.vector_size, dataset.spec.proprio_size, dataset.spec.fps) == (39, 4, 80.0)
    assert dataset.spec.image_shape == ((32, 32, 3) if observe == "both" else None)
    for number, ref in enumerate(dataset.episodes):
        env = make_env(ref.task, image_size=32, render="quick", observe=observe)
        assert assert_replayed(dataset.episode(number), env, ref.seed, spec=env.spec)
        env.close()
    capsys.readouterr()
    assert cli.main(["demos", "show", str(tmp_path / "d")]) == 0
    shown = capsys.readouterr().out
    assert "scripted policy" in shown and "100%" in shown


def test_tasks_side_by_side_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASK_SETS, "metaworld/two", TWO)
    args = ["demos", "make", "--task", "metaworld/two", "--episodes", "2"]
    assert cli.main([*args, "--out", str(tmp_path / "one")]) == 0
    assert cli.main([*args, "--workers", "2", "--out", str(tmp_path / "two")]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
