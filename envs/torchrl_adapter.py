"""One of our environments as a TorchRL `EnvBase`; the only module here that imports torchrl.

For several environments hand this class to TorchRL's `SerialEnv` or `ParallelEnv`: TorchRL resets
single slots between steps, which a lock-step `VecEnv` does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase

from reverie.envs.single import Env, Obs


class TorchRLEnv(EnvBase):  # type: ignore[misc]
    """Wraps a single environment; "done" is our is_last, "terminated" our is_terminal."""

    def __init__(self, env: Env, *, seed: int = 0) -> None:
        super().__init__(device="cpu", batch_size=torch.Size([]))
        self._inner = env
        self._rng = np.random.default_rng(seed)
        spec = env.spec
        observation: dict[str, Any] = {}
        if spec.image_shape is not None:
            observation["image"] = Bounded(0, 255, shape=spec.image_shape, dtype=torch.uint8)
        if spec.vector_size:
            observation["vector"] = Unbounded(shape=(spec.vector_size,), dtype=torch.float32)
        self.observation_spec = Composite(observation)
        self.action_spec = (
            OneHot(spec.action_size, dtype=torch.float32)
            if spec.discrete
            else Bounded(-1.0, 1.0, shape=(spec.action_size,), dtype=torch.float32)
        )
        self.reward_spec = Unbounded(shape=(1,), dtype=torch.float32)
        flag = Categorical(2, shape=(1,), dtype=torch.bool)
        self.done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), truncated=flag.clone()
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDictBase:
        obs = self._inner.reset(int(self._rng.integers(2**32)))
        return TensorDict(self._tensors(obs) | self._flags(False, False), batch_size=[])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        arrival = self._inner.step(tensordict["action"].numpy().astype(np.float32))
        data = self._tensors(arrival.obs) | self._flags(arrival.is_last, arrival.is_terminal)
        data["reward"] = torch.tensor([arrival.reward], dtype=torch.float32)
        return TensorDict(data, batch_size=[])

    def _set_seed(self, seed: int | None) -> None:
        self._rng = np.random.default_rng(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the wrapped environment."""
        if not self.is_closed:
            self._inner.close()
        super().close(raise_if_closed=raise_if_closed)

    @staticmethod
    def _tensors(obs: Obs) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(value.copy()) for key, value in obs.items()}

    @staticmethod
    def _flags(last: bool, terminal: bool) -> dict[str, torch.Tensor]:
        flags = {"done": last, "terminated": terminal, "truncated": last and not terminal}
        return {key: torch.tensor([value]) for key, value in flags.items()}
