"""Closed-form worlds: what an agent should find in them is known before it starts."""

from __future__ import annotations

import numpy as np

from reverie.envs.single import Arrival, Obs
from reverie.envs.specs import Array, EnvSpec

CHAIN_LENGTH, CHAIN_LIMIT = 6, 100
IDENTITY_STEPS = 20
ONES_STEPS = 10


class Counter:
    """Writes (seed, t, action) into every observation, so that any misplaced row shows itself.

    Reward t arrives with observation t. Episodes last `counter_length(seed)` steps and end in a
    termination for odd seeds, by a time limit for even ones.
    """

    def __init__(self, *, image_size: int = 16) -> None:
        assert image_size >= 8, f"the code needs 8 pixels in a line, found {image_size}"
        shape = (image_size, image_size, 3)
        self.spec = EnvSpec(
            "toy/counter", action_size=4, discrete=True, image_shape=shape, vector_size=4
        )
        self._shape = shape
        self._seed = self._time = 0

    def reset(self, seed: int) -> Obs:
        """Begin at t = 0."""
        self._seed, self._time = seed, 0
        return self._obs(0)

    def step(self, action: Array) -> Arrival:
        """Count one step."""
        self._time += 1
        last = self._time >= counter_length(self._seed)
        terminal = last and self._seed % 2 == 1
        return Arrival(self._obs(int(action.argmax())), float(self._time), last, terminal)

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self, action: int) -> Obs:
        image = np.full(self._shape, self._time * 16 % 256, np.uint8)
        image[0, :4, 0] = [self._seed >> shift & 255 for shift in (24, 16, 8, 0)]
        image[0, 4:7, 0] = [self._time >> 8 & 255, self._time & 255, action]
        code = [self._seed >> 16, self._seed & 0xFFFF, self._time, action]
        return {"image": image, "vector": np.array(code, np.float32)}


def counter_length(seed: int) -> int:
    """Return the number of steps of the counter's episode `seed`: 5 to 11."""
    return 5 + seed % 7


def counter_code(image: Array) -> tuple[int, int, int]:
    """Read (seed, t, action) back from one image of the counter."""
    code = [int(v) for v in image[0, :7, 0]]
    seed = code[0] << 24 | code[1] << 16 | code[2] << 8 | code[3]
    return seed, code[4] << 8 | code[5], code[6]


class Chain:
    """States 0..5 in a line, actions left and right; reward 1 and the end on reaching the last.

    A time limit cuts what never arrives, or an agent that stays at the wall is scored forever.
    """

    def __init__(self) -> None:
        self.spec = EnvSpec("toy/chain", action_size=2, discrete=True, vector_size=CHAIN_LENGTH)
        self._state = self._time = 0

    def reset(self, seed: int) -> Obs:
        """Begin anywhere but at the goal."""
        self._state, self._time = seed % (CHAIN_LENGTH - 1), 0
        return self._obs()

    def step(self, action: Array) -> Arrival:
        """Move left (0, stopping at the wall) or right (1)."""
        move = 1 if int(action.argmax()) == 1 else -1
        self._state = max(0, self._state + move)
        self._time += 1
        done = self._state == CHAIN_LENGTH - 1
        return Arrival(self._obs(), float(done), done or self._time >= CHAIN_LIMIT, done)

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Obs:
        return {"vector": np.eye(CHAIN_LENGTH, dtype=np.float32)[self._state]}


def chain_value(state: int, gamma: float) -> float:
    """Return the optimal value of a chain state: gamma^(d-1), d steps before the goal; 0 there."""
    distance = CHAIN_LENGTH - 1 - state
    return 0.0 if distance == 0 else float(gamma ** (distance - 1))


class Ones:
    """Reward 1 forever, cut by a time limit: the value is 1/(1-gamma) if time-outs are handled."""

    def __init__(self) -> None:
        self.spec = EnvSpec("toy/ones", action_size=1, discrete=False, vector_size=1)
        self._time = 0

    def reset(self, seed: int) -> Obs:
        """Begin; all episodes look the same."""
        self._time = 0
        return {"vector": np.ones(1, np.float32)}

    def step(self, action: Array) -> Arrival:
        """Pay 1."""
        self._time += 1
        return Arrival({"vector": np.ones(1, np.float32)}, 1.0, self._time >= ONES_STEPS)

    def close(self) -> None:
        """Nothing to free."""


class Identity:
    """One of four quadrants lights up; naming it pays 1. Blind play earns a quarter of the best."""

    def __init__(self, *, image_size: int = 16) -> None:
        assert image_size >= 2 and image_size % 2 == 0, f"needs an even size, found {image_size}"
        shape = (image_size, image_size, 3)
        self.spec = EnvSpec("toy/identity", action_size=4, discrete=True, image_shape=shape)
        self._half = image_size // 2
        self._targets: Array = np.zeros(0, np.int64)
        self._time = 0

    def reset(self, seed: int) -> Obs:
        """Draw the quadrants of a whole episode."""
        self._targets = np.random.default_rng(seed).integers(0, 4, IDENTITY_STEPS + 1)
        self._time = 0
        return self._obs()

    def step(self, action: Array) -> Arrival:
        """Pay 1 for the quadrant that was lit when the action was chosen."""
        reward = float(action.argmax() == self._targets[self._time])
        self._time += 1
        return Arrival(self._obs(), reward, self._time >= IDENTITY_STEPS)

    def close(self) -> None:
        """Nothing to free."""

    def _obs(self) -> Obs:
        row, column = divmod(int(self._targets[self._time]), 2)
        image = np.zeros((2 * self._half, 2 * self._half, 3), np.uint8)
        y, x = row * self._half, column * self._half
        image[y : y + self._half, x : x + self._half] = 255
        return {"image": image}
