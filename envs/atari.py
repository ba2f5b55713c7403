"""Atari games through ALE's C++ vector environment, in the 64x64 colour view of DreamerV3.

Minimal actions, no sticky actions, no reward clipping, 0 to 29 no-ops at reset, maximum of the last
two frames, no episode end at a lost life. A step that ends the game repeats the previous picture.
ALE is licensed under GPL-2.0 and only imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def _ale(game: str, num_envs: int, image_size: int, frameskip: int) -> Any:
    try:
        import ale_py
        from ale_py import roms
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise EnvError(f"Expected ale-py, found none: {error}. {ROM_HELP}") from error
    if game not in roms.get_all_rom_ids() or roms.get_rom_path(game) is None:
        raise EnvError(
            f"Expected an Atari game such as pong or ms_pacman, found {game!r}. {ROM_HELP}"
        )
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return AtariVectorEnv(
        game,
        num_envs,
        img_height=image_size,
        img_width=image_size,
        grayscale=False,
        stack_num=1,
        frameskip=frameskip,
        noop_max=30,
        use_fire_reset=False,
        reward_clipping=False,
        repeat_action_probability=0.0,
        full_action_space=False,
        max_num_frames_per_episode=MAX_FRAMES,
    )


class AtariVec(SlotVec):
    """N games stepped by C++ threads.

    ALE resets ended games by itself without a seed. Each such slot is therefore reset once more
    through a mask, with the keyed seed of its episode; that reloads the game, so that nothing of
    the past is left in it.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int,
        purpose: Purpose = "train",
        image_size: int = 64,
        frameskip: int = 4,
        time_limit: int | None = None,
    ) -> None:
        self._ale = _ale(game, num_envs, image_size, frameskip)
        spec = EnvSpec(
            task=f"atari/{game}",
            action_size=int(self._ale.single_action_space.n),
            discrete=True,
            image_shape=(image_size, image_size, 3),
            action_repeat=frameskip,
            protocol="sticky=0,noops=0-29,actions=minimal,lives=unused",
        )
        settings = EnvSettings(
            spec.task, image_size=image_size, action_repeat=frameskip, time_limit=time_limit
        )
        super().__init__(spec, num_envs, seed=seed, purpose=purpose, settings=settings)
        self._limit = time_limit
        self._steps: Array = np.zeros(num_envs, np.int64)
        self._started = False

    def close(self) -> None:
        """Free the emulators."""
        self._ale = None

    def _advance(self, seeds: Sequence[int | None], action: Array) -> Step:
        row = self._play(action)
        resets = np.array([seed is not None for seed in seeds])
        if resets.any():
            self._begin(row, resets, [seed for seed in seeds if seed is not None])
        return row

    def _replay(self, seeds: Sequence[int], actions: Sequence[Array]) -> Step:
        everyone = np.ones(self.num_envs, np.bool_)
        row = _blank(self.num_envs, self.spec)
        if not self._started:  # a masked reset has to follow a full one
            self._started = True
            self._begin(row, everyone, list(seeds))
        longest = max(len(log) for log in actions)
        waits = np.array([longest - len(log) for log in actions])
        for t in range(longest + 1):
            if t > 0:
                now = [
                    log[max(t - 1 - w, 0)] if t > w else np.eye(self.spec.action_size)[0]
                    for log, w in zip(actions, waits, strict=True)
                ]
                row = self._play(np.asarray(now, np.float32))
            # a slot with a shorter log plays on idly until it is its turn to begin
            begins = waits == t
            if begins.any():
                self._begin(
                    row, begins, [seed for seed, go in zip(seeds, begins, strict=True) if go]
                )
            if t < longest and (row.is_last & (waits <= t)).any():
                raise EnvError(
                    f"{self.spec.task}: a replayed episode ended before its logged actions did. "
                    "Expected the environment and the settings that wrote the log."
                )
        return row

    def _play(self, action: Array) -> Step:
        if self._ale is None:
            raise EnvError(f"{self.spec.task}: expected an open environment, found a closed one.")
        chosen = action.argmax(1).astype(np.int32)
        image, reward, terminated, truncated, info = self._ale.step(chosen)
        self._steps += 1
        limited = self._steps >= (self._limit or np.iinfo(np.int64).max)
        terminal = np.asarray(terminated, np.bool_).copy()
        return Step(
            obs={"image": _squeezed(image)},
            reward=np.asarray(reward, np.float32),
            is_first=np.zeros(self.num_envs, np.bool_),
            is_last=terminal | np.asarray(truncated, np.bool_) | limited,
            is_terminal=terminal,
            info=_info(info, self.num_envs),
        )

    def _begin(self, row: Step, mask: Array, seeds: list[int]) -> None:
        if self._ale is None:
            raise EnvError(f"{self.spec.task}: expected an open environment, found a closed one.")
        # ALE takes non-negative int32 seeds
        keyed = np.array([seed & 0x7FFFFFFF for seed in seeds])
        options = None if mask.all() else {"reset_mask": mask}
        image, info = self._ale.reset(seed=keyed, options=options)
        row.obs["image"][mask] = _squeezed(image)[mask]
        row.reward[mask] = 0.0
        row.is_last[mask] = row.is_terminal[mask] = False
        row.info["frames"][mask] = _info(info, self.num_envs)["frames"][mask]
        self._steps[mask] = 0


def _blank(num_envs: int, spec: EnvSpec) -> Step:
    assert spec.image_shape is not None
    flags = [np.zeros(num_envs, np.bool_) for _ in range(4)]
    return Step(
        obs={"image": np.zeros((num_envs, *spec.image_shape), np.uint8)},
        reward=np.zeros(num_envs, np.float32),
        is_first=flags[0],
        is_last=flags[1],
        is_terminal=flags[2],
        info={"interrupted": flags[3], "frames": np.zeros(num_envs, np.int64)},
    )


def _squeezed(image: Any) -> Array:
    return np.asarray(image)[:, 0].copy()


def _info(info: dict[str, Any], num_envs: int) -> dict[str, Array]:
    # at a reset the frame count is the number of no-ops that were drawn
    frames = np.asarray(info["episode_frame_number"], np.int64).copy()
    return {"interrupted": np.zeros(num_envs, np.bool_), "frames": frames}
