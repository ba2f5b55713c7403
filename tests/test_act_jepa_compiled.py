"""The imitation agent's update in its other forms: compiled, captured, in bfloat16."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from small_imitator import CFG, SEEING, agent, batch_for, statistics, with_model

from reverie.agents.act_jepa import ACTJEPA
from reverie.agents.act_jepa_config import ACTJEPAConfig, ImitationOptimConfig
from reverie.world_models.act_jepa_config import Guard

EVEN = ImitationOptimConfig(warmup=0.0)
KINDS: dict[str, ACTJEPAConfig] = {
    "ema": CFG,
    "images, sigreg": with_model(**SEEING, guard="sigreg"),
    "act with style": with_model(w_jepa=0.0, vae=True),
}


def still(cfg: ACTJEPAConfig) -> ACTJEPAConfig:
    """Nothing is dropped; learns from the first update on."""
    return replace(with_model(cfg, dropout=0.0), optim=EVEN)


def assert_alike(one: ACTJEPA, other: ACTJEPA) -> None:
    """Moments and running statistics, not weights: Adam makes much of a gradient of rounding."""
    pairs = zip(one._optimiser.moments(), other._optimiser.moments(), strict=True)
    for want, found in [*pairs, *zip(one.model.buffers(), other.model.buffers(), strict=True)]:
        torch.testing.assert_close(found, want, rtol=1e-2, atol=2e-5)


def assert_learns_alike(
    cfg: ACTJEPAConfig, mode: Literal["inductor", "graph"], device: str
) -> None:
    eager = agent(cfg, statistics=statistics(), device=device)
    other = agent(cfg, statistics=statistics(), device=device, compile=mode)
    for seed in range(5):
        batch = batch_for(cfg, seed=seed, device=device)
        one, two = (player.update(batch) for player in (eager, other))
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=2e-3, atol=1e-4, msg=key)
        if seed == 0:
            assert_alike(eager, other)


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["ema", "sigreg", "barlow"])
def test_losses_are_one_graph(guard: Guard) -> None:
    cfg = still(with_model(**SEEING, guard=guard, action_conditioned=True))
    torch._dynamo.reset()
    one, other = (agent(cfg).model.losses for _ in range(2))  # each moves its own statistics
    traced = torch.compile(other, backend="eager", fullgraph=True, dynamic=False)
    rows, found = dict(batch_for(cfg).items()), []
    for losses in (one, traced):
        torch.manual_seed(0)
        found.append(losses(rows, train=True))
    assert found[0].keys() == found[1].keys()
    for name, loss in found[0].items():
        torch.testing.assert_close(found[1][name], loss, msg=name)


@pytest.mark.slow
def test_compiled_updates_equal_eager_ones() -> None:
    torch._dynamo.reset()
    layers = {"encoder_layers": 1, "decoder_layers": 1, "predictor_layers": 1}
    assert_learns_alike(still(with_model(**layers)), "inductor", "cpu")


def test_a_graph_needs_a_device_that_captures() -> None:
    with pytest.raises(ValueError, match="compile=graph needs a CUDA device, found 'cpu'"):
        agent(compile="graph")


def test_bf16_keeps_weights_and_losses_in_float32() -> None:
    player, exact = agent(still(CFG), precision="bf16"), agent(still(CFG))
    metrics, found = player.update(batch_for()), exact.update(batch_for())
    assert metrics["nonfinite"] == 0 and metrics["loss/latent"].dtype == torch.float32
    assert {p.dtype for p in player.model.parameters()} == {torch.float32}
    assert metrics["norm/model"] != found["norm/model"], "nothing ran in bf16"
    torch.testing.assert_close(metrics["loss/total"], found["loss/total"], rtol=0.05, atol=0.0)


# what only a GPU can run


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["inductor", "graph"])
@pytest.mark.parametrize("cfg", KINDS.values(), ids=KINDS)
def test_captured_updates_equal_eager_ones(
    mode: Literal["inductor", "graph"], cfg: ACTJEPAConfig
) -> None:
    # draws of a compiled program are its own: without any
    cfg = with_model(cfg, guard="ema", vae=False) if mode == "inductor" else cfg
    assert_learns_alike(still(cfg), mode, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("cfg", KINDS.values(), ids=KINDS)
def test_a_captured_update_draws_what_its_number_says(cfg: ACTJEPAConfig) -> None:
    """A run that is resumed captures anew: its first update must not draw anything else."""
    cfg = replace(cfg, optim=ImitationOptimConfig(lr=0.0))
    one, other = (agent(cfg, device="cuda", compile="graph") for _ in range(2))
    batch = batch_for(cfg, device="cuda")
    seen = [float(one.update(batch)["loss/total"]) for _ in range(4)]
    other.updates = 2
    again = [float(other.update(batch)["loss/total"]) for _ in range(2)]
    assert again == pytest.approx(seen[2:], rel=1e-5) and len({round(x, 5) for x in seen}) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["off", "graph"])
def test_an_update_never_waits_for_the_device(mode: str) -> None:
    player, batch = agent(device="cuda", compile=mode), batch_for(device="cuda")
    player.update(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        player.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
