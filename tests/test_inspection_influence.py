"""Looking into an agent leaves it, its run and every random stream as they were, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import small_agent
import small_imitator
import small_spr
import torch
from point_world import point_config, write_points
from runs import assert_same, clone_tree, final_state
from torch import Tensor

from reverie.agents.configs import RunConfig
from reverie.agents.inspection.inspector import inspect_agent
from reverie.agents.inspection.rollouts import undisturbed
from reverie.agents.inspection.scenes import Look
from reverie.agents.replay.buffer import Replay, replay_schema
from reverie.agents.resolve import resolve
from reverie.agents.trainer import train

LOOK = Look(context=4, horizon=6, windows=4, shown=1, library=60, probe=2)


class Case(NamedTuple):
    """An agent, what it looks at, and one draw of what its updates draw."""

    agent: Any
    source: Any
    cfg: RunConfig
    draw: Callable[[], Tensor]


def windows_case(*, discrete: bool = False, decoder: str = "none", **kwargs: Any) -> Case:
    cfg = replace(small_agent.CFG, model=replace(small_agent.MODEL, decoder=decoder))  # type: ignore[arg-type]
    agent = small_agent.agent(cfg, discrete=discrete, **kwargs)
    replay = Replay(replay_schema(agent.spec), num_envs=2, capacity=400)
    rng = np.random.default_rng(0)
    for t in range(120):
        first = np.full(2, t % 30 == 0)
        action = rng.uniform(-1, 1, (2, 3)).astype(np.float32)
        replay.add(
            {
                "image": rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8),
                "action": action * ~first[:, None],
                "reward": rng.normal(size=2).astype(np.float32),
                "is_first": first,
                "is_last": np.full(2, t % 30 == 29),
                "is_terminal": np.full(2, t % 30 == 29),
            }
        )

    def draw() -> Tensor:
        rows: Tensor = replay.sample(3, 8, np.random.default_rng(5))["image"]
        return rows.clone()

    name = "dreamerv3" if decoder == "grad" else "mudreamer"
    return Case(agent, replay, replace(RunConfig(), agent=name), draw)


def transitions_case(**changes: Any) -> Case:
    cfg = small_spr.with_model(**changes)
    replay = small_spr.filled_replay(cfg)

    def draw() -> Tensor:
        rows: Tensor = replay.sample(4, 1, np.random.default_rng(5))["image"]
        return rows.clone()

    agent = small_spr.agent(cfg)
    agent.learn_from(replay, np.random.default_rng(0), (small_spr.B, 1))
    return Case(agent, replay, replace(RunConfig(), agent="spr"), draw)


def demos_case(folder: Path, **changes: Any) -> Case:
    seeing = "inputs" in changes
    cfg = small_imitator.with_model(small_imitator.CFG, **changes)
    windows = small_imitator.walks(folder, images="all" if seeing else "none", episodes=4)
    agent = small_imitator.walker(windows, cfg)

    def draw() -> Tensor:
        rows: Tensor = windows.sample(4, np.random.default_rng(5))["action"]
        return rows

    return Case(agent, windows, replace(RunConfig(), agent="act-jepa"), draw)


CASES: dict[str, Callable[[Path], Case]] = {
    "mudreamer": lambda _: windows_case(),
    "discrete": lambda _: windows_case(discrete=True),
    "dreamerv3": lambda _: windows_case(decoder="grad"),
    "spr": lambda _: transitions_case(),
    "spr-noaug": lambda _: transitions_case(dropout=0.5),
    "act-jepa": demos_case,
    "act-jepa-images": lambda folder: demos_case(folder, **small_imitator.SEEING),
    "act-jepa-conditioned": lambda folder: demos_case(folder, action_conditioned=True),
    "act": lambda folder: demos_case(folder, w_jepa=0.0),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return CASES[request.param](tmp_path / "demos")


def streams() -> tuple[Tensor, Any, Any]:
    return torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()


def surroundings(case: Case) -> dict[str, Any]:
    """All that a look could disturb besides the agent's saved state."""
    modules = dict(case.agent.model.named_modules())
    return {
        "modes": {name: module.training for name, module in modules.items()},
        "wanted": {n: p.requires_grad for n, p in case.agent.model.named_parameters()},
        "gradients": {n: p.grad for n, p in case.agent.model.named_parameters()},
        "grad_mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


def test_a_look_changes_no_weight_gradient_statistic_or_random_number(case: Case) -> None:
    for parameter in case.agent.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    state, around = clone_tree(case.agent.state_dict()), clone_tree(surroundings(case))
    first, before = case.draw(), streams()
    panels = inspect_agent(case.agent, case.source, case.cfg, step=7, look=LOOK)
    assert panels and any(panel.frames is not None for panel in panels)
    after = streams()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert_same(case.agent.state_dict(), state)
    assert_same(surroundings(case), around)
    assert torch.equal(case.draw(), first), "the replay draws what it would have drawn"


def test_a_look_twice_shows_the_same_and_at_another_step_something_else(case: Case) -> None:
    def seen(step: int) -> list[bytes]:
        torch.rand(3)
        found = inspect_agent(case.agent, case.source, case.cfg, step=step, look=LOOK)
        assert all(np.isfinite(list(panel.scalars.values())).all() for panel in found)
        return [panel.frames.tobytes() for panel in found if panel.frames is not None]

    assert seen(7) == seen(7) != seen(8)


def test_the_probe_decoder_trains_beside_the_model_and_shows_its_error(tmp_path: Path) -> None:
    case = windows_case()
    agent, replay = case.agent, case.source
    rows = replay.sample(3, 8, np.random.default_rng(0))
    agent.update(rows)
    state = clone_tree(agent.state_dict())
    found = {}
    for probe in (0, 3):
        look = replace(LOOK, probe=probe)
        panels = inspect_agent(agent, replay, case.cfg, step=1, look=look)
        found[probe] = {k: v for panel in panels for k, v in panel.scalars.items()}
        assert_same(agent.state_dict(), state)
    assert found[3].keys() - found[0].keys() == {"probe_error"}
    assert {k: found[3][k] for k in found[0]} == found[0], "nothing else depends on it"


def test_no_probe_is_trained_where_the_model_draws_its_own_pictures() -> None:
    case = windows_case(decoder="grad")
    shown = []
    for probe in (0, 3):
        look = replace(LOOK, probe=probe)
        panels = inspect_agent(case.agent, case.source, case.cfg, step=1, look=look)
        assert not any("probe_error" in panel.scalars for panel in panels)
        shown.append([p.frames.tobytes() for p in panels if p.frames is not None])
    assert shown[0] == shown[1]


def test_a_compiled_step_is_set_aside_and_put_back() -> None:
    agent = windows_case().agent
    core = agent.model.rssm

    def refuse(*_: Any) -> Any:
        raise AssertionError("compiled for another shape")

    core.steps = (refuse, refuse)
    core.imagine_step = refuse
    case = windows_case()
    with pytest.raises(AssertionError, match="another shape"):
        agent.model.observe(
            {k: v for k, v in case.source.sample(2, 5, np.random.default_rng(0)).items()}
        )
    panels = inspect_agent(agent, case.source, case.cfg, step=1, look=LOOK)
    assert panels and core.steps == (refuse, refuse) and core.imagine_step is refuse


def test_an_error_inside_leaves_the_stream_as_it_was() -> None:
    model, before = windows_case().agent.model, torch.random.get_rng_state()
    steps = model.rssm.steps
    with pytest.raises(KeyError), undisturbed(model, 3, torch.device("cpu")):
        torch.rand(4)
        assert not torch.is_grad_enabled()
        raise KeyError
    assert torch.equal(torch.random.get_rng_state(), before) and model.rssm.steps is steps
    assert torch.is_grad_enabled()


# whole runs


def run_config(agent: str, run: Path, demos: Path, every: int) -> RunConfig:
    watched = {"inspect_every": every, "inspect_probe": 2 if every else 0}
    if agent == "act-jepa":
        return point_config(run, demos, train={**watched, "eval_episodes": 0, "steps": 12})
    task = "toy/catch" if agent == "spr" else "toy/dot"
    train = {**watched, "steps": 120, "eval_every": 60}
    tree = {"agent": agent, "task": task, "run": str(run), "train": train}
    return resolve(tree, configs=["debug"])


@pytest.mark.parametrize("agent", ["mudreamer", "spr", "act-jepa"])
def test_a_watched_run_ends_with_the_same_state(agent: str, tmp_path: Path) -> None:
    demos = write_points(tmp_path / "demos", episodes=20, length=10)
    states = {}
    for every in (0, 5 if agent == "act-jepa" else 30):
        run = tmp_path / str(every)
        assert train(run_config(agent, run, demos, every)) == 0
        looked = sorted(path.name for path in run.glob("inspection/*"))
        assert bool(looked) == bool(every)
        state = final_state(run) if agent != "act-jepa" else plain_state(run)
        states[bool(every)] = clone_tree(state)
    assert_same(states[True], states[False])


def plain_state(run: Path) -> dict[str, Any]:
    from point_world import final_state as of_imitation

    return of_imitation(run)
