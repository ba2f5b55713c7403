"""The collapse monitor: what it measures, when it alarms, and that it is right on other seeds.

Thresholds were chosen on seed 0 of these worlds; the tests use others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import collapse_worlds
import numpy as np
import pytest
import small_imitator
import tiny_models
import torch
import torch.nn.functional as F
from collapse_worlds import FORCED, Look
from runs import assert_same, final_state
from small_spr import CFG, B, agent, filled_replay, transitions, with_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reverie.agents import latent_health, trainer
from reverie.agents.collapse_monitor import (
    ACT_JEPA,
    MUDREAMER,
    ONE_TASK,
    SPR,
    CollapseError,
    CollapseMonitor,
    Gate,
    gates,
)
from reverie.agents.configs import TrainConfig
from reverie.agents.mudreamer import MuDreamer
from reverie.agents.registry import build_agent
from reverie.agents.replay.buffer import Replay, replay_schema
from reverie.agents.resolve import resolve
from reverie.agents.runs.jsonl import read_jsonl
from reverie.agents.runs.rundir import read_status
from reverie.agents.spr_config import AugmentConfig
from reverie.agents.stopping import NonFiniteError
from reverie.agents.trainer import train
from reverie.envs.specs import EnvSpec
from reverie.world_models.monitor import ema_distance, spread, thinned, variance_spread
from reverie.world_models.ops import categorical_kl, sequence_mask, unimix
from reverie.world_models.spr import to_planes

GATES = {"mudreamer": MUDREAMER, "spr": SPR, "act_jepa": ACT_JEPA + ONE_TASK}
SEEDS = (3, 4)
ONE = (Gate("health/x", above=1.0),)


def judged(monitor: CollapseMonitor, *values: float) -> list[list[str]]:
    return [monitor.look(n, {"health/x": v}, judge=True) for n, v in enumerate(values)]


# alarms


def test_an_alarm_needs_two_looks_and_so_does_its_end() -> None:
    monitor = CollapseMonitor(ONE)
    told = judged(monitor, 2.0, 0.5, 2.0, 0.5, 0.4)
    assert [len(lines) for lines in told] == [0, 0, 0, 0, 1], "one look is no alarm"
    assert told[-1] == ["collapse? health/x 0.4, expected more than 1.0"]
    assert monitor.status()["alarms"] == ["health/x 0.4, expected more than 1.0"]
    told = judged(monitor, 0.3, 2.0, 0.2, 2.0, 3.0)
    assert [len(lines) for lines in told] == [0, 0, 0, 0, 1]
    assert told[-1] == ["health/x 3 is healthy again"] and monitor.alarms == {}


def test_not_a_number_is_a_breach_and_what_is_not_judged_is_not_remembered() -> None:
    monitor = CollapseMonitor(ONE)
    judged(monitor, float("nan"), float("nan"))
    assert "health/x" in monitor.alarms
    assert monitor.look(9, {"health/x": 0.0, "other": 1.0}, judge=False) == []
    assert monitor.status() == {"update": 9, "alarms": None, "health/x": 0.0}
    assert judged(monitor, 0.0) == [[]], "the streak began anew"


def test_nothing_is_known_of_alarms_before_two_looks_were_judged() -> None:
    monitor = CollapseMonitor(ONE)
    assert monitor.status()["alarms"] is None
    judged(monitor, 0.5)
    assert monitor.known() is None, "one look cannot alarm, so that none says nothing"
    other = CollapseMonitor(ONE)
    other.load_state_dict(monitor.state_dict())
    judged(other, 2.0)
    assert other.known() == []
    other.look(5, {"health/x": 2.0}, judge=False)
    assert other.known() is None


@pytest.mark.parametrize(("judged_before", "alarms"), [(True, []), (False, None)])
def test_states_without_a_count_of_judgements_are_read(
    judged_before: bool, alarms: list[str] | None
) -> None:
    state = CollapseMonitor(ONE).state_dict()
    del state["judgements"]
    monitor = CollapseMonitor(ONE)
    monitor.load_state_dict(state | {"judged": judged_before})
    assert monitor.known() == alarms


def test_a_monitor_continues_where_it_was_saved() -> None:
    monitor, other = CollapseMonitor(ONE), CollapseMonitor(ONE)
    judged(monitor, 0.5)
    other.load_state_dict(monitor.state_dict())
    assert judged(other, 0.5) == judged(monitor, 0.5) != [[]]
    assert other.state_dict() == monitor.state_dict()


def test_every_family_has_gates_and_sigreg_its_own() -> None:
    for name, size in (("mudreamer", "S"), ("dreamerv3", "S"), ("spr", "S"), ("bbf", "S")):
        cfg = resolve({"agent": name, "size": size, "task": "atari/pong"})
        assert gates(cfg) == (SPR if name in ("spr", "bbf") else MUDREAMER)
    own = {"agent": "act-jepa", "task": "metaworld/six"}
    names = {gate.name for gate in gates(resolve(own), tasks=6)}
    assert {"health/target_std", "health/task_std", "health/loss_ratio"} < names
    guarded = resolve(own | {"act_jepa": {"model": {"guard": "sigreg"}}})
    names = {gate.name for gate in gates(guarded, tasks=6)}
    assert "health/sigreg" in names and "health/target_std" not in names


# measurements


def test_spread_tells_a_cloud_from_a_point() -> None:
    cloud = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    alive = {name: float(value) for name, value in spread(cloud).items()}
    dead = {name: float(value) for name, value in spread(1.0 + 1e-6 * cloud).items()}
    assert alive["target_std"] > 0.9 and dead["target_std"] < 1e-5
    assert alive["target_cosine"] < 0.2 and dead["target_cosine"] > 0.9999
    assert alive["rank"] > 7.5 and dead["rank"] < 1.1


def test_thinned_keeps_even_places() -> None:
    assert thinned(torch.arange(256)).tolist() == list(range(256))
    assert thinned(torch.arange(600)).tolist() == list(range(0, 600, 3))


def test_variance_spread_is_that_of_the_widest_batch_norm() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert variance_spread(module) == 0.0 and variance_spread(nn.Linear(2, 2)) is None
    assert isinstance(module[2].running_var, torch.Tensor)
    module[2].running_var.copy_(torch.tensor([0.01, 1.0, 10.0]))
    torch.testing.assert_close(variance_spread(module), torch.tensor(3.0))


def test_ema_distance_is_relative_to_the_source() -> None:
    source, target = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    source.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    target.weight.data.copy_(torch.tensor([[3.0, 5.0]]))
    torch.testing.assert_close(ema_distance(target, source), torch.tensor(0.2))


# whole agents, on seeds that no threshold was chosen on


def looks(kind: str, folder: Path, **own: Any) -> list[Look]:
    if kind == "act_jepa":
        return collapse_worlds.act_jepa(folder, **own)
    found: list[Look] = getattr(collapse_worlds, kind)(**own)
    return found


def alarms(kind: str, found: list[Look]) -> set[str]:
    """Those at the end, from the last three looks."""
    monitor = CollapseMonitor(GATES[kind])
    for update, look in enumerate(found[-3:]):
        monitor.look(update, look, judge=True)
    return set(monitor.alarms)


@pytest.mark.slow
@pytest.mark.learn
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", GATES)
def test_healthy_runs_are_silent_and_forced_collapses_alarm(
    kind: str, seed: int, tmp_path: Path
) -> None:
    healthy = looks(kind, tmp_path, seed=seed)
    assert alarms(kind, healthy) == set(), healthy[-1]
    forced = FORCED[kind] | ({"q_scale": 0.0} if kind == "spr" else {})
    collapsed = looks(kind, tmp_path / "forced", seed=seed, **forced)
    assert len(alarms(kind, collapsed)) >= 2, collapsed[-1]
    last, sound = collapsed[-1], healthy[-1]
    assert last["health/target_std"] < 0.3 * sound["health/target_std"]
    assert last["health/target_cosine"] > sound["health/target_cosine"]


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("kind", GATES)
def test_fault_17_constant_observations_raise_alarms(kind: str, tmp_path: Path) -> None:
    found = looks(kind, tmp_path, seed=1, constant=True, updates=300)
    assert len(alarms(kind, found)) >= 2, found[-1]


@pytest.mark.slow
@pytest.mark.fault
def test_fault_17_a_collapse_without_batch_norm_raises_alarms(tmp_path: Path) -> None:
    own = FORCED["mudreamer"] | {"enc_norm": "ln"}
    found = looks("mudreamer", tmp_path, seed=1, updates=300, **own)
    assert len(alarms("mudreamer", found)) >= 2, found[-1]


# what forces a collapse


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_equal_weights_of_both_kl_halves_are_a_kl_without_stop_gradient() -> None:
    model = tiny_models.model(replace(tiny_models.TINY, free_nats=0.0, **FORCED["mudreamer"]))
    rows, noise = tiny_models.window_rows(), model.draw_noise(3, 6)
    window = model.window(rows, noise)
    found = gradients(model, model.total_loss(model.losses(rows, window)))
    window = model.window(rows, noise)
    posterior = unimix(window.latents.logits, model.cfg.unimix)
    expected = gradients(model, categorical_kl(posterior, window.prior_prob).mean())
    assert expected.keys() and expected.keys() <= found.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected.get(name, torch.zeros_like(value)), msg=name)


def test_online_targets_carry_the_gradient_of_both_sides() -> None:
    plain = with_model(replace(CFG, augment=AugmentConfig(0, 0.0), q_scale=0.0), target="online")
    player, rows = agent(plain), dict(transitions().items())
    player._begin_update()
    noise = player.draw_noise()
    rows["priority"] = torch.ones_like(rows["priority"])
    learned = player._losses(rows, noise, player.head_noise, player._schedule)
    found = gradients(player.model, learned.loss)
    model, planes = player.model, to_planes(rows["image"]).float() / 255.0
    guess = model.predict(model.online.latent(planes[:, 0]), rows["action"], train=True)
    target = model.target_projection(planes[:, 1:-1].flatten(0, 1)).view(guess.shape)
    assert target.requires_grad
    unit = [F.normalize(side, dim=-1, eps=1e-3) for side in (guess, target)]
    distance = (unit[0] - unit[1]).square().sum(-1)
    mask = sequence_mask(rows["is_last"][:, : guess.shape[1] + 1])
    loss = plain.model.spr_scale * (mask * distance).mean()
    torch.testing.assert_close(learned.loss, loss)
    expected = gradients(model, loss)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_without_the_action_loss_no_policy_is_trained() -> None:
    cfg = small_imitator.with_model(w_action=0.0)
    player = small_imitator.agent(cfg)
    player.update(small_imitator.batch_for(cfg))
    grads = [p.grad for p in player.model.policy.parameters()]
    assert grads and all(g is None or not g.any() for g in grads)
    assert any(p.grad is not None and p.grad.any() for p in player.model.encoder.parameters())


# overflown models


def overflown(kind: str, folder: Path) -> tuple[Any, Any, tuple[int, int]]:
    """An agent whose weights have left float32's range, its data and the shape of a batch."""
    shape = (8, 6)
    if kind == "mudreamer":
        spec = EnvSpec("test/grid", 5, True, (16, 16, 1))
        built: Any = MuDreamer(spec, collapse_worlds.MUDREAMER, seed=0, batch_shape=shape)
        data: Any = Replay(replay_schema(spec), num_envs=1, capacity=1500)
        collapse_worlds.fill(data, 16, seed=0, constant=False)
    elif kind == "spr":
        built, data = agent(CFG), filled_replay()
    else:
        data = small_imitator.walks(folder)
        built = small_imitator.walker(data)
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.fill_(torch.inf)
    return built, data, shape


@pytest.mark.parametrize("kind", GATES)
def test_an_examination_of_an_overflown_model_breaches_gates(kind: str, tmp_path: Path) -> None:
    built, data, shape = overflown(kind, tmp_path)
    found = built.examine(data, np.random.default_rng(0), shape)
    wrong = [gate.name for gate in GATES[kind] if gate.breach(float(found[gate.name]))]
    assert wrong, found
    assert found["health/top_share"].isnan() and found["health/rank"].isnan()


# what a look costs


def share_of_work(learner: Any, data: Any, shape: tuple[int, int]) -> float:
    """Operations of a look over those of the updates between two of them."""
    counts = []
    rng = np.random.default_rng(0)
    for call in (learner.learn_from, learner.examine):
        with FlopCounterMode(display=False) as counter:
            call(data, rng, shape)
        counts.append(counter.get_total_flops())
        learner.model.requires_grad_(False)  # the counter trips over leaves in no-grad mode
    return float(counts[1] / counts[0] / TrainConfig().monitor_every)


def test_a_look_is_less_than_a_hundredth_of_the_work_between_two(tmp_path: Path) -> None:
    """With the batches of the papers."""
    spec = EnvSpec("test/grid", 5, True, (16, 16, 1))
    dreamer = MuDreamer(spec, collapse_worlds.MUDREAMER, seed=0, batch_shape=(16, 64))
    replay = Replay(replay_schema(spec), num_envs=1, capacity=1500)
    collapse_worlds.fill(replay, 16, seed=0, constant=False)
    assert 0 < share_of_work(dreamer, replay, (16, 64)) < 0.002
    assert 0 < share_of_work(agent(CFG), filled_replay(), (B, 1)) < 0.01 * 32 / B
    windows = small_imitator.walks(tmp_path, episodes=48)
    assert len(windows) > latent_health.MOST
    shares = [share_of_work(small_imitator.walker(windows), windows, (n, 6)) for n in (128, 64)]
    assert 0 < shares[0] < 0.01
    assert shares[1] == pytest.approx(shares[0], rel=0.01), "half the updates' work, half the look"


# in a run


def collapsing(run: Path, **own: Any) -> Any:
    tree = {
        "agent": "mudreamer",
        "task": "toy/dot",
        "run": str(run),
        "train": {"monitor_every": 3, "monitor_from": 3, **own},
        "mudreamer": {"model": {"kl_dyn": 1.0, "kl_rep": 1.0, "pred_scale": 0.0}},
    }
    return resolve(tree, configs=["debug"])


def test_a_run_shows_its_alarms_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(collapsing(tmp_path)) == 0
    health = read_status(tmp_path)["health"]
    assert health["alarms"] and "health/information" in health
    rows = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "health/alarms" in r]
    assert rows[-1]["health/alarms"] == len(health["alarms"])
    looks = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "health/information" in r]
    assert "health/alarms" not in looks[0] and rows == looks[1:], "the first look knows of none"
    shown = capsys.readouterr().out
    assert "collapse? health/" in shown and "| alarms " in shown
    recorded = (tmp_path / "metrics.jsonl").read_text()
    assert train(collapsing(tmp_path)) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == recorded, "the last look was saved"


def test_looking_changes_nothing_that_is_learned(tmp_path: Path) -> None:
    states = []
    for every in (1, 0):
        run = tmp_path / str(every)
        assert train(collapsing(run, monitor_every=every, steps=96)) == 0
        states.append(final_state(run)["agent"])
        rows = [r for r in read_jsonl(run / "metrics.jsonl") if "health/information" in r]
        assert len(rows) == (final_state(run)["updates"] if every else 1)
        known = read_status(run)["health"]["alarms"] is not None
        assert known == ("health/alarms" in rows[-1]) == bool(every)
    assert_same(*states)


def test_a_run_ends_where_that_is_asked_for_and_goes_on_when_told(tmp_path: Path) -> None:
    for _ in range(2):  # the second call remembers
        with pytest.raises(CollapseError, match=r"at update 6: .*--train\.monitor warn"):
            train(collapsing(tmp_path, monitor="stop"))
        assert final_state(tmp_path)["updates"] == 6
    assert read_status(tmp_path)["state"] == "failed"
    assert train(collapsing(tmp_path, monitor="off", monitor_every=5, monitor_from=9)) == 0
    assert read_status(tmp_path)["health"]["alarms"] is None


def test_a_run_whose_model_has_overflown_ends_by_the_guard_of_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(spec: EnvSpec, cfg: Any) -> Any:
        built: Any = build_agent(spec, cfg)
        next(built.model.encoder.parameters()).data.fill_(3e38)
        return built

    monkeypatch.setattr(trainer, "build_agent", build)
    own = {"monitor_every": 1, "max_nonfinite": 6, "log_every": 1, "eval_episodes": 0}
    with pytest.raises(NonFiniteError, match="6 updates in a row"):
        train(collapsing(tmp_path, **own))
    rows = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "health/alarms" in r]
    assert rows[-1]["health/alarms"] > 0
