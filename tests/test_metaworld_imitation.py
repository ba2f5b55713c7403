"""What the family shows on Meta-World: one episode by heart, and a collapse that success hides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reverie.agents.act_jepa import ACTJEPA
from reverie.agents.demos.store import open_dataset
from reverie.agents.demos.windows import DemoWindows
from reverie.agents.resolve import resolve
from reverie.agents.runs.jsonl import read_jsonl
from reverie.agents.runs.rundir import read_status
from reverie.agents.trainer import train
from reverie.benchmarks import cli
from reverie.envs import make_env
from reverie.envs.registry import TASK_SETS

pytestmark = [
    *(pytest.mark.metaworld, pytest.mark.learn, pytest.mark.slow),
    pytest.mark.timeout(900),
]

EASY = ("metaworld/button-press", "metaworld/drawer-open", "metaworld/door-open")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASK_SETS, "metaworld/easy", EASY)
        words = ["--task", "metaworld/easy", "--episodes", "25", "--out", str(folder)]
        assert cli.main(["demos", "make", *words]) == 0
    return folder


def small(**changes: Any) -> dict[str, Any]:
    return {"size": "nano", "agent": "act-jepa", "task": "metaworld/easy", **changes}


def test_one_episode_is_learned_by_heart_and_its_replay_succeeds(demos: Path) -> None:
    dataset = open_dataset(demos)
    tasks = [one.task for one in dataset.episodes]
    number = tasks.index("metaworld/button-press")
    ref = dataset.episodes[number]
    chunk = ref.length
    tree = small(
        task=ref.task,
        act_jepa={
            "model": {"chunk": chunk, "dropout": 0.0},
            "optim": {"lr": 2e-3, "weight_decay": 0.0},
        },
    )
    cfg = resolve(tree, configs=["six"])
    windows = DemoWindows(dataset, [number], chunk=chunk, tasks=[ref.task])
    agent = ACTJEPA(
        dataset.spec.env_spec(ref.task),
        cfg.act_jepa,
        tasks=(ref.task,),
        statistics=windows.statistics(),
        seed=0,
        updates=500,
    )
    first = windows.gather(torch.tensor([0]))
    for _ in range(500):
        agent.update(first)
    obs = {"vector": first["vector"][:, 0]}
    plan = agent.predict_chunk(obs, first["task"]).clamp(-1, 1)[0].numpy()
    assert np.abs(plan - first["action"][0].numpy()).mean() < 0.02
    env = make_env(ref.task, observe="state")
    env.reset(ref.seed)
    solved = False
    for action in np.concatenate([plan, np.repeat(plan[-1:], 10, 0)]):
        arrival = env.step(action.astype(np.float32))
        solved = solved or arrival.success
        if arrival.is_last:
            break
    env.close()
    assert solved


def test_without_the_stop_gradient_the_gates_fail_and_success_does_not_tell(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASK_SETS, "metaworld/easy", EASY)
    found = {}
    for guard in ("ema", "none"):
        tree = small(
            run=str(tmp_path / guard),
            train={
                "steps": 500,
                "eval_episodes": 10,
                "monitor_from": 300,
                "monitor_every": 100,
            },
            demos={"path": str(demos), "train_episodes": 20, "held_out_episodes": 5},
            act_jepa={"model": {"guard": guard}},
        )
        assert train(resolve(tree, configs=["six"])) == 0
        found[guard] = read_status(tmp_path / guard)
    healthy, collapsed = found["ema"]["health"], found["none"]["health"]
    assert healthy["alarms"] == []
    assert len(collapsed["alarms"]) >= 3, collapsed
    assert collapsed["health/target_std"] < 0.05 * healthy["health/target_std"]
    assert collapsed["health/target_cosine"] > 0.99 > healthy["health/target_cosine"]
    assert collapsed["health/loss_ratio"] > 0.9 > 0.5 > healthy["health/loss_ratio"]
    # what a user who looks at the score alone would see
    success = {guard: status["evaluation"]["success"] for guard, status in found.items()}
    assert success["ema"] > 0.5 and success["none"] > success["ema"] - 0.25, success
    rows = [row for row in read_jsonl(tmp_path / "none" / "metrics.jsonl")]
    early = [row["step"] for row in rows if row.get("health/alarms", 0) > 0]
    assert early and early[0] <= 500
