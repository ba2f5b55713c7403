"""The child process of `process_vec`: builds environments, steps them, writes to shared memory."""

from __future__ import annotations

import math
import mmap
import os
import pickle
import runpy
import select
import signal
import sys
import threading
import traceback
import types
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from reverie.envs.single import Arrival, Ctor, Env
from reverie.envs.specs import Array, EnvError, EnvSpec, Step
from reverie.envs.vector import replay_one

Order = tuple[int, int | None]
"""(slot, seed to reset with, or None to step)."""

ALIGNMENT = 64

IMPORTING = "REVERIE_IMPORTING_MAIN"
"""Environment variable that is set while a worker imports the user's script."""


class Block:
    """Arrays of N slots laid over one shared buffer."""

    def __init__(self, spec: EnvSpec, num_envs: int, buffer: Any) -> None:
        layout = _layout(spec, num_envs)
        self.obs: dict[str, Array] = {}
        offset = 0
        views: dict[str, Array] = {}
        for name, (shape, dtype) in layout.items():
            views[name] = np.ndarray(shape, dtype, buffer=buffer, offset=offset)
            offset += _padded(shape, dtype)
        self.action = views.pop("action")
        self.reward = views.pop("reward")
        self.flags = views.pop("flags")
        self.obs = views

    @staticmethod
    def size(spec: EnvSpec, num_envs: int) -> int:
        """Bytes that the block of N slots takes."""
        return sum(_padded(shape, dtype) for shape, dtype in _layout(spec, num_envs).values())

    def write(self, slot: int, arrival: Arrival) -> None:
        """Store what one slot received."""
        for key, value in self.obs.items():
            value[slot] = arrival.obs[key]
        self.reward[slot] = arrival.reward
        success = arrival.success and not arrival.interrupted
        self.flags[slot] = (arrival.is_last, arrival.is_terminal, arrival.interrupted, success)

    def read(self) -> Step:
        """Copy all slots; `is_first` is left to the caller."""
        last, terminal, interrupted, success = self.flags.T.copy()
        return Step(
            obs={k: v.copy() for k, v in self.obs.items()},
            reward=self.reward.copy(),
            is_first=np.zeros_like(last),
            is_last=last,
            is_terminal=terminal,
            info={"interrupted": interrupted, "success": success},
        )


def _layout(spec: EnvSpec, num_envs: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    layout: dict[str, tuple[tuple[int, ...], Any]] = {
        "action": ((num_envs, spec.action_size), np.float32),
        "reward": ((num_envs,), np.float32),
        "flags": ((num_envs, 4), np.bool_),
    }
    if spec.image_shape is not None:
        layout["image"] = ((num_envs, *spec.image_shape), np.uint8)
    if spec.vector_size:
        layout["vector"] = ((num_envs, spec.vector_size), np.float32)
    return layout


def _padded(shape: tuple[int, ...], dtype: Any) -> int:
    size = math.prod(shape) * int(np.dtype(dtype).itemsize)
    return -(-size // ALIGNMENT) * ALIGNMENT


def main() -> None:
    """Run `python -c "...main()" PIPE MEMORY`, the two inherited file descriptors."""
    pipe = Connection(int(sys.argv[1]))
    _live_and_die_with_parent(pipe.fileno())
    try:
        main_path, payload, slots = pipe.recv()
        if main_path is not None:
            _import_main(main_path)
        ctor: Ctor = pickle.loads(payload)
        envs = {slot: ctor() for slot in slots}
    except EnvError as error:
        pipe.send(("failed", str(error)))
        return
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
        return
    pipe.send(("ready", envs[slots[0]].spec))
    try:
        num_envs = pipe.recv()
        memory = mmap.mmap(int(sys.argv[2]), Block.size(envs[slots[0]].spec, num_envs))
        _serve(pipe, envs, Block(envs[slots[0]].spec, num_envs, memory))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is done with us
    finally:
        for env in envs.values():
            env.close()


def _import_main(path: str) -> None:
    """Make the parent's script importable, for constructors that were defined in it."""
    script = types.ModuleType("__mp_main__")
    os.environ[IMPORTING] = path
    script.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    del os.environ[IMPORTING]
    sys.modules["__main__"] = sys.modules["__mp_main__"] = script


def require_main_guard() -> None:
    """Refuse to start workers or training from a script that a worker is importing just now."""
    if IMPORTING in os.environ:
        raise EnvError(
            f"{os.environ[IMPORTING]} starts its work while a worker imports it to find the "
            'environment. Expected that work under `if __name__ == "__main__":`.'
        )


def _serve(pipe: Connection, envs: dict[int, Env], block: Block) -> None:
    while True:
        kind, orders, logs = pipe.recv()
        if kind == "close":
            return
        try:
            for slot, seed in orders:
                block.write(slot, _obey(envs[slot], seed, block.action[slot], logs.get(slot)))
        except EnvError as error:
            pipe.send(("invalid", str(error)))
            continue
        except Exception:
            pipe.send(("raised", traceback.format_exc()))
            return
        pipe.send(("done", None))


def _obey(env: Env, seed: int | None, action: Array, log: Array | None) -> Arrival:
    if seed is None:
        return env.step(action.copy())
    if log is not None:
        return replay_one(env, seed, log)
    return Arrival(env.reset(seed))


def _live_and_die_with_parent(pipe: int) -> None:
    # a signal to the whole group asks the parent to save; it decides when its workers stop
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    # one software-rendering thread per worker: the workers are the parallelism
    for variable in ("LP_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    hangup = select.poll()
    hangup.register(pipe, 0)  # asks for nothing, so that only the other end's closing wakes it

    def watch() -> None:
        hangup.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
