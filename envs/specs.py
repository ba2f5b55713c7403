"""What an environment promises: its sizes, and the row that arrives at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class EnvError(RuntimeError):
    """An environment broke its contract, died, or could not be built; the message names the fix."""


@dataclass(frozen=True)
class EnvSpec:
    """Sizes and units of one task, as agents and reports need them."""

    task: str
    """Registry name, "suite/task"."""
    action_size: int
    """A: number of discrete actions, or of continuous dimensions in [-1, 1]."""
    discrete: bool
    """True: actions are one-hot rows of length A."""
    image_shape: tuple[int, int, int] | None = None
    """(height, width, channels) of the uint8 image under the key "image"; None: no image."""
    vector_size: int = 0
    """Length of the float32 vector under the key "vector"; 0: none."""
    proprio_size: int = 0
    """Leading entries of the vector that belong to the robot itself; 0: no such split."""
    action_repeat: int = 1
    """Simulator steps per agent step; frames = agent steps x action_repeat."""
    protocol: str = ""
    """What a score must be reported with: render profile, stickiness, distractor."""
    has_success: bool = False
    """True: info["success"] says whether the task was solved; without it no row is a success."""


@dataclass
class Step:
    """One row for each of N slots: what arrived together (batch of `obs_t, reward_t, flags_t`).

    `reward` was received on arriving at `obs`. `is_terminal` says that the value is zero after
    this row; a time limit sets `is_last` alone. Arrays belong to the receiver: an environment
    never writes into them again.
    """

    obs: dict[str, Array]
    """"image": uint8 [N, height, width, channels]; "vector": float32 [N, vector_size]."""
    reward: Array
    """float32 [N]; 0 at is_first."""
    is_first: Array
    """bool [N]; rows that no action of the agent led to: a reset, or the next life of a game."""
    is_last: Array
    """bool [N]; the next call to `step` gives this slot's `is_first` and ignores its action."""
    is_terminal: Array
    """bool [N]; implies is_last."""
    info: dict[str, Array] = field(default_factory=dict)
    """Extra [N] arrays: "interrupted" after a worker was lost; "success" where the task was found
    solved, never in an interrupted row; "life_lost" where `is_last` ends a life and not the game,
    so that the episode goes on."""


class VecEnv(Protocol):
    """N environments of one task stepped together, with Gymnasium's NEXT_STEP auto-reset.

    Episode e of slot i is a function of (seed, purpose, i, e) and of the actions alone, so that
    `restore` can rebuild any moment by replaying the actions taken since the episode's start.
    """

    spec: EnvSpec
    num_envs: int
    episodes: Array
    """int64 [N]: index of the episode each slot is in."""

    def reset(self) -> Step:
        """Begin episode 0 in every slot."""
        ...

    def step(self, action: Array) -> Step:
        """Advance by float32 actions [N, A]; a slot whose last row was `is_last` resets instead.

        Where that row was "life_lost" as well, the episode goes on from its picture.
        """
        ...

    def restore(self, episodes: Sequence[int], actions: Sequence[Array]) -> Step:
        """Begin `episodes[i]` in slot i, replay `actions[i]` [L_i, A], return the row reached."""
        ...

    def retire(self, slot: int) -> None:
        """Nobody reads this slot any more until `reset` or `restore`: it need not begin anew."""
        ...

    def close(self) -> None:
        """Free processes and rendering contexts; safe to call twice."""
        ...
