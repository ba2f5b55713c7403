"""What an update of the SPR family costs: counted, compared with its layers, and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reverie.agents.configs import ConfigError, RunConfig
from reverie.benchmarks.counting import count_update
from reverie.benchmarks.speed_spr import (
    EPISODE,
    needed_gflop,
    random_transitions,
    time_transitions,
)
from reverie.benchmarks.throughput import SpeedOptions, build, main, settings
from reverie.envs.specs import EnvSpec

# one eager update of SPR at size S: 32 transitions of 84x84 grey pixels, six actions
S_GFLOP, S_KERNELS = 12.0, 900
CPU = torch.device("cpu")


def built(agent: str, **changes: Any) -> tuple[RunConfig, EnvSpec]:
    return settings(SpeedOptions(agent=agent, device="cpu", **changes))


def counted(cfg: RunConfig, spec: EnvSpec) -> dict[str, float]:
    replay = random_transitions(cfg, spec, device=CPU, frames=EPISODE)
    batch = replay.sample(cfg.train.batch_size, 1, np.random.default_rng(0))
    return count_update(build(cfg, spec, "off"), batch)["total"]


def test_an_spr_update_of_size_s_stays_below_its_ceilings() -> None:
    cfg, spec = built("spr")
    assert (spec.image_shape, spec.action_size, cfg.train.batch_size) == ((84, 84, 1), 6, 32)
    total = counted(cfg, spec)
    assert total["gflop"] <= S_GFLOP and total["kernels"] <= S_KERNELS
    # the first convolution in closed form: 8x8 of 4 frames to 32 channels of 20x20, for every
    # image of K + 3 batches and for its weight gradient
    first = 2 * 32 * (5 + 3 + 1) * 20**2 * 32 * 8**2 * 4 / 1e9
    assert first < needed_gflop(cfg, spec)["encoder"] < total["gflop"]


@pytest.mark.parametrize("agent", ["spr", "rainbow", "sr-spr"])
def test_an_update_of_size_s_does_the_arithmetic_that_its_layers_need(agent: str) -> None:
    assert_no_more_than_needed(*built(agent))


@pytest.mark.parametrize("agent", ["spr-noaug", "bbf"])
def test_an_update_of_size_nano_does_the_arithmetic_that_its_layers_need(agent: str) -> None:
    assert_no_more_than_needed(*built(agent, size="nano", batch=4))


def assert_no_more_than_needed(cfg: RunConfig, spec: EnvSpec) -> None:
    needed = needed_gflop(cfg, spec)
    assert ("predictor" in needed) == (cfg.agent != "rainbow")
    # each side counts whole products, so that nothing but rounding may differ
    assert counted(cfg, spec)["gflop"] == pytest.approx(sum(needed.values()), rel=1e-6)


def test_needed_arithmetic_follows_from_shapes() -> None:
    # one 84x84 frame: 20x20, 9x9 and 7x7 outputs of 8x8, 4x4 and 3x3 kernels
    cfg, spec = built("rainbow", batch=2)
    convs = [20**2 * 32 * 8**2 * 4, 9**2 * 64 * 4**2 * 32, 7**2 * 64 * 3**2 * 64]
    # three batches seen, one of them differentiated, but not with respect to its pixels
    encoder = 2 * 2 * (5 * sum(convs) - convs[0])
    # two noisy hidden layers, a value and six advantages of 51 atoms; mean and noise
    head = 2 * 2 * 5 * 2 * (2 * 64 * 7 * 7 * 256 + 256 * 51 * 7)
    assert needed_gflop(cfg, spec) == pytest.approx(
        {"encoder": encoder / 1e9, "Q head": head / 1e9}
    )


def test_measured_replay_is_full_and_of_episodes() -> None:
    cfg, spec = built("spr", size="nano")
    replay = random_transitions(cfg, spec, device=CPU, frames=2 * EPISODE + 7)
    assert len(replay) == replay.size == 2 * EPISODE + 7
    rows = replay.read(0, len(replay))
    begins, ends = ([0, EPISODE, 2 * EPISODE], [EPISODE - 1, 2 * EPISODE - 1])
    assert np.flatnonzero(rows["is_first"]).tolist() == begins
    assert np.flatnonzero(rows["is_last"]).tolist() == ends
    assert not rows["action"][begins].any() and rows["action"].sum() == len(replay) - 3


def test_replay_is_timed_part_by_part() -> None:
    cfg, spec = built("spr", size="nano")
    replay = random_transitions(cfg, spec, device=CPU, frames=EPISODE)
    before = replay.time
    assert set(replay.tree.leaves.tolist()) == {0.0, 1.0}
    found = time_transitions(replay, 4, draws=10)
    assert replay.time == before + 15
    assert len(set(replay.tree.leaves.tolist())) > 2, "no priority was written"
    assert (found["rows"], found["storage"]) == (EPISODE, "device")
    for part in ("sample", "set_priority", "add"):
        for clock in ("cpu_s", "wall_s"):
            times = found[part][clock]
            assert 0 < times["min"] <= times["median"] <= times["max"]
    assert found["windows_per_s"] == pytest.approx(4 / found["sample"]["wall_s"]["median"])


def test_the_command_reports_every_part_of_spr(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "spr.json"
    words = "--agent spr --size nano --batch 4 --device cpu --repeats 1 --frames 600".split()
    assert main([*words, "--task", "--worlds", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["command"].startswith("reverie bench speed --agent spr --size nano")
    options = results["options"]
    assert (options["batch"], options["length"], options["image_size"]) == (4, 1, 84)
    assert options["frames"] == results["replay"]["rows"] == 600
    assert results["environments"] == results["worlds"] == []
    counts = results["counts"]["total"]
    assert set(results["phases"]) == set(results["counts"]) == {"total"}
    needed = results["needed_gflop"]
    assert list(needed) == ["encoder", "Q head", "transition", "projection", "predictor"]
    assert sum(needed.values()) == pytest.approx(counts["gflop"], rel=1e-6)
    assert results["update"]["cpu_s"]["median"] > 0
    for text in (
        "one update of spr-nano, 4x1, 84 pixels",
        "GFLOP that its layers need",
        f"{counts['ops']:,.0f} / {counts['kernels']:,.0f}",
        "GFLOP that the layers need: encoder",
        "replay: ms for one batch",
        "replay: ms for its new priorities",
        "replay: ms for one new row",
        f"{results['replay']['windows_per_s']:,.0f}",
    ):
        assert text in " ".join(shown.split()), text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "10"], f"--frames: expected at least {EPISODE}, found 10"),
        (["--continuous"], "continuous"),
        (["--length", "8"], "batch_length"),
    ],
)
def test_the_command_refuses_what_spr_cannot_do(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["--agent", "spr", "--size", "nano", "--device", "cpu", *words])
