"""Settings of the ACT-JEPA family, and the gates on its latents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from reverie.agents.collapse_monitor import gates
from reverie.agents.configs import ConfigError
from reverie.agents.demos.demonstrations import demo_folder, load_demonstrations, make_command
from reverie.agents.devices import DeviceMemoryError, memory_advice
from reverie.agents.flags import config_from_args
from reverie.agents.registry import FAMILIES, check_task
from reverie.agents.resolve import resolve
from reverie.envs.specs import EnvSpec

PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"train": {"batch_length": 16}}, "set act_jepa.model.chunk instead"),
    ({"size": "M"}, "size: expected one of nano, S, found 'M'"),
    ({"demos": {"held_out_episodes": 0}}, "hold some out or use --train.monitor off"),
    ({"demos": {"train_episodes": 0}}, "demos.train_episodes: expected more than 0"),
    ({"train": {"monitor": "warm"}}, "did you mean warn?"),
    ({"act_jepa": {"execute": 31}}, "use at most 30"),
    ({"act_jepa": {"execute": 0}}, "act_jepa.execute: expected more than 0"),
    ({"act_jepa": {"ensemble": 0.01}}, "expected act_jepa.execute 1, found none"),
    ({"act_jepa": {"model": {"chunk": 1}}}, "use 2 or more"),
    ({"act_jepa": {"model": {"targets": ["image"]}}}, "add it there or drop it"),
    ({"act_jepa": {"model": {"targets": []}}}, "act_jepa.model.targets: expected at least one"),
    ({"act_jepa": {"model": {"inputs": ["proprio", "proprio"]}}}, "each one once"),
    ({"act_jepa": {"model": {"heads": 3, "predictor_width": 129}}}, "do not divide act_jepa.model"),
    ({"act_jepa": {"model": {"ema_start": 0.999, "ema_end": 0.99}}}, "is above"),
    ({"act_jepa": {"model": {"ema_start": 1.5, "ema_end": 2}}}, "a share between 0 and 1"),
    ({"act_jepa": {"model": {"policy": "mlp"}}}, "--act-jepa.model.w-jepa 0"),
    ({"act_jepa": {"model": {"vae": True}}}, "the style variable belongs to ACT"),
    ({"act_jepa": {"optim": {"lr": 0}}}, "act_jepa.optim.lr: expected more than 0"),
    (
        {"act_jepa": {"model": {"inputs": ["proprio", "image"]}}, "env": {"image_size": 16}},
        "use larger images",
    ),
]


@pytest.mark.parametrize(("bad", "message"), PROBLEMS, ids=[m[:40] for _, m in PROBLEMS])
def test_fault_24_each_bad_setting_of_the_family_is_explained(
    bad: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"agent": "act-jepa", "task": "metaworld/push", **bad})
    assert message in str(caught.value)
    assert all(problem.startswith(tuple(bad)) for problem in caught.value.problems)


@pytest.mark.parametrize("agent", FAMILIES["act_jepa"])
def test_what_belongs_to_a_replay_is_not_asked_of_demonstrations(
    agent: str, tmp_path: Path
) -> None:
    small = {"replay": {"capacity": 1}, "train": {"prefill": 10**6, "steps": 10}}
    cfg = resolve({"agent": agent, "task": "dmc/lqr_2_1", "env": {"image_size": 84}, **small})
    assert (cfg.train.batch_length, cfg.train.eval_every) == (1, 0)
    with pytest.raises(ConfigError, match="hold no window"):
        resolve({"task": "dmc/lqr_2_1", **small})


def test_three_agents_are_one_model_with_switches() -> None:
    models = {
        a: resolve({"agent": a, "task": "toy/x"}).act_jepa.model for a in FAMILIES["act_jepa"]
    }
    assert [models[a].w_jepa for a in ("act-jepa", "act", "bc")] == [1.0, 0.0, 0.0]
    assert [models[a].policy for a in ("act-jepa", "act", "bc")] == ["transformer"] * 2 + ["mlp"]
    assert models["act-jepa"].guard == "ema"
    small = resolve({"agent": "act", "task": "toy/x", "size": "nano"}).act_jepa.model
    assert small.width < models["act"].width == 512


def test_flags_reach_the_family() -> None:
    flags = ["--config", "six", "--act-jepa.model.w-jepa", "0.3", "--train.monitor=stop"]
    cfg = config_from_args(flags, agent="act")
    model = cfg.act_jepa.model
    assert (cfg.agent, cfg.task, model.chunk, model.w_jepa) == ("act", "metaworld/six", 20, 0.3)
    assert cfg.train.monitor == "stop" and cfg.train.steps == 1500 and cfg.train.batch_size == 64


def test_where_demonstrations_are_looked_for() -> None:
    cfg = resolve(configs=["six"])
    assert demo_folder(cfg) == Path("demos/metaworld/six")
    assert make_command(cfg) == "reverie demos make --task metaworld/six --episodes 50"
    pixels = resolve(configs=["fifteen"])
    assert demo_folder(pixels) == Path("demos/metaworld/fifteen-84px")
    assert "--observe both --image-size 84 --render quick" in make_command(pixels)
    own = resolve({"demos": {"path": "some where/x"}}, configs=["six"])
    assert demo_folder(own) == Path("some where/x")
    assert make_command(own).endswith("--out 'some where/x'")


def test_missing_demonstrations_name_the_command_that_makes_them(tmp_path: Path) -> None:
    cfg = resolve({"demos": {"path": str(tmp_path / "none")}}, configs=["six"])
    with pytest.raises(ConfigError, match=r"make --task metaworld/six --episodes \d+ -"):
        load_demonstrations(cfg)
    cfg = resolve({"agent": "act", "task": "toy/dot", "demos": {"path": str(tmp_path / "none")}})
    with pytest.raises(ConfigError, match="--run RUN"):  # no expert plays it
        load_demonstrations(cfg)


def test_inputs_that_a_task_lacks_are_refused() -> None:
    cfg = resolve({"agent": "act", "task": "toy/x", "act_jepa": {"model": {"inputs": ["image"]}}})
    with pytest.raises(ConfigError, match=r"--env\.observe both"):
        check_task(EnvSpec("toy/x", 2, False, vector_size=4), cfg)
    check_task(EnvSpec("toy/x", 2, False, image_shape=(64, 64, 3)), cfg)
    cfg = resolve({"agent": "act", "task": "toy/x"})
    with pytest.raises(ConfigError, match=r"has no vector; use --env\.observe state") as caught:
        check_task(EnvSpec("toy/x", 2, False, image_shape=(64, 64, 3)), cfg)
    assert len(caught.value.problems) == 1


def test_fault_20_the_advice_suits_windows_of_demonstrations() -> None:
    import torch

    cfg = resolve(configs=["fifteen"])
    with pytest.raises(DeviceMemoryError) as caught, memory_advice(cfg):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    shown = str(caught.value)
    assert "128 windows of 30 steps at size S" in shown and "--train.batch-size 64" in shown
    assert "--replay" not in shown and "XL" not in shown


# gates

HEALTHY = {
    "health/target_std": 0.68,
    "health/task_std": 0.35,
    "health/target_cosine": 0.72,
    "health/loss_ratio": 0.19,
    "health/top_share": 0.39,
    "health/rank_centred": 15.7,
}
"""What the measured replica of ACT-JEPA with an EMA target shows on six tasks."""

COLLAPSED = HEALTHY | {
    "health/target_std": 0.003,
    "health/task_std": 0.003,
    "health/target_cosine": 1.0,
    "health/loss_ratio": 1.13,
    "health/rank_centred": 20.1,
}
"""The same without stop-gradient: the centred rank rises."""


def breaches(found: dict[str, float], *, several: bool = True, guard: str = "ema") -> list[str]:
    cfg = resolve({"agent": "act-jepa", "task": "toy/x", "act_jepa": {"model": {"guard": guard}}})
    applied = gates(cfg, tasks=6 if several else 1)
    lines = [gate.breach(found[gate.name]) for gate in applied if gate.name in found]
    return [line for line in lines if line is not None]


def failed(found: dict[str, float], *, several: bool = True, guard: str = "ema") -> list[str]:
    return [line.split()[0] for line in breaches(found, several=several, guard=guard)]


def test_gates_tell_a_healthy_latent_from_a_collapsed_one() -> None:
    assert failed(HEALTHY) == []
    broken = {"health/target_cosine", "health/loss_ratio", "health/target_std", "health/task_std"}
    assert set(failed(COLLAPSED)) == broken
    assert "health/loss_ratio 1.13, expected less than 0.6" in breaches(COLLAPSED)
    # what is half collapsed holds its variance in one direction
    assert failed(HEALTHY | {"health/top_share": 0.86}) == ["health/top_share"]


def test_a_single_task_may_spread_less() -> None:
    found = HEALTHY | {"health/target_std": 0.2, "health/top_share": 0.8}
    assert failed(found, several=False) == []
    assert failed(found) == ["health/target_std", "health/top_share"]
    found["health/target_std"] = 0.1
    assert failed(found, several=False) == ["health/target_std"]
    # at the scale of a LayerNorm a smaller spread is a larger cosine: a healthy run's numbers
    alone = HEALTHY | {"health/target_std": 0.37, "health/target_cosine": 0.93}
    assert failed(alone, several=False) == []
    assert failed(alone | {"health/target_cosine": 0.99}, several=False) == ["health/target_cosine"]


def test_sigreg_answers_for_its_own_statistic() -> None:
    found = HEALTHY | {"health/target_std": 0.1, "health/projected_std": 0.9, "health/sigreg": 1.5}
    assert failed(found, guard="sigreg") == []
    assert failed(found, guard="ema") == ["health/target_std"]
    assert failed(found | {"health/sigreg": 51.5}, guard="sigreg") == ["health/sigreg"]
    for std in (0.3, 1.6):
        odd = found | {"health/projected_std": std}
        assert failed(odd, guard="sigreg") == ["health/projected_std"]


def test_gates_need_a_latent_prediction_and_fail_on_nan() -> None:
    assert breaches({"held_out/action": 0.1}) == []
    assert set(failed(dict.fromkeys(HEALTHY, math.nan))) == set(HEALTHY) - {"health/rank_centred"}
