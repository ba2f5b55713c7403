"""A user's own environment trains through one call, or is refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import own_envs
import pytest
from children import environment

from reverie.agents import ConfigError, run
from reverie.benchmarks import cli
from reverie.envs import EnvError, make_env, register

BUDGET: dict[str, Any] = {"configs": ["debug"], "train": {"steps": 160, "eval_every": 0}}


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_own_class_trains_and_is_evaluated_in_several_slots(tmp_path: Path) -> None:
    register("mine/reach", own_envs.Reach)
    place = tmp_path / "run"
    assert run("mudreamer", task="mine/reach", size="nano", run=str(place), **BUDGET) == 0
    metrics, episodes = records(place / "metrics.jsonl"), records(place / "episodes.jsonl")
    assert any("loss/reward" in row for row in metrics) and np.isfinite(metrics[-1]["eval/mean"])
    scored = [row for row in episodes if row["purpose"] == "eval"]
    assert {row["slot"] for row in scored} == {0, 1} and all(0 < r["length"] <= 10 for r in scored)
    assert any(row["score"] != scored[0]["score"] for row in scored), "slots have their own seeds"
    cfg = tomllib.loads((place / "config.toml").read_text())
    assert (cfg["task"], cfg["agent"], cfg["train"]["steps"]) == ("mine/reach", "mudreamer", 160)
    before = (place / "metrics.jsonl").read_bytes()
    assert run("mudreamer", task="mine/reach", size="nano", run=str(place), **BUDGET) == 0
    assert (place / "metrics.jsonl").read_bytes() == before, "the same call finds its work done"


@pytest.mark.parametrize("name", ["Wide", "Gray", "Mixed", "Tiny"])
def test_every_kind_of_observation_trains(name: str, tmp_path: Path) -> None:
    task, place = f"mine/{name.lower()}", tmp_path / "run"
    register(task, getattr(own_envs, name))
    env = make_env(task, image_size=16)
    shapes = {"Wide": (16, 16, 3), "Gray": (16, 16, 1), "Mixed": (16, 16, 2), "Tiny": None}
    assert env.spec.image_shape == shapes[name]
    assert env.spec.vector_size == {"Mixed": 4, "Tiny": 1}.get(name, 0)
    agent = "mudreamer" if name == "Tiny" else "dreamerv3"  # the baseline's decoder as well
    settings = {**BUDGET, "env": {"workers": "inline"}}
    assert run(agent, task=task, size="nano", run=str(place), **settings) == 0
    assert records(place / "metrics.jsonl")[-1]["eval/mean"] == own_envs.LENGTH


@pytest.mark.slow
def test_an_installed_environment_trains_from_the_command_line(tmp_path: Path) -> None:
    place = tmp_path / "run"
    words = ["train", "mudreamer", "--task", "gym/CartPole-v1", "--size", "nano"]
    words += ["--config", "debug", "--run", str(place)]
    assert cli.main(words) == 0
    assert records(place / "metrics.jsonl")[-1]["eval/mean"] > 1
    assert cli.main(["eval", str(place), "--episodes", "2"]) == 0


def test_the_batched_world_trains_from_the_command_line(tmp_path: Path) -> None:
    words = ["train", "mudreamer", "--task", "torch/dots", "--config", "debug"]
    assert cli.main([*words, "--run", str(tmp_path / "run"), "--train.steps", "128"]) == 0
    assert "eval/mean" in records(tmp_path / "run" / "metrics.jsonl")[-1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FloatPicture", r"float32 \(32, 32, 3\).*picture as uint8.*TransformObservation"),
        ("ChannelsFirst", r"channels first.*np\.moveaxis\(image, 0, -1\)"),
        ("TwoPictures", r"at most one image, found \['left', 'right'\].*ObservationWrapper"),
        ("Unbounded", r"bounded Box actions.*ActionWrapper"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_its_fix(
    name: str, said: str, tmp_path: Path
) -> None:
    register(f"mine/{name}", getattr(own_envs, name))
    with pytest.raises(EnvError, match=said):
        run(task=f"mine/{name}", run=str(tmp_path / "run"), **BUDGET)
    assert not (tmp_path / "run").exists(), "refused before a run directory is made"


def test_a_decoder_without_pictures_is_refused_with_its_fix(tmp_path: Path) -> None:
    register("mine/tiny", own_envs.Tiny)
    settings = {**BUDGET, "env": {"workers": "inline"}}
    with pytest.raises(ConfigError, match="mine/tiny has none; use agent mudreamer"):
        run("dreamerv3", task="mine/tiny", run=str(tmp_path / "run"), **settings)


def test_small_observations_need_little_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default capacity holds 12 GB of pictures, but few bytes of numbers."""
    register("mine/tiny", own_envs.Tiny)
    register("mine/wide", own_envs.Wide)
    monkeypatch.setattr("reverie.agents.budget.available_memory", lambda: 2**30)
    monkeypatch.setattr("reverie.agents.trainer.train", lambda cfg, fresh: 0)
    assert run(task="mine/tiny") == 0
    with pytest.raises(ConfigError, match=r"replay\.capacity"):
        run(task="mine/wide")


SCRIPT = """
import sys
import gymnasium, numpy as np
from reverie.agents import run
from reverie.envs import register

class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {{}}

    def step(self, action):
        self.time += 1
        return np.zeros(2, np.float32), 1.0, False, self.time == 10, {{}}

register("mine/reach", Reach)
{guard}
    settings = {{"steps": 160, "eval_every": 0}}
    sys.exit(run(task="mine/reach", configs=["debug"], train=settings, run=sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("guard", ['if __name__ == "__main__":', "if True:"])
def test_a_script_works_and_a_missing_main_guard_is_named(guard: str, tmp_path: Path) -> None:
    script = tmp_path / "mein Skript.py"
    script.write_text(SCRIPT.format(guard=guard))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if guard == "if True:":
        assert done.returncode == 1 and 'under `if __name__ == "__main__":`' in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert records(tmp_path / "run" / "metrics.jsonl")[-1]["eval/mean"] == 10
