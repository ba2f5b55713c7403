"""What `reverie eval` prints: figures of a score, the name of the blind control, its flags."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from reverie.agents.registry import build_agent
from reverie.agents.resolve import resolve
from reverie.agents.trainer import build_env, train
from reverie.benchmarks import cli, evaluation
from reverie.benchmarks.evaluation import TrainedRun, as_score, as_table
from reverie.envs.toy import CHAIN_LIMIT

Capture = pytest.CaptureFixture[str]
IMAGES, OBSERVATIONS = "same agent, blanked images", "same agent, blanked observations"


def printed(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(table)
    return stream.getvalue()


def result(mean: float, **more: Any) -> dict[str, Any]:
    own = {"mean": mean, "std": 0.0123, "min": -0.54, "max": 1234.5, "episodes": 3}
    return {**own, "protocol": "", **more}


def trained(state: dict[str, Any] | None = None, **tree: Any) -> TrainedRun:
    own = {"agent": "mudreamer", "task": "toy/dot", "train": {"device": "cpu"}}
    cfg = resolve({**own, **tree}, configs=["debug"])
    return TrainedRun(Path("run"), cfg, 1, {"model": {}} if state is None else state, None, [])


# figures


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (204.3, "204.3"),
        (204.26, "204.3"),
        (12345.67, "12345.7"),
        (57.0, "57.0"),
        (9.996, "10.0"),
        (7.69, "7.69"),
        (1.0, "1.00"),
        (0.9996, "1.00"),
        (0.25, "0.250"),
        (-0.54, "-0.540"),
        (0.0123, "0.0123"),
        (0.00056, "0.0006"),
        (-1e-9, "0.0"),
        (0.0, "0.0"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_a_score_has_about_three_figures(value: float, wanted: str) -> None:
    assert as_score(value) == wanted


def test_the_table_tells_small_scores_apart() -> None:
    shown = printed(as_table(trained(), {"none": result(0.254), "random": result(0.346)}))
    for cell in ("0.254", "0.346", "0.0123", "-0.540", "1234.5"):
        assert f"│ {cell} " in shown, shown


def test_the_table_of_tasks_does_so_too() -> None:
    tasks = {"point/a": result(0.254, length=3), "point/b": result(-0.346, length=4)}
    own = trained(agent="act-jepa", task="point/a", size="nano")
    shown = printed(as_table(own, {"none": result(7.69, length=3, tasks=tasks)}))
    for cell in ("0.254", "-0.346", "7.69"):
        assert f"│ {cell} " in shown, shown


# what was blanked


@pytest.mark.parametrize(
    ("task", "agent", "wanted"),
    [
        ("toy/dot", "mudreamer", IMAGES),
        ("toy/dot", "dreamerv3", IMAGES),
        ("toy/catch", "spr", IMAGES),
        ("toy/chain", "mudreamer", OBSERVATIONS),
    ],
)
def test_the_blind_control_is_named_after_what_the_agent_sees(
    task: str, agent: str, wanted: str
) -> None:
    run = trained(task=task, agent=agent)
    env = build_env(run.cfg, "eval", 1)
    state = build_agent(env.spec, run.cfg).state_dict()
    env.close()
    shown = printed(as_table(dataclasses.replace(run, state=state), {"blank": result(1.0)}))
    assert f"│ {wanted} " in shown, shown


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        (["proprio", "state"], OBSERVATIONS),
        (["image", "proprio"], OBSERVATIONS),
        (["image"], IMAGES),
    ],
)
def test_so_is_that_of_an_imitator(inputs: list[str], wanted: str) -> None:
    model = {"inputs": inputs, "targets": inputs}
    own = trained(agent="act-jepa", task="point/a", size="nano", act_jepa={"model": model})
    one = result(1.0, length=3)
    shown = printed(as_table(own, {"blank": {**one, "tasks": {"point/a": one}}}))
    assert f"│ {wanted} " in shown, shown


def test_a_mixed_observation_is_no_image() -> None:
    model = {"encoder.image.w": 0, "encoder.vector.w": 0, "rssm.w": 0}
    assert evaluation.label(trained({"model": model}), "blank") == OBSERVATIONS
    del model["encoder.vector.w"]
    assert evaluation.label(trained({"model": model}), "blank") == IMAGES


# the command


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("walked") / "run"
    own = {"steps": 96, "eval_every": 0, "eval_episodes": 1, "device": "cpu"}
    tree = {"agent": "mudreamer", "task": "toy/chain", "run": str(run), "train": own}
    assert train(resolve(tree, configs=["debug"])) == 0
    return run


def test_an_agent_without_pictures_is_blinded_by_its_name(walked: Path, capsys: Capture) -> None:
    before = set(walked.glob("evaluation-*.json"))
    assert cli.main(["eval", str(walked), "--episodes", "1", "--controls"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "blanked observations" in shown and "images" not in shown
    (path,) = set(walked.glob("evaluation-*.json")) - before
    results = json.loads(path.read_text())["results"]
    assert list(results) == ["none", "random", "zero", "blank"]
    # the zero action never arrives, and is scored all the same
    assert results["zero"]["lengths"] == [CHAIN_LIMIT]


@pytest.mark.parametrize("flag", ["--tag", "--checkpoint"])
def test_eval_knows_the_checkpoint_by_both_names(
    flag: str, walked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def spy(run: Path, *, checkpoint: Any) -> TrainedRun:
        asked.append(checkpoint)
        return load(run, checkpoint=checkpoint)

    load = evaluation.load_run
    monkeypatch.setattr(evaluation, "load_run", spy)
    assert cli.main(["eval", str(walked), "--episodes", "1", flag, "best"]) == 0
    assert asked == ["best"]
