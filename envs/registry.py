"""From a task name "suite/task" to environments.

Suites: "dmc" (dm_control), "metaworld", "atari", "toy", "torch" (batched worlds on a device), "gym"
(any installed Gymnasium id, for example "gym/CartPole-v1"), and what `register` adds.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import gymnasium

from reverie.envs.catch import Catch
from reverie.envs.distractors.distraction import Mask
from reverie.envs.distractors.sources import Split
from reverie.envs.dmc import TASKS as DMC_TASKS
from reverie.envs.dmc import DmControl
from reverie.envs.dot import Dot
from reverie.envs.guards import Guarded, OnInvalid
from reverie.envs.metaworld import FIFTEEN, SIX, THREE, MetaWorld
from reverie.envs.metaworld import TASKS as METAWORLD_TASKS
from reverie.envs.settings import ATARI_ONLY, OBSERVED, EnvSettings, Observe
from reverie.envs.single import ActionRepeat, Env, Purpose, TimeLimit
from reverie.envs.specs import EnvError, VecEnv
from reverie.envs.toy import Chain, Counter, Identity, Ones
from reverie.envs.vector import InlineVec

Workers = Literal["auto", "process", "inline"]
UserCtor = Callable[[], "gymnasium.Env[Any, Any] | Env"]

SUITES = ("dmc", "metaworld", "atari", "toy", "torch", "gym")
"""Suites of this package; a registered task has another."""

REPEATS = {"dmc": 2, "atari": 4}
"""Default simulator steps per agent step; 1 elsewhere."""

TOYS: dict[str, str] = {
    "counter": "writes (seed, time, action) into each observation: for testing data paths",
    "chain": "vector-only walk to a goal; values known in closed form",
    "ones": "reward 1 forever, cut by a time limit; the value is 1/(1-gamma)",
    "identity": "name the quadrant that lights up; blind play earns a quarter",
    "dot": "bring a dot to its target in front of a drifting distractor",
    "home": "bring the dot to the middle; toy/dot with a target that never moves",
    "catch": "catch a falling ball; its sideways drift shows in two pictures, never in one",
}

TASK_SETS: dict[str, tuple[str, ...]] = {
    "metaworld/three": tuple(f"metaworld/{name}" for name in THREE),
    "metaworld/six": tuple(f"metaworld/{name}" for name in SIX),
    "metaworld/fifteen": tuple(f"metaworld/{name}" for name in FIFTEEN),
    "metaworld/fifty": tuple(f"metaworld/{name}" for name in METAWORLD_TASKS),
}
"""Tasks that one agent learns together; no environment plays a set."""

_registered: dict[str, UserCtor] = {}


@dataclass(frozen=True)
class TaskInfo:
    """One line of `reverie tasks`."""

    task: str
    suite: str
    summary: str


def tasks() -> list[TaskInfo]:
    """Return all named tasks; "gym/<EnvId>" and further Atari games work without being listed."""
    from reverie.envs.atari import ATARI_100K

    pixels = "dm_control from pixels, or --env.observe state"
    robot = "Meta-World from state, or --env.observe image"
    listed = [TaskInfo(f"dmc/{n}", "dmc", pixels) for n in sorted(DMC_TASKS)]
    listed += [TaskInfo(f"metaworld/{n}", "metaworld", robot) for n in METAWORLD_TASKS]
    listed += [TaskInfo(f"atari/{n}", "atari", "Atari 100k game") for n in ATARI_100K]
    listed += [TaskInfo(f"toy/{n}", "toy", summary) for n, summary in TOYS.items()]
    listed.append(TaskInfo("torch/dots", "torch", "toy/dot in batches on a device"))
    listed += [TaskInfo(n, n.split("/")[0], "registered by the user") for n in _registered]
    return listed


def members(task: str) -> tuple[str, ...]:
    """Return the tasks of a set; a plain task is the only member of itself."""
    return TASK_SETS.get(task, (task,))


def register(task: str, ctor: UserCtor) -> None:
    """Add a task "suite/name" whose `ctor` returns a Gymnasium environment or an `Env`.

    For worker processes `ctor` has to be a function or class of an importable module::

        register("mine/maze", make_maze)
        make_vec("mine/maze", 8, seed=0)
    """
    suite, _, name = task.partition("/")
    if not suite or not name:
        raise EnvError(f'Expected a task name "suite/name", found {task!r}.')
    if suite in SUITES:
        raise EnvError(f"Expected a suite of your own, found the built-in suite {suite!r}.")
    if not callable(ctor):
        raise EnvError(f"Expected a function that builds {task}, found {type(ctor).__name__}.")
    _registered[task] = ctor


def make_vec(
    task: str,
    num_envs: int,
    *,
    seed: int,
    purpose: Purpose = "train",
    image_size: int = 64,
    action_repeat: int | None = None,
    render: Literal["reference", "quick"] = "reference",
    time_limit: int | None = None,
    workers: Workers = "auto",
    step_timeout: float = 60.0,
    on_invalid: OnInvalid = "error",
    device: str = "cpu",
    gray: bool = False,
    life_loss: bool = False,
    sticky: float = 0.0,
    observe: Observe = "auto",
    distractor: str = "none",
    distractor_source: str = "procedural",
    distractor_mask: Mask = "preset",
    split: Split = "train",
) -> VecEnv:
    """Build N environments of a task; `time_limit` counts agent steps.

    `workers` "auto" uses worker processes for several environments, except for toys, and for Atari
    and torch worlds, which are vectorised by themselves. `device` is where torch worlds live;
    `gray`, `life_loss` and `sticky` are for Atari, `observe` for dm_control and Meta-World, the
    last four for dm_control, toy/dot and toy/home (see `EnvSettings`).
    """
    own: dict[str, Any] = {"render": render, "on_invalid": on_invalid, "observe": observe}
    settings = _settings(task, image_size, action_repeat, time_limit=time_limit, **own)
    settings = _with_atari(settings, gray=gray, life_loss=life_loss, sticky=sticky)
    settings = _distracted(settings, distractor, distractor_source, distractor_mask, split)
    suite = task.split("/")[0]
    if num_envs < 1:
        raise EnvError(f"Expected at least one environment, found num_envs={num_envs}.")
    if suite == "atari":
        from reverie.envs.atari import AtariVec

        return AtariVec(settings, num_envs, seed=seed, purpose=purpose)
    if suite == "torch":
        return _torch_world(settings, num_envs, seed=seed, purpose=purpose, device=device)
    ctor = functools.partial(_build, settings, _registered.get(task))
    if workers == "inline" or (workers == "auto" and (num_envs == 1 or suite == "toy")):
        return InlineVec(ctor, num_envs, seed=seed, purpose=purpose, settings=settings)
    from reverie.envs.process_vec import ProcessVec

    return ProcessVec(
        ctor,
        num_envs,
        seed=seed,
        purpose=purpose,
        step_timeout=step_timeout,
        settings=settings,
    )


def make_env(
    task: str,
    *,
    image_size: int = 64,
    action_repeat: int | None = None,
    render: Literal["reference", "quick"] = "reference",
    time_limit: int | None = None,
    on_invalid: OnInvalid = "error",
    observe: Observe = "auto",
    distractor: str = "none",
    distractor_source: str = "procedural",
    distractor_mask: Mask = "preset",
    split: Split = "train",
) -> Env:
    """Build one environment without slots or episode bookkeeping; not for atari and torch."""
    settings = _settings(
        task,
        image_size,
        action_repeat,
        render=render,
        time_limit=time_limit,
        on_invalid=on_invalid,
        observe=observe,
    )
    settings = _distracted(settings, distractor, distractor_source, distractor_mask, split)
    if task.split("/")[0] in ("atari", "torch"):
        raise EnvError(f"{task} exists as a vector only: use make_vec({task!r}, 1, seed=0).")
    return _build(settings, _registered.get(task))


def _settings(
    task: str,
    image_size: int,
    action_repeat: int | None,
    *,
    render: Literal["reference", "quick"],
    time_limit: int | None,
    on_invalid: OnInvalid,
    observe: Observe,
) -> EnvSettings:
    require_known(task)
    repeat = REPEATS.get(task.split("/")[0], 1) if action_repeat is None else action_repeat
    numbers = {"image_size": image_size, "action_repeat": repeat, "time_limit": time_limit}
    for field, value in numbers.items():
        if value is not None and value < 1:
            raise EnvError(f"{task}: expected {field} >= 1, found {value}.")
    if render not in ("reference", "quick"):
        raise EnvError(f"{task}: expected render 'reference' or 'quick', found {render!r}.")
    observed = _observed(task, observe)
    return EnvSettings(task, image_size, repeat, render, time_limit, on_invalid, observe=observed)


def _observed(task: str, observe: Observe) -> Observe:
    """What "auto" stands for here; a suite with one kind of observation refuses all others."""
    if observe not in get_args(Observe):
        found = ", ".join(get_args(Observe))
        raise EnvError(f"{task}: expected observe as one of {found}; found {observe!r}.")
    default = OBSERVED.get(task.split("/")[0])
    if default is None and observe != "auto":
        raise EnvError(
            f"{task}: expected observe auto, found {observe}; only {' and '.join(OBSERVED)} tasks "
            "have it. Leave it out: what other environments give is what the agent sees."
        )
    return default if default is not None and observe == "auto" else observe


def _with_atari(settings: EnvSettings, **chosen: Any) -> EnvSettings:
    """Settings with the `ATARI_ONLY` ones as chosen."""
    assert chosen.keys() == set(ATARI_ONLY)
    task, sticky = settings.task, chosen["sticky"]
    for field, value in chosen.items():
        default = getattr(settings, field)
        if value != default and not task.startswith("atari/"):
            raise EnvError(
                f"{task}: expected {field} {default}, found {value}; only atari tasks have it."
            )
    if not 0 <= sticky < 1:
        raise EnvError(f"{task}: expected a probability sticky from 0 to below 1, found {sticky}.")
    return replace(settings, **chosen)


def _distracted(
    settings: EnvSettings, distractor: str, source: str, mask: Mask, split: Split
) -> EnvSettings:
    """Settings with what distracts; a film that cannot be shown is found before any worker is."""
    if distractor == "none":
        return settings
    from reverie.envs.distractors.build import check

    chosen = replace(
        settings,
        distractor=distractor,
        distractor_source=source,
        distractor_mask=mask,
        split=split,
    )
    check(chosen)
    return chosen


def require_known(task: str) -> None:
    """Raise `EnvError` with the nearest names, unless a task of that name can be built."""
    suite, _, name = task.partition("/")
    if suite in ("gym", "atari") and name:
        return  # their own registries know the names
    if task in TASK_SETS:
        raise EnvError(
            f"{task} is a set of tasks, which no environment plays. Expected one of them: "
            f"{', '.join(members(task))}."
        )
    known = [info.task for info in tasks()]
    if task in known:
        return
    close = difflib.get_close_matches(task, [*known, *TASK_SETS], n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    if suite not in SUITES:
        hint += (
            "A task of your own is known to the script that registers it; there, "
            'reverie.benchmarks.cli.main(["eval", RUN]) is `reverie eval RUN`. '
        )
    raise EnvError(
        f'Expected a task "suite/name", found {task!r}. {hint}`reverie tasks` lists all of them; '
        "gym/<EnvId> takes any installed Gymnasium environment."
    )


def _build(settings: EnvSettings, user: UserCtor | None) -> Env:
    """Build and wrap one environment in the process that will step it."""
    suite, _, name = settings.task.partition("/")
    if suite == "dmc":
        env: Env = DmControl(
            name,
            image_size=settings.image_size,
            action_repeat=settings.action_repeat,
            render=settings.render,
            observe=_concrete(settings),
            unlimited=settings.time_limit is not None,
            **_distraction(settings),
        )
    else:
        env = _plain(suite, name, settings, user)
        if settings.action_repeat > 1:
            env = ActionRepeat(env, settings.action_repeat)
    if settings.time_limit is not None:
        env = TimeLimit(env, settings.time_limit)
    return Guarded(env, settings.on_invalid)


def _distraction(settings: EnvSettings) -> dict[str, Any]:
    """Return what `DmControl` is told of a distractor; {}: nothing distracts."""
    if settings.distractor == "none":
        return {}
    from reverie.envs.distractors.build import clips, distraction, mark

    source = clips(settings)
    return {
        "distraction": distraction(settings, source),
        "protocol_suffix": f",{mark(settings, source)}",
    }


def _plain(suite: str, name: str, settings: EnvSettings, user: UserCtor | None) -> Env:
    size = settings.image_size
    if suite == "metaworld":
        return MetaWorld(name, image_size=size, render=settings.render, observe=_concrete(settings))
    if suite == "toy":
        pixels: dict[str, Any] = {
            "counter": Counter,
            "identity": Identity,
            "dot": Dot,
            "home": functools.partial(Dot, home=True),
            "catch": Catch,
        }
        vectors: dict[str, Any] = {"chain": Chain, "ones": Ones}
        if settings.distractor != "none":
            from reverie.envs.distractors.build import backdrop, clips, mark

            source, home = clips(settings), name == "home"
            film, told = backdrop(settings, source), mark(settings, source)
            return Dot(image_size=size, home=home, backdrop=film, protocol=told)
        toy: Env = pixels[name](image_size=size) if name in pixels else vectors[name]()
        return toy
    from reverie.envs.gym_import import GymEnv

    if suite == "gym":
        return GymEnv(functools.partial(_gym_make, name), settings.task, image_size=size)
    assert user is not None, f"{settings.task} is not registered"
    made = user()
    if isinstance(made, gymnasium.Env):
        return GymEnv(lambda: made, settings.task, image_size=size)
    return made


def _concrete(settings: EnvSettings) -> Literal["image", "state", "both"]:
    assert settings.observe != "auto", f"{settings.task}: nothing was put in the place of auto"
    return settings.observe


def _gym_make(env_id: str) -> Any:
    try:
        return gymnasium.make(env_id)
    except gymnasium.error.Error as error:
        raise EnvError(
            f"gym/{env_id}: expected an installed Gymnasium environment, found: {error} "
            "Import the package that registers it as gym/<module>:<EnvId>."
        ) from error


def _torch_world(
    settings: EnvSettings, num_envs: int, *, seed: int, purpose: Purpose, device: str
) -> VecEnv:
    from reverie.envs.dot import DOT_STEPS
    from reverie.envs.torch_vector import TorchDots

    if settings.action_repeat != 1:
        raise EnvError(f"torch/dots: expected action_repeat 1, found {settings.action_repeat}.")
    return TorchDots(
        num_envs,
        seed=seed,
        purpose=purpose,
        image_size=settings.image_size,
        device=device,
        time_limit=settings.time_limit or DOT_STEPS,
    )
