"""Rollout, replay and update on one device: the world, the policy and the rows never leave it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reverie.agents.mudreamer import MuDreamer
from reverie.agents.replay.buffer import Replay, replay_schema
from reverie.agents.resolve import resolve
from reverie.envs.torch_vector import TensorStep, TorchDots

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_train_loop_on_one_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: TensorStep) -> None:
        raise AssertionError("a row left the device")

    monkeypatch.setattr(TensorStep, "to_host", leave)
    cfg = resolve({"task": "torch/dots", "size": "nano"}, configs=["debug"])
    env = TorchDots(4, seed=0, image_size=16, device=device, time_limit=7)
    agent = MuDreamer(env.spec, cfg.mudreamer, seed=0, device=device, batch_shape=(2, 8))
    replay = Replay(
        replay_schema(env.spec), num_envs=4, capacity=400, storage="device", device=device
    )
    before = [p.detach().clone() for p in agent.model.parameters()]
    row, carry = env.reset_tensors(), agent.initial_carry(4)
    action = torch.zeros(4, 2, device=device)
    metrics = {}
    for t in range(40):
        led_here = torch.where(row.is_first[:, None], 0.0, action)
        flags = {key: getattr(row, key) for key in ("is_first", "is_last", "is_terminal")}
        replay.add({**row.obs, "action": led_here, "reward": row.reward, **flags})
        carry, action = agent.act(carry, row.obs, row.is_first)
        row = env.step_tensors(action)
        if t % 10 == 9:
            batch = replay.sample(2, 8, np.random.default_rng(t))
            assert {value.device.type for value in batch.values()} == {device}
            metrics = agent.update(batch)
    assert float(metrics["nonfinite"]) == 0.0
    assert {value.device.type for value in metrics.values()} == {device}
    moved = [not torch.equal(a, b) for a, b in zip(before, agent.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    stored = replay.read(0, 40)
    assert stored["is_first"].sum(0).tolist() == [5, 5, 5, 5]
    assert not stored["action"][stored["is_first"]].any()
