"""Atari games through ALE's C++ vector environment, in colour or in one channel of brightness.

Minimal actions, raw rewards, 0 to 29 no-ops at reset, no FIRE there, maximum of the last two
frames, one frame per row: agents stack frames themselves. A step that ends the game repeats the
previous picture. By default actions are not sticky, a lost life ends nothing, and the view is the
64x64 colour one of DreamerV3; SPR's is `gray` at 84x84, with `life_loss` while it learns.

With `life_loss`, one frame gives two rows: the lost life (is_last, is_terminal), and on the next
call the start of the next life (is_first, no reward) with the same picture, for which nothing is
emulated and whose action is ignored. The game, and with it the index of the episode, goes on.
ALE is licensed under GPL-2.0 and only imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from reverie.envs.settings import EnvSettings
from reverie.envs.single import Purpose
from reverie.envs.specs import Array, EnvError, EnvSpec, Step
from reverie.envs.vector import SlotVec

ATARI_100K = (
    "alien amidar assault asterix bank_heist battle_zone boxing breakout chopper_command "
    "crazy_climber demon_attack freeway frostbite gopher hero jamesbond kangaroo krull "
    "kung_fu_master ms_pacman pong private_eye qbert road_runner seaquest up_n_down"
).split()

MAX_FRAMES = 108_000
"""Half an hour of play; the frame cap is a time limit, not a death."""

ROM_HELP = "Games come with ale-py >= 0.12.1: `pip install ale-py`."


def _ale(settings: EnvSettings, num_envs: int) -> Any:
    game = settings.task.partition("/")[2]
    try:
        import ale_py
        from ale_py import roms
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise EnvError(f"Expected ale-py, found none: {error}. {ROM_HELP}") from error
    known = [name for name in roms.get_all_rom_ids() if roms.get_rom_path(name) is not None]
    if game not in known:
        close = difflib.get_close_matches(game, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "`reverie tasks` lists games."
        raise EnvError(f"Expected an Atari game such as pong or ms_pacman, found {game!r}. {hint}")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return AtariVectorEnv(
        game,
        num_envs,
        img_height=settings.image_size,
        img_width=settings.image_size,
        grayscale=settings.gray,
        stack_num=1,
        frameskip=settings.action_repeat,
        noop_max=30,
        use_fire_reset=False,
        reward_clipping=False,
        repeat_action_probability=settings.sticky,
        full_action_space=False,
        max_num_frames_per_episode=MAX_FRAMES,
    )


def _spec(settings: EnvSettings, action_size: int) -> EnvSpec:
    size = settings.image_size
    view = f"{size}x{size} {'gray' if settings.gray else 'rgb'}"
    lives = "terminal" if settings.life_loss else "unused"
    return EnvSpec(
        task=settings.task,
        action_size=action_size,
        discrete=True,
        image_shape=(size, size, 1 if settings.gray else 3),
        action_repeat=settings.action_repeat,
        protocol=(
            f"sticky={settings.sticky:g},noops=0-29,actions=minimal,lives={lives},view={view}"
        ),
    )


class Moment(NamedTuple):
    """What the emulators of N slots say."""

    image: Array
    """uint8 [N, height, width, channels]."""
    reward: Array
    terminated: Array
    truncated: Array
    lives: Array
    frames: Array
    """[N]; since the start of the game; at a reset the number of no-ops that were drawn."""


def _moment(answer: Sequence[Any]) -> Moment:
    image, *outcome, info = answer
    picture = np.asarray(image)[:, 0]
    frames = np.asarray(info["episode_frame_number"], np.int64)
    nothing = np.zeros(len(picture), np.bool_)
    reward, terminated, truncated = outcome or (nothing, nothing, nothing)
    return Moment(
        picture if picture.ndim == 4 else picture[..., None],
        np.asarray(reward, np.float32),
        np.asarray(terminated, np.bool_),
        np.asarray(truncated, np.bool_),
        np.asarray(info["lives"], np.int64),
        frames,
    )


class Games:
    """N emulators: one vector of C++ threads, or N vectors of a single slot that can be held.

    ALE steps all slots of a vector at once; a slot stands still by leaving out its whole vector.
    """

    def __init__(self, settings: EnvSettings, num_envs: int, *, holdable: bool) -> None:
        self._alone = holdable
        count, width = (num_envs, 1) if holdable else (1, num_envs)
        self._vecs = [_ale(settings, width) for _ in range(count)]
        self._last: dict[int, Moment] = {}
        self.action_size = int(self._vecs[0].single_action_space.n)

    def step(self, chosen: Array, hold: Array) -> Moment:
        """Play int32 actions [N]; slots of `hold` [N] are left as they are if they can be."""
        if not self._alone:
            return self._joined({0: _moment(self._vecs[0].step(chosen))})
        no = np.zeros(1, np.bool_)
        still = {"reward": np.zeros(1, np.float32), "terminated": no, "truncated": no}
        return self._joined(
            {
                i: self._last[i]._replace(**still) if hold[i] else _moment(vec.step(chosen[[i]]))
                for i, vec in enumerate(self._vecs)
            }
        )

    def reset(self, mask: Array, seeds: Array) -> Moment:
        """Begin the games of `mask` [N], one seed each; the first reset has to take them all."""
        if not self._alone:
            options = None if mask.all() else {"reset_mask": mask}
            return self._joined({0: _moment(self._vecs[0].reset(seed=seeds, options=options))})
        slots = np.flatnonzero(mask).tolist()
        return self._joined(
            {i: _moment(self._vecs[i].reset(seed=seeds[[k]])) for k, i in enumerate(slots)}
        )

    def _joined(self, news: dict[int, Moment]) -> Moment:
        self._last |= news
        parts = [self._last[i] for i in range(len(self._vecs))]
        return Moment(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class AtariVec(SlotVec):
    """N games stepped by C++ threads.

    ALE resets ended games by itself without a seed. Each such slot is therefore reset once more
    through a mask, with the keyed seed of its episode; that reloads the game, so that nothing of
    the past is left in it.
    """

    def __init__(
        self, settings: EnvSettings, num_envs: int, *, seed: int, purpose: Purpose = "train"
    ) -> None:
        # after a lost life a slot waits for one call, while the others play on
        self._games: Games | None = Games(settings, num_envs, holdable=settings.life_loss)
        spec = _spec(settings, self._games.action_size)
        super().__init__(spec, num_envs, seed=seed, purpose=purpose, settings=settings)
        self._steps: Array = np.zeros(num_envs, np.int64)
        self._lives: Array = np.zeros(num_envs, np.int64)
        self._between_lives: Array = np.zeros(num_envs, np.bool_)
        self._started = False

    def close(self) -> None:
        """Free the emulators."""
        self._games = None

    def _advance(self, seeds: Sequence[int | None], action: Array) -> Step:
        resets = np.array([seed is not None for seed in seeds])
        row = self._play(action, resets)
        # a keyed reset loads the game anew, 0.1 s each: only for those who will see it
        seen = resets & ~self._retired
        if seen.any():
            keys = [s for s, go in zip(seeds, seen, strict=True) if go and s is not None]
            self._begin(row, seen, keys)
        return row

    def _replay(self, seeds: Sequence[int], actions: Sequence[Array]) -> Step:
        everyone = np.ones(self.num_envs, np.bool_)
        row = _blank(self.num_envs, self.spec)
        longest = max(len(log) for log in actions)
        if not self._started:  # a masked reset has to follow a full one
            self._started = True
            self._begin(row, everyone, list(seeds))
            if longest == 0:
                return row
        waits = np.array([longest - len(log) for log in actions])
        for t in range(longest + 1):
            if t > 0:
                now = [
                    log[max(t - 1 - w, 0)] if t > w else np.eye(self.spec.action_size)[0]
                    for log, w in zip(actions, waits, strict=True)
                ]
                row = self._play(np.asarray(now, np.float32), waits >= t)
            # a slot with a shorter log idles, or plays on, until it is its turn to begin
            begins = waits == t
            if begins.any():
                self._begin(
                    row, begins, [seed for seed, go in zip(seeds, begins, strict=True) if go]
                )
            ended = row.is_last & ~row.info["life_lost"]
            if t < longest and (ended & (waits <= t)).any():
                raise EnvError(
                    f"{self.spec.task}: a replayed episode ended before its logged actions did. "
                    "Expected the environment and the settings that wrote the log."
                )
        return row

    def _play(self, action: Array, idle: Array) -> Step:
        """Step every slot but those between two lives; what `idle` ones say is not looked at."""
        first = self._between_lives
        chosen = action.argmax(1).astype(np.int32)
        now = self._open_games().step(chosen, first | idle)
        self._steps += ~first
        limited = self._steps >= (self.settings.time_limit or np.iinfo(np.int64).max)
        # at 0 lives the end of the game is what counts, which in some games takes a while
        died = self.settings.life_loss & (now.lives < self._lives) & (now.lives > 0)
        over = now.terminated | now.truncated | limited
        self._lives = now.lives
        self._between_lives = died & ~over
        return Step(
            obs={"image": now.image},
            reward=now.reward,
            is_first=first,
            is_last=over | died,
            is_terminal=now.terminated | died,
            info={
                "interrupted": np.zeros(self.num_envs, np.bool_),
                "frames": now.frames,
                "lives": now.lives.copy(),
                "life_lost": self._between_lives.copy(),
            },
        )

    def _begin(self, row: Step, mask: Array, seeds: list[int]) -> None:
        # ALE takes non-negative int32 seeds
        keyed = np.array([seed & 0x7FFFFFFF for seed in seeds])
        now = self._open_games().reset(mask, keyed)
        row.obs["image"][mask] = now.image[mask]
        row.reward[mask] = 0.0
        row.is_last[mask] = row.is_terminal[mask] = row.info["life_lost"][mask] = False
        row.info["frames"][mask] = now.frames[mask]
        row.info["lives"][mask] = self._lives[mask] = now.lives[mask]
        self._steps[mask] = 0
        self._between_lives[mask] = False

    def _open_games(self) -> Games:
        if self._games is None:
            raise EnvError(f"{self.spec.task}: expected an open environment, found a closed one.")
        return self._games


def _blank(num_envs: int, spec: EnvSpec) -> Step:
    assert spec.image_shape is not None
    flags = [np.zeros(num_envs, np.bool_) for _ in range(5)]
    counts = [np.zeros(num_envs, np.int64) for _ in range(2)]
    return Step(
        obs={"image": np.zeros((num_envs, *spec.image_shape), np.uint8)},
        reward=np.zeros(num_envs, np.float32),
        is_first=flags[0],
        is_last=flags[1],
        is_terminal=flags[2],
        info={
            "interrupted": flags[3],
            "frames": counts[0],
            "lives": counts[1],
            "life_lost": flags[4],
        },
    )
