"""What an update costs: counted exactly, held under ceilings, and the same however it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from reverie.agents.configs import ConfigError
from reverie.agents.mudreamer import MuDreamer
from reverie.agents.resolve import resolve
from reverie.benchmarks.counting import PHASES, KernelCount, PhaseMeter, count_update, time_update
from reverie.benchmarks.speed_parts import random_batch
from reverie.benchmarks.throughput import SpeedOptions, build, main, settings
from reverie.envs.specs import EnvSpec

# the full update, imagination included, of 16x64 windows of 64x64 pixels, six discrete actions
S_GFLOP, S_KERNELS = 700.0, 9_000
# 8x32 windows of 32x32 pixels, six continuous actions; a fifth above what it needs
NANO_GFLOP, NANO_KERNELS = 8.0, 5_000
NANO = SpeedOptions(size="nano", batch=8, length=32, image_size=32, continuous=True, device="cpu")


def counted(options: SpeedOptions) -> dict[str, dict[str, float]]:
    cfg, spec = settings(options)
    batch = random_batch(spec, cfg.train.batch_size, cfg.train.batch_length, device="cpu")
    return count_update(build(cfg, spec, "off"), batch)


def assert_phases_add_up(counts: dict[str, dict[str, float]]) -> None:
    assert tuple(counts) == ("total", *PHASES)
    for key, value in counts["total"].items():
        assert sum(counts[name][key] for name in PHASES) == pytest.approx(value)


@pytest.mark.slow
def test_an_update_of_size_s_stays_below_its_ceilings() -> None:
    counts = counted(SpeedOptions(device="cpu"))
    assert_phases_add_up(counts)
    assert counts["total"]["gflop"] <= S_GFLOP
    assert counts["total"]["kernels"] <= S_KERNELS
    # 4x4 convolutions, stride 2, of 1024 images: 2 x outputs x inputs per output, in closed form
    sizes = zip((32, 16, 8, 4), (3, 32, 64, 128), (32, 64, 128, 256), strict=True)
    forward = sum(2 * 1024 * side**2 * out * 16 * channels for side, channels, out in sizes)
    assert counts["encoder"]["gflop"] == pytest.approx(forward / 1e9)
    first = 2 * 1024 * 32**2 * 32 * 16 * 3
    # every weight gradient, and every input gradient but that of the pixels
    assert counts["backward: encoder"]["gflop"] == pytest.approx((2 * forward - first) / 1e9)


def test_an_update_of_size_nano_stays_below_its_ceilings() -> None:
    counts = counted(NANO)
    assert_phases_add_up(counts)
    assert counts["total"]["gflop"] <= NANO_GFLOP
    assert counts["total"]["kernels"] <= NANO_KERNELS


def test_the_scan_launches_as_often_as_it_has_steps() -> None:
    short, long = (counted(_tiny(length=length)) for length in (4, 8))
    for name in ("posterior scan", "backward: scan"):
        per_step = (long[name]["kernels"] - short[name]["kernels"]) / 4
        assert 20 < per_step < 35, (name, per_step)
    grown = {n for n in PHASES if long[n]["kernels"] != short[n]["kernels"]}
    assert grown == {"posterior scan", "backward: scan", "model heads and losses"}


def test_kernels_are_operations_that_are_no_views() -> None:
    with KernelCount() as count:
        x = torch.ones(3, 4)  # 1 kernel
        (x.t().contiguous() + 1.0).view(12)[2:]  # 2 kernels: copy, add
    assert count.kernels == 3 < count.ops


def test_an_inner_phase_pauses_the_outer_one() -> None:
    ticks = iter(range(100))
    meter = PhaseMeter(lambda: torch.tensor([float(next(ticks))]).double().numpy())
    with meter.phase("outer"):
        with meter.phase("inner"):
            meter.switch("renamed")
    assert {name: int(value[0]) for name, value in meter.totals.items()} == {
        "outer": 2,
        "inner": 1,
        "renamed": 1,
    }


def test_measuring_changes_neither_the_agent_nor_the_update() -> None:
    options = _tiny()
    cfg, spec = settings(options)
    batch = random_batch(spec, cfg.train.batch_size, cfg.train.batch_length, device="cpu")
    plain, timed, counted_too = (build(cfg, spec, "off") for _ in range(3))
    for _ in range(2):
        plain.update(batch)
        assert tuple(time_update(timed, batch)) == ("total", *PHASES)
    count_update(counted_too, batch)
    assert_close(plain.state_dict(), timed.state_dict(), 0.0)
    # the arithmetic counter takes some products apart, which rounds otherwise
    assert_close(plain.state_dict(), counted_too.state_dict(), 1e-5)


def assert_close(a: Any, b: Any, tolerance: float) -> None:
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key], tolerance)


def _tiny(**changes: Any) -> SpeedOptions:
    values = {"size": "nano", "batch": 2, "length": 8, "image_size": 16, "device": "cpu"}
    return SpeedOptions(**{"task": (), "worlds": (), "repeats": 1, **values, **changes})


# ------------------------------------------------------------------ compiled and low precision


def trained(kind: str, *, compile_mode: str, precision: str, updates: int) -> tuple[Any, Any]:
    cfg = resolve({"task": "toy/dot", "size": "nano"}, configs=["debug"])
    spec = EnvSpec("toy/dot", 3, kind == "discrete", (16, 16, 3))
    agent = MuDreamer(
        spec,
        cfg.mudreamer,
        seed=0,
        compile=compile_mode,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        batch_shape=(2, 8),
    )
    batch: TensorDict = random_batch(spec, 2, 8, device="cpu")
    before = {k: v.clone() for k, v in agent.model.state_dict().items()}
    metrics = [agent.update(batch) for _ in range(updates)]
    moved = [k for k, v in agent.model.named_parameters() if not torch.equal(v, before[k])]
    assert len(moved) > len(list(agent.model.parameters())) // 2
    return agent, metrics


@pytest.mark.slow
# the compiler looks at the gradient of imagined actions, which are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(
    "kind", ["continuous", pytest.param("discrete", marks=pytest.mark.nightly)]
)
def test_compiled_updates_equal_eager_ones(kind: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, one = trained(kind, compile_mode="off", precision="fp32", updates=4)
    compiled, other = trained(kind, compile_mode="inductor", precision="fp32", updates=4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3
    for a, b in zip(one, other, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=name)
    for left, right in ((eager.model, compiled.model), (eager.behavior, compiled.behavior)):
        want, got = left.state_dict(), right.state_dict()
        assert want.keys() == got.keys()
        for name in want:
            # Adam's first steps are of the size of the learning rate, whatever the gradient's
            torch.testing.assert_close(want[name], got[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_bf16_updates_stay_finite_and_keep_float32_weights(kind: str) -> None:
    agent, metrics = trained(kind, compile_mode="off", precision="bf16", updates=4)
    for row in metrics:
        assert row["nonfinite"] == 0.0
        assert all(bool(torch.isfinite(value)) for value in row.values())
    for module in (agent.model, agent.behavior):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    _, exact = trained(kind, compile_mode="off", precision="fp32", updates=1)
    for name in ("norm/model", "norm/critic", "health/posterior_entropy"):
        assert metrics[0][name] != exact[0][name], "nothing ran in bf16"
        torch.testing.assert_close(metrics[0][name], exact[0][name], rtol=0.1, atol=0.0)


# --------------------------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command_reports_every_part(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "speed" / "nano.json"
    sizes = "--size nano --batch 2 --length 8 --image-size 16 --device cpu --repeats 2".split()
    words = [*sizes, "--task", "toy/dot", "toy/chain", "--worlds", "4", "--out", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["command"].startswith("reverie bench speed --size nano")
    assert results["fingerprint"]["threads"] == 1 and results["fingerprint"]["cpu"]
    assert set(results["phases"]) == set(results["counts"]) == {"total", *PHASES}
    seconds = results["update"]["cpu_s"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert 0 < results["matmul_fraction"] < 1
    rate = results["matmul_gflop_per_s"]["median"]
    fraction = results["counts"]["total"]["gflop"] / seconds["median"] / rate
    assert results["matmul_fraction"] == pytest.approx(fraction)
    assert results["replay"]["windows_per_s"] > 0
    assert [row["task"] for row in results["environments"]] == ["toy/dot", "toy/chain"]
    assert all(row["steps_per_s"] > 0 for row in results["environments"] + results["worlds"])
    assert all(name in shown for name in ("posterior scan", "toy/chain", "torch worlds x4"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "huge"], "huge"),
        (["--compile", "graph", "--device", "cpu"], "graph needs CUDA"),
        (["--length", "2", "--repeats", "0"], "--repeats: expected at least 1"),
        (["--image-size", "60"], "image_size"),
    ],
)
def test_the_command_refuses_what_cannot_work(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(words)
