"""`reverie export`: the program does what the agent does, and needs nothing of this package."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from point_world import point_tree, write_points
from runs import ROOT
from small_imitator import CFG as CHUNKS
from small_imitator import agent as small_imitator
from small_imitator import statistics, with_model
from torch import Tensor

from reverie.agents import exported
from reverie.agents.configs import RunConfig
from reverie.agents.exported import Acting, Compared, ExportError, acting, check, example, export
from reverie.agents.registry import build_agent, family
from reverie.agents.resolve import resolve
from reverie.agents.runs.rundir import read_status
from reverie.agents.trainer import build_env, train
from reverie.benchmarks import cli
from reverie.benchmarks.evaluation import load_run
from reverie.envs.specs import VecEnv

Capture = pytest.CaptureFixture[str]

LEARNERS = [
    *[("mudreamer", "toy/dot"), ("mudreamer", "toy/chain"), ("dreamerv3", "toy/catch")],
    *[("spr", "toy/catch"), ("bbf", "toy/catch"), ("act-jepa", "point/a"), ("bc", "point/a")],
]


def made(agent: str, task: str, **changes: Any) -> tuple[Any, RunConfig, VecEnv]:
    """An agent with random weights that are not small, its settings and an environment."""
    tree = {"agent": agent, "task": task, "train": {"device": "cpu"}, **changes}
    if family(agent) == "act_jepa":
        tree |= {"size": "nano"}
    cfg = resolve(tree, configs=["debug"])
    env = build_env(cfg, "eval", 1)
    built: Any = build_agent(env.spec, cfg)
    rng = torch.Generator().manual_seed(1)
    for parameter in [
        *built.model.parameters(),
        *getattr(built, "behavior", built.model).parameters(),
    ]:
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    return built, cfg, env


Row = tuple[dict[str, Any], bool, Tensor, dict[str, Tensor]]


def episode(player: Any, env: VecEnv, most: int = 60) -> list[Row]:
    """(observations, is_first, greedy action [A], carry behind it) of one episode."""
    row, carry, found = env.reset(), player.initial_carry(1), []
    for _ in range(most):
        obs = {key: torch.as_tensor(value) for key, value in row.obs.items()}
        carry, action = player.act(carry, obs, torch.as_tensor(row.is_first), mode="greedy")
        found.append((row.obs, bool(row.is_first[0]), action[0], carry))
        if row.is_last[0]:
            break
        row = env.step(action.numpy())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), LEARNERS)
def test_the_program_takes_the_agents_actions_over_an_episode(name: str, task: str) -> None:
    agent, cfg, env = made(name, task)
    module = acting(agent, cfg)
    content = export(module)
    player = agent.playing(task) if family(name) == "act_jepa" else agent
    rows = episode(player, env)
    assert len(rows) > 5
    program = torch.export.load(io.BytesIO(content)).module()
    carry = list(player.initial_carry(1).values())
    for obs, is_first, action, behind in rows:
        seen = [torch.as_tensor(obs[key]) for key in module.inputs]
        *carry, found = program(*carry, *seen, torch.tensor([is_first]))
        assert torch.allclose(found[0], action, rtol=0, atol=1e-6)
        for value, expected in zip(carry, behind.values(), strict=True):
            assert torch.allclose(value, expected, rtol=0, atol=1e-6)
    assert any(len({row[3][key].numpy().tobytes() for row in rows}) > 3 for key in module.carried)
    checked = check(module, content, env, player, steps=59, seed=0)
    assert checked.episode_steps == len(rows) - 1, "no action follows the last row"
    assert checked.difference < 1e-5 and (checked.score is None) == (len(rows) == 60)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chunk", "part", "ensemble", "discrete", "image", "vae", "mlp"])
def test_plans_are_played_as_the_agent_plays_them(kind: str) -> None:
    cfg = {
        "part": dataclasses.replace(CHUNKS, execute=2),
        "ensemble": dataclasses.replace(CHUNKS, execute=1, ensemble=0.1),
        "image": with_model(inputs=("proprio", "image"), targets=("proprio",)),
        "vae": with_model(w_jepa=0.0, vae=True),
        "mlp": with_model(w_jepa=0.0, policy="mlp"),
    }.get(kind, CHUNKS)
    agent = small_imitator(cfg, discrete=kind == "discrete", statistics=statistics())
    run = dataclasses.replace(resolve({"agent": "act-jepa", "task": "point/a"}), act_jepa=cfg)
    module = acting(agent, run)
    assert module.inputs == (("image", "vector") if kind == "image" else ("vector",))
    both = exported._check_random(module, export(module), seed=3)
    assert both.steps == exported.RANDOM_STEPS > 2 * cfg.model.chunk
    assert both.difference < 1e-5


def test_one_program_serves_any_number_of_rows_and_keeps_no_gradient() -> None:
    agent, cfg, env = made("mudreamer", "toy/dot")
    env.close()
    before = [parameter.requires_grad for parameter in agent.model.parameters()]
    module = acting(agent, cfg)
    program = torch.export.load(io.BytesIO(export(module)))
    for rows in (1, 2, 7):
        out = program.module()(*example(module, rows))
        assert all(len(value) == rows and not value.requires_grad for value in out)
    assert [parameter.requires_grad for parameter in agent.model.parameters()] == before
    assert any(before)
    stored = set(program.state_dict)
    assert not any(name.startswith(("critic", "reward", "value")) for name in stored)


def test_greedy_acting_draws_nothing_and_takes_the_mode() -> None:
    agent, _, env = made("mudreamer", "toy/dot")
    row, spec = env.reset(), env.spec
    obs = {key: torch.as_tensor(value) for key, value in row.obs.items()}
    states = {name: rng.get_state() for name, rng in agent._generators.items()}
    own = torch.random.get_rng_state()
    first, action = agent.act(agent.initial_carry(1), obs, torch.tensor([True]), mode="greedy")
    again, same = agent.act(agent.initial_carry(1), obs, torch.tensor([True]), mode="greedy")
    assert torch.equal(action, same) and torch.equal(first["z"], again["z"])
    assert torch.equal(torch.random.get_rng_state(), own)
    assert torch.equal(agent._generators["update"].get_state(), states["update"])
    assert torch.equal(agent._generators["train"].get_state(), states["train"])
    feature = torch.cat([first["h"], first["z"]], -1)
    params = agent.behavior.policy(feature, torch.zeros(1, spec.action_size))[1]
    assert torch.equal(action, params[..., : spec.action_size].clamp(-1, 1))
    sampled = {tuple(agent.act(first, obs, torch.tensor([False]))[1][0].tolist()) for _ in range(4)}
    assert len(sampled) == 4, "training goes on sampling"
    env.close()


@pytest.mark.parametrize("wrong", [0.01, torch.nan])
def test_a_program_that_differs_is_refused(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, cfg, env = made("spr", "toy/catch")

    def step(self: Acting, carry: Any, obs: Any, is_first: Tensor) -> Any:
        carry, action = self.player.act(carry, obs, is_first, mode="greedy")
        return carry, action + wrong

    monkeypatch.setattr(Acting, "step", step)
    module = acting(agent, cfg)
    content = export(module)
    with pytest.raises(ExportError, match=r"differ by .* on random observations, expected at most"):
        check(module, content, env, agent, steps=100, seed=0)
    env.close()


def test_a_difference_that_only_an_episode_shows_is_found() -> None:
    agent, cfg, env = made("spr", "toy/catch")
    module = acting(agent, cfg)
    content = export(module)
    both = Compared(module, agent, content)
    both.begin({"frames": agent.initial_carry(1)["frames"] + 9})
    carry, row = agent.initial_carry(1), env.reset()
    obs = {key: torch.as_tensor(value) for key, value in row.obs.items()}
    both.act(carry, obs, torch.tensor([False]))
    assert both.difference == 9.0, "the program's carry is its own"
    env.close()


# the command

FRESH = """
import json, sys, warnings

warnings.simplefilter("error")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "reverie":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import numpy as np
import torch

torch.set_num_threads(1)
program, rows = sys.argv[1:]
about = json.load(open(program.removesuffix("pt2") + "json"))
act = torch.export.load(program).module()

def begin(entry):
    shape = [1 if size == "N" else size for size in entry["shape"]]
    return torch.full(shape, entry["initial"], dtype=getattr(torch, entry["dtype"]))

carry = [begin(entry) for entry in about["inputs"] if entry["role"] == "carry"]
seen = [entry["name"] for entry in about["inputs"] if entry["role"] == "observation"]
data, worst = np.load(rows), 0.0
for t in range(len(data["action"])):
    obs = [torch.from_numpy(data[name][t : t + 1]) for name in seen]
    *carry, action = act(*carry, *obs, torch.from_numpy(data["is_first"][t : t + 1]))
    worst = max(worst, float((action[0] - torch.from_numpy(data["action"][t])).abs().max()))
assert not any(name.partition(".")[0] == "reverie" for name in sys.modules)
sys.stdout.write(json.dumps([worst, len(data["action"])]))
"""


def finished(folder: Path, agent: str) -> Path:
    run = folder / agent
    if agent == "act-jepa":
        demos = write_points(folder / "demos", episodes=20, length=10)
        own = {"eval_episodes": 0, "device": "cpu"}
        cfg = resolve(point_tree(run, demos, train=own), configs=["debug"])
    else:
        task = "toy/catch" if agent == "spr" else "toy/dot"
        own = {"steps": 100, "eval_every": 0, "device": "cpu"}
        tree = {"agent": agent, "task": task, "run": str(run), "train": own}
        cfg = resolve(tree, configs=["debug"])
    assert train(cfg) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mudreamer", "spr", "act-jepa"])
def test_an_exported_run_acts_in_a_process_without_this_package(
    name: str, tmp_path: Path, capsys: Capture
) -> None:
    run = finished(tmp_path, name)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(["export", str(run), "--steps", "30"]) == 0
    assert "same as the agent on 40 random steps and " in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in files.items())
    (program,) = (run / "export").glob("*.pt2")
    about = json.loads(program.with_suffix(".json").read_text())
    step = read_status(run)["step"]
    assert program.name == f"{step:010d}-latest.pt2" and about["step"] == step
    assert about["agent"] == name and about["versions"]["torch"] == torch.__version__
    assert about["checked"]["difference"] <= about["checked"]["tolerance"] == 1e-4

    trained = load_run(run)
    env = build_env(trained.cfg, "eval", 1)
    agent: Any = build_agent(env.spec, trained.cfg)
    agent.load_state_dict(trained.state)
    player = agent.playing("point/a") if name == "act-jepa" else agent
    rows = episode(player, env)
    env.close()
    columns = {key: np.concatenate([row[0][key] for row in rows]) for key in rows[0][0]}
    columns["is_first"] = np.array([row[1] for row in rows])
    columns["action"] = np.stack([row[2].numpy() for row in rows])
    np.savez(tmp_path / "rows.npz", **columns)
    away = tmp_path / "away"
    away.mkdir()
    for path in (program, program.with_suffix(".json")):
        shutil.copy(path, away)
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(away / program.name), str(tmp_path / "rows.npz")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=away,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    worst, count = json.loads(done.stdout)
    assert worst < 1e-6 and count == len(rows) > 5


class OneSlot:
    """The environment of evaluations by Gymnasium's names."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.actions: list[Any] = []

    def reset(self, *, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {key: value[0] for key, value in self.env.reset().obs.items()}, {"seed": seed}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        spec = self.env.spec
        one_hot = np.eye(spec.action_size, dtype=np.float32)
        row = self.env.step(one_hot[[action]] if spec.discrete else action[None])
        obs = {key: value[0] for key, value in row.obs.items()}
        return obs, float(row.reward[0]), bool(row.is_terminal[0]), bool(row.is_last[0]), {}


@pytest.mark.parametrize("name", ["mudreamer", pytest.param("spr", marks=pytest.mark.slow)])
def test_the_example_of_the_manual_plays_an_episode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path, name)
    manual = (ROOT / "docs" / "play_and_export.md").read_text()
    assert "`reverie export RUN --out policy.pt2`" in manual
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(run), "--out", "policy.pt2"]) == 0
    (example_of_use,) = re.findall(r"```python\n(.*?)```", manual, re.DOTALL)
    Path("example.py").write_text(example_of_use)
    env = build_env(load_run(run).cfg, "eval", 1)
    slot = OneSlot(env)
    played = runpy.run_path("example.py", init_globals={"env": slot})
    env.close()
    checked = played["about"]["checked"]
    assert played["score"] == pytest.approx(checked["score"], abs=1e-5)
    assert len(slot.actions) == checked["episode_steps"] > 5
    last = played["action"][0].numpy()
    assert np.array_equal(slot.actions[-1], last.argmax() if env.spec.discrete else last)
    assert last.any()


def test_the_description_says_what_goes_in_and_comes_out() -> None:
    agent, cfg, env = made("act-jepa", "point/a")
    module = acting(agent, cfg)
    checked = exported.Checked(1, 1, 0.0, None)
    about = exported.describe(module, env.spec, cfg, checked)
    given = example(module, 1)
    assert len(about["inputs"]) == len(given)
    for entry, value in zip(about["inputs"], given, strict=True):
        assert entry["shape"] == ["N", *value.shape[1:]]
        assert f"torch.{entry['dtype']}" == str(value.dtype)
        if entry["role"] == "carry":
            assert (value == entry["initial"]).all()
    assert [e["name"] for e in about["inputs"]] == [*module.carried, "vector", "is_first"]
    assert [e["name"] for e in about["outputs"]] == [*module.carried, "action"]
    assert about["tasks"] == ["point/a"] and about["action"]["kind"] == "continuous in [-1, 1]"
    assert json.loads(json.dumps(about)) == about
    env.close()


def test_what_cannot_be_exported_is_said(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["export", str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--steps", "0"]) == 2
    assert ExportError in cli.explained_errors()
    run = finished(tmp_path, "mudreamer")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "a.onnx")]) == 2
    assert "ends in .pt2, found a.onnx" in capsys.readouterr().err
    out = tmp_path / "new" / "a.pt2"
    assert cli.main(["export", str(run), "--checkpoint", "best", "--out", str(out)]) == 0
    assert {path.name for path in out.parent.iterdir()} == {"a.pt2", "a.json"}
    assert json.loads(out.with_suffix(".json").read_text())["checked"]["score"] is not None
