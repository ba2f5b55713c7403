"""N environments stepped together: episode bookkeeping, failure budget, and the in-process form."""

from __future__ import annotations

import logging
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import numpy as np

from reverie.envs.settings import EnvSettings
from reverie.envs.single import Arrival, Ctor, Env, Obs, Purpose, episode_seed
from reverie.envs.specs import Array, EnvError, EnvSpec, Step

MAX_FAILURES = 5
FAILURE_WINDOW = 10_000
"""An environment that fails more than MAX_FAILURES times in this many vector steps is given up."""

log = logging.getLogger(__name__)


class FailureBudget:
    """Counts failures in a sliding window of vector steps and gives up when there are too many."""

    def __init__(self, max_failures: int = MAX_FAILURES, window: int = FAILURE_WINDOW) -> None:
        self._max = max_failures
        self._window = window
        self._at: deque[int] = deque()
        self._logged: set[str] = set()
        self.steps = 0
        self.failures = 0

    def record(self, task: str, where: str, cause: str) -> None:
        """Log a failure (its cause once); raises `EnvError` when the budget is spent."""
        self.failures += 1
        self._at.append(self.steps)
        while self._at[0] <= self.steps - self._window:
            self._at.popleft()
        if len(self._at) > self._max:
            raise EnvError(
                f"{task} failed {len(self._at)} times within {self._window} steps (at most "
                f"{self._max} are survived). Repair the environment; last cause, in {where}:\n"
                f"{cause}"
            )
        first = cause.strip().splitlines()[-1] if cause.strip() else "no cause given"
        if first in self._logged:
            log.warning("%s failed again in %s: %s", task, where, first)
            return
        self._logged.add(first)
        log.warning("%s failed in %s; its episode is marked interrupted:\n%s", task, where, cause)


class SlotVec(ABC):
    """Episode bookkeeping of every vector environment: NEXT_STEP auto-reset with keyed seeds.

    `_advance` and `_replay` leave `is_first` False but where the next life of a game begins.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        *,
        seed: int,
        purpose: Purpose,
        settings: EnvSettings | None = None,
    ) -> None:
        assert num_envs > 0, f"expected at least one environment, found {num_envs}"
        self.spec = spec
        self.settings = settings or EnvSettings(spec.task, action_repeat=spec.action_repeat)
        self.num_envs = num_envs
        self.episodes: Array = np.zeros(num_envs, np.int64)
        self._seed = seed
        self._purpose: Purpose = purpose
        self._ended: Array | None = None
        self._retired: Array = np.zeros(num_envs, np.bool_)

    def reset(self) -> Step:
        """Begin episode 0 in every slot."""
        nothing = np.zeros((0, self.spec.action_size), np.float32)
        return self.restore([0] * self.num_envs, [nothing] * self.num_envs)

    def step(self, action: Array) -> Step:
        """Advance by float32 actions [N, A]; a slot whose last row was `is_last` resets instead."""
        if self._ended is None:
            raise EnvError(f"{self.spec.task}: expected `reset` or `restore` before `step`.")
        resets = self._ended
        self.episodes = self.episodes + resets
        seeds = [self._episode_seed(i) if resets[i] else None for i in range(self.num_envs)]
        return self._row(self._advance(seeds, self._checked(action)), resets.copy())

    def retire(self, slot: int) -> None:
        """Nobody reads this slot any more until `reset` or `restore`: it need not begin anew."""
        self._retired[slot] = True

    def restore(self, episodes: Sequence[int], actions: Sequence[Array]) -> Step:
        """Begin `episodes[i]` in slot i, replay `actions[i]` [L_i, A], return the row reached."""
        if len(episodes) != self.num_envs or len(actions) != self.num_envs:
            raise EnvError(
                f"{self.spec.task}: expected {self.num_envs} episodes and action sequences, found "
                f"{len(episodes)} and {len(actions)}."
            )
        self.episodes = np.asarray(episodes, np.int64).copy()
        self._retired[:] = False
        seeds = [self._episode_seed(i) for i in range(self.num_envs)]
        replayed = [self._checked_log(a) for a in actions]
        first = np.array([len(a) == 0 for a in replayed])
        return self._row(self._replay(seeds, replayed), first)

    @abstractmethod
    def close(self) -> None:
        """Free everything; safe to call twice."""

    @abstractmethod
    def _advance(self, seeds: Sequence[int | None], action: Array) -> Step:
        """Reset the slots that have a seed and step the others."""

    @abstractmethod
    def _replay(self, seeds: Sequence[int], actions: Sequence[Array]) -> Step:
        """Reset every slot and replay its actions."""

    def _row(self, row: Step, begun: Array) -> Step:
        # a lost life gives is_last and then is_first within one episode
        row.is_first = row.is_first | begun
        self._ended = row.is_last & ~row.info.get("life_lost", np.zeros(self.num_envs, np.bool_))
        return row

    def _episode_seed(self, slot: int) -> int:
        return episode_seed(self._seed, self._purpose, slot, int(self.episodes[slot]))

    def _checked(self, action: Array) -> Array:
        shape = (self.num_envs, self.spec.action_size)
        if action.shape != shape or action.dtype != np.float32:
            raise EnvError(
                f"{self.spec.task}: expected float32 actions {shape}, found {action.dtype} "
                f"{action.shape}."
            )
        if not np.isfinite(action).all():
            raise EnvError(f"{self.spec.task}: expected finite actions, found NaN or infinity.")
        return action

    def _checked_log(self, actions: Array) -> Array:
        actions = np.asarray(actions, np.float32)
        if actions.size == 0:
            return np.zeros((0, self.spec.action_size), np.float32)
        if actions.ndim != 2 or actions.shape[1] != self.spec.action_size:
            raise EnvError(
                f"{self.spec.task}: expected replayed actions [L, {self.spec.action_size}], found "
                f"{actions.shape}."
            )
        return actions


def stack(arrivals: Sequence[Arrival]) -> Step:
    """Copy N arrivals into one row; `is_first` is left to the caller."""
    return Step(
        obs={k: np.stack([a.obs[k] for a in arrivals]) for k in arrivals[0].obs},
        reward=np.array([a.reward for a in arrivals], np.float32),
        is_first=np.zeros(len(arrivals), np.bool_),
        is_last=np.array([a.is_last for a in arrivals], np.bool_),
        is_terminal=np.array([a.is_terminal for a in arrivals], np.bool_),
        info={
            "interrupted": np.array([a.interrupted for a in arrivals], np.bool_),
            "success": np.array([a.success and not a.interrupted for a in arrivals], np.bool_),
        },
    )


def replay_one(env: Env, seed: int, actions: Array) -> Arrival:
    """Begin the episode of `seed` and replay `actions` [L, A]."""
    arrival = Arrival(env.reset(seed))
    for action in actions:
        if arrival.is_last:
            raise EnvError(
                f"{env.spec.task}: the replayed episode ended before its logged actions did. "
                "Expected the environment and the settings that wrote the log."
            )
        arrival = env.step(action)
    return arrival


class InlineVec(SlotVec):
    """Environments of this very process: no overhead, but a hang or a crash takes the run along."""

    def __init__(
        self,
        ctor: Ctor,
        num_envs: int,
        *,
        seed: int,
        purpose: Purpose = "train",
        settings: EnvSettings | None = None,
        budget: FailureBudget | None = None,
    ) -> None:
        self._ctor = ctor
        self._envs: list[Env | None] = []
        try:
            for _ in range(num_envs):
                self._envs.append(ctor())
        except BaseException:
            self.close()
            raise
        first = self._envs[0]
        assert first is not None
        super().__init__(first.spec, num_envs, seed=seed, purpose=purpose, settings=settings)
        self._budget = budget or FailureBudget()
        self._last: list[Obs] = [{} for _ in range(num_envs)]

    def close(self) -> None:
        """Close every environment."""
        envs, self._envs = self._envs, []
        for env in envs:
            if env is not None:
                env.close()

    def _advance(self, seeds: Sequence[int | None], action: Array) -> Step:
        self._budget.steps += 1
        rows = [
            self._try_step(i, action[i]) if seed is None else self._start(i, seed)
            for i, seed in enumerate(seeds)
        ]
        return self._keep(rows)

    def _replay(self, seeds: Sequence[int], actions: Sequence[Array]) -> Step:
        return self._keep([self._start(i, s, actions[i]) for i, s in enumerate(seeds)])

    def _keep(self, rows: list[Arrival]) -> Step:
        self._last = [row.obs for row in rows]
        return stack(rows)

    def _try_step(self, slot: int, action: Array) -> Arrival:
        env = self._envs[slot]
        assert env is not None, "a slot without an environment was not reset"
        try:
            return env.step(action)
        except EnvError:
            raise
        except Exception:
            self._lose(slot)
            return Arrival(self._last[slot], is_last=True, interrupted=True)

    def _start(self, slot: int, seed: int, actions: Array | None = None) -> Arrival:
        while True:
            try:
                env = self._envs[slot]
                if env is None:
                    env = self._envs[slot] = self._ctor()
                return (
                    Arrival(env.reset(seed))
                    if actions is None
                    else (replay_one(env, seed, actions))
                )
            except EnvError:
                raise
            except Exception:
                self._lose(slot)

    def _lose(self, slot: int) -> None:
        cause = traceback.format_exc()
        env, self._envs[slot] = self._envs[slot], None
        if env is not None:
            try:
                env.close()
            except Exception:
                log.debug("closing a failed environment failed as well", exc_info=True)
        self._budget.record(self.spec.task, f"slot {slot}", cause)
