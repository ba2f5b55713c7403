"""The SPR family over a run: schedules, resets, and how it acts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import assert_same, clone_tree
from small_spr import CFG, SHARED, agent, transitions, weights
from torch import Tensor

from reverie.agents.seeding import torch_seed
from reverie.agents.spr_config import PriorityConfig, ResetConfig, ReturnConfig
from reverie.agents.spr_schedule import horizon, importance_exponent, reset_due, since_reset

# schedules


def test_horizon_follows_the_published_points() -> None:
    cfg = ReturnConfig(n_step=3, n_step_start=10, gamma=0.997, gamma_start=0.97)
    points = {0: (10, 0.97), 1_000: (9, 0.9762), 2_500: (7, 0.9831), 5_000: (5, 0.9905)}
    points |= {7_500: (4, 0.9947), 10_000: (3, 0.997), 30_000: (3, 0.997)}
    for updates, (n_step, gamma) in points.items():
        for begin in (0, 40_000, 120_000):
            found = horizon(cfg, ResetConfig(every=40_000), begin + updates, 196_000)
            assert found[0] == n_step and abs(found[1] - gamma) < 1e-4, (updates, found)
    # no reset in the last interval: the horizon stays long
    assert horizon(cfg, ResetConfig(every=40_000), 160_000, 196_000) == (3, 0.997)
    assert horizon(ReturnConfig(), ResetConfig(), 0, 100) == (10, 0.99)


@pytest.mark.parametrize(
    ("per_step", "resets", "last_step"), [(2, 3, 60_000), (8, 18, 90_000), (16, 38, 95_000)]
)
def test_resets_fall_where_published(per_step: int, resets: int, last_step: int) -> None:
    total, cfg = 98_000 * per_step, ResetConfig(every=40_000)
    due = [u for u in range(0, total, 1_000) if reset_due(cfg, u, total)]
    assert len(due) == resets and due[0] == 40_000
    assert due[-1] / per_step == last_step
    assert since_reset(cfg, due[-1], total) == 0 and since_reset(cfg, total, total) < 80_000
    assert not any(reset_due(ResetConfig(), u, total) for u in (0, 40_000))


def test_importance_exponent_is_linear_over_the_run() -> None:
    cfg = PriorityConfig()
    assert [importance_exponent(cfg, u, 100) for u in (0, 50, 100, 200)] == [0.4, 0.7, 1.0, 1.0]


def test_a_reset_shrinks_perturbs_and_forgets() -> None:
    cfg = replace(SHARED, reset=ResetConfig(every=3, keep=0.8))
    player = agent(cfg, updates=9)
    for seed in range(3):
        player.update(transitions(SHARED, seed=seed))
    before = weights(player)
    player._reset(1)
    after = weights(player)
    assert all(float(t.abs().sum()) == 0 for t in player._optimisers["network"].moments())
    twin = agent(cfg, updates=9)
    fresh = twin._fresh_model(torch_seed(0, "reset", 1, 0)).state_dict()
    other = twin._fresh_model(torch_seed(0, "reset", 1, 1)).state_dict()
    for name in before:
        source = other if name.startswith("q_target") else fresh
        key = name.removeprefix("q_target_")
        kept = 0.8 if key.startswith(("encoder", "transition")) else 0.0
        torch.testing.assert_close(after[name], kept * before[name] + (1 - kept) * source[key])
    assert not torch.equal(fresh["encoder.convs.0.weight"], other["encoder.convs.0.weight"])


def test_resets_come_by_themselves_and_not_in_the_last_interval() -> None:
    player = agent(replace(SHARED, reset=ResetConfig(every=3)), updates=11)
    heads = []
    for seed in range(11):
        old = player.model.head.value.weight.detach().clone()
        player.update(transitions(SHARED, seed=seed))
        change = (player.model.head.value.weight.detach() - old).abs().mean()
        heads.append(float(change) > 1e-2)
    assert [i for i, big in enumerate(heads) if big] == [3, 6]


# acting


def rows(seed: int = 0, count: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"image": torch.randint(0, 256, (count, 36, 36, 1), generator=g, dtype=torch.uint8)}


def test_stack_of_the_carry_begins_with_the_episode() -> None:
    player = agent()
    carry = player.initial_carry(2)
    first = torch.tensor([True, True])
    for t in range(5):
        carry, _ = player.act(carry, rows(t), first)
        first = torch.tensor([False, t == 2])
    frames = carry["frames"]
    assert frames.shape == (2, 4, 36, 36, 1)
    for back in range(4):
        assert torch.equal(frames[0, 3 - back], rows(4 - back)["image"][0])
    assert torch.equal(frames[1, 3], rows(4)["image"][1])
    assert torch.equal(frames[1, 2], rows(3)["image"][1]) and not frames[1, :2].any()


def test_training_explores_by_noise_and_evaluation_by_epsilon() -> None:
    player = agent(replace(CFG, epsilon_eval=0.0))
    carry, first = player.initial_carry(64), torch.ones(64, dtype=torch.bool)
    obs = rows(count=64)

    def actions(mode: Any) -> Tensor:
        return player.act(carry, obs, first, mode=mode)[1]

    assert torch.equal(actions("eval"), actions("eval"))
    noisy = actions("train")
    assert torch.equal(noisy, actions("train")), "noise changes with updates, not with steps"
    player.head_noise.mul_(20.0)
    assert not torch.equal(noisy, actions("train"))
    random = agent(replace(CFG, epsilon_eval=1.0))
    counts = random.act(random.initial_carry(64), obs, first, mode="eval")[1].sum(0)
    assert (counts > 8).all(), "every action is drawn"
    again = random.act(random.initial_carry(64), obs, first, mode="eval")[1].sum(0)
    assert torch.equal(counts, again), "two evaluations of the same weights are the same"


def test_acting_leaves_learning_untouched() -> None:
    player = agent()
    before = clone_tree(player.state_dict())
    player.act(player.initial_carry(2), rows(), torch.ones(2, dtype=torch.bool))
    assert_same(before, player.state_dict())


def test_target_network_acts_where_it_is_asked_to() -> None:
    player = agent(replace(SHARED, epsilon_eval=0.0))
    assert player.model.q_target_head is not None
    with torch.no_grad():
        player.model.q_target_head.advantage.bias.zero_()
        player.model.q_target_head.advantage.weight.zero_()
        bias = player.model.q_target_head.advantage.bias.view(3, -1)
        bias[2, -1] = 50.0
    first = torch.ones(2, dtype=torch.bool)
    action = player.act(player.initial_carry(2), rows(), first, mode="eval")[1]
    assert action.argmax(1).tolist() == [2, 2]
