"""Making demonstrations: a player plays one task, and the episodes it solves become shards.

Attempt k of a task begins at a start that follows from the seed and k alone, and nothing is
remembered between attempts: neither the number of processes nor a kill changes an episode.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reverie.agents.demos.store import DemoError, DemoSpec, ShardWriter, read_shard
from reverie.envs.experts import Expert, make_expert
from reverie.envs.rates import steps_per_second
from reverie.envs.registry import make_vec
from reverie.envs.settings import OBSERVED, EnvSettings
from reverie.envs.single import Obs, episode_seed
from reverie.envs.specs import Array, EnvError, VecEnv

ATTEMPTS = 40
"""After so many attempts of a task, most of them must have been solved."""

ENDLESS = 100_000
"""Agent steps after which an episode is taken to have no end."""

MakePlayer = Callable[[str, VecEnv], Expert]
"""Builds what plays a task, for the environment it will play; picklable for worker processes."""


class RecordingStopped(RuntimeError):
    """`stop` said so; finished shards are there, of the unfinished one nothing is."""


@dataclass(frozen=True)
class Job:
    """What is to be recorded of one task."""

    settings: EnvSettings
    """Task, and how it is played; `observe` auto stands for the state where the suite has one."""
    folder: Path
    """Where the shards go, as <name of the task>-<number>."""
    episodes: int = 50
    """Episodes kept, over all shards."""
    seed: int = 0
    """Root of the start states."""
    player: MakePlayer = make_expert
    """Who plays."""
    keep_failures: bool = False
    """Keep unsolved episodes too, where the task knows what solved is."""
    shard_episodes: int = 50
    """Most episodes of a shard."""


@dataclass
class Tally:
    """What there is of one task."""

    task: str
    spec: DemoSpec
    """Sizes."""
    episodes: int = 0
    """Episodes in finished shards and in the one being written."""
    frames: int = 0
    """Their frames."""
    played: int = 0
    """Attempts, kept or not."""
    solved: int | None = 0
    """How many of them were solved; None where the task knows no success."""
    found: int = 0
    """Episodes that were there before this start."""
    found_frames: int = 0
    """Their frames."""
    seconds: float = 0.0
    """Time this start has taken."""
    shards: list[Path] = field(default_factory=list)
    """Finished shards."""


@dataclass(frozen=True)
class Recorder:
    """One task, who plays it, and the marks by which its shards are known."""

    job: Job
    env: VecEnv
    player: Expert
    spec: DemoSpec
    marks: dict[str, Any]


def record(
    job: Job,
    *,
    report: Callable[[Tally], None] = lambda tally: None,
    stop: Callable[[], bool] = bool,
) -> Tally:
    """Make the shards of a task that are not there yet; `report` is called after every attempt.

    Raises:
        DemoError: a shard is there that other settings made, or too few attempts are solved.
        EnvError: the task cannot be built, has no such expert, or failed.
        RecordingStopped: `stop`, asked at every step, said so.
    """
    started = time.monotonic()
    settings = observed(job.settings)
    env = build(settings, seed=job.seed)
    try:
        recorder = _recorder(job, settings, env)
        solved = 0 if env.spec.has_success else None
        tally = Tally(settings.task, recorder.spec, solved=solved)
        while tally.episodes < job.episodes:
            path = shard_path(job.folder, settings.task, len(tally.shards))
            if path.exists():
                _adopt(recorder, path, tally)
            else:
                _write(recorder, path, tally, report=report, stop=stop, started=started)
            tally.shards.append(path)
        tally.seconds = time.monotonic() - started
        report(tally)
        return tally
    finally:
        env.close()


def observed(settings: EnvSettings) -> EnvSettings:
    """The settings with the state in the place of auto, where the suite shows states."""
    if settings.observe != "auto" or settings.task.split("/")[0] not in OBSERVED:
        return settings
    return replace(settings, observe="state")


def shard_path(folder: Path, task: str, number: int) -> Path:
    """Folder of a task's shard."""
    name = task.partition("/")[2].replace("/", "-")
    return folder / f"{name}-{number:03d}"


def build(settings: EnvSettings, *, seed: int) -> VecEnv:
    """One world of the task, whose episodes begin where demonstrations begin."""
    chosen = asdict(settings)
    return make_vec(chosen.pop("task"), 1, seed=seed, purpose="demo", workers="inline", **chosen)


def _recorder(job: Job, settings: EnvSettings, env: VecEnv) -> Recorder:
    shown, player = env.spec, job.player(settings.task, env)
    spec = DemoSpec(
        action_size=shown.action_size,
        discrete=shown.discrete,
        vector_size=shown.vector_size,
        proprio_size=shown.proprio_size,
        image_shape=shown.image_shape,
        fps=steps_per_second(shown),
    )
    marks = {key: value for key, value in asdict(settings).items() if key != "task"}
    if shown.image_shape is None:  # what does not show makes no difference
        marks |= {"image_size": None, "render": None}
    marks["keep_failures"] = job.keep_failures and shown.has_success
    return Recorder(job, env, player, spec, marks)


# shards


def _write(
    recorder: Recorder,
    path: Path,
    tally: Tally,
    *,
    report: Callable[[Tally], None],
    stop: Callable[[], bool],
    started: float,
) -> None:
    """Play until the shard is full or the task has all its episodes, then publish it."""
    job, first, solved_before = recorder.job, tally.played, tally.solved
    full = min(job.episodes, tally.episodes + job.shard_episodes)
    with ShardWriter(
        path,
        task=tally.task,
        spec=recorder.spec,
        generator=recorder.player.name,
        seed=job.seed,
        protocol=recorder.env.spec.protocol,
        settings=recorder.marks,
    ) as writer:
        while tally.episodes < full:
            columns, solved = play(recorder.env, recorder.player, tally.played, stop=stop)
            if tally.solved is None or solved or job.keep_failures:
                known = None if tally.solved is None else solved
                seed = episode_seed(job.seed, "demo", 0, tally.played)
                writer.add(columns, success=known, seed=seed)
                tally.episodes += 1
                tally.frames += len(columns["action"])
            tally.played += 1
            tally.solved = None if tally.solved is None else tally.solved + solved
            tally.seconds = time.monotonic() - started
            report(tally)
            if not job.keep_failures:
                _require_skill(tally, recorder.player.name)
        attempts, failures = tally.played - first, None
        if tally.solved is not None and solved_before is not None:
            failures = attempts - (tally.solved - solved_before)
        writer.close(first_attempt=first, attempts=attempts, failures=failures)


def _require_skill(tally: Tally, name: str) -> None:
    if tally.solved is None or tally.played < ATTEMPTS or 2 * tally.solved >= tally.played:
        return
    raise DemoError(
        f"{tally.task}: expected {name} to solve most of its attempts, found {tally.solved} of "
        f"{tally.played} ({tally.solved / tally.played:.0%}). Allow it more time with a larger "
        "--time-limit, or record what it does with --keep-failures."
    )


def _adopt(recorder: Recorder, path: Path, tally: Tally) -> None:
    """Count a shard that an earlier start finished, after making sure that it is the one wanted."""
    header = read_shard(path).header
    wanted = {
        "task": tally.task,
        "seed": recorder.job.seed,
        "generator": recorder.player.name,
        "protocol": recorder.env.spec.protocol,
        **asdict(recorder.spec),
        **recorder.marks,
        "first_attempt": tally.played,
    }
    found = {**header, **header["settings"]}
    differences = [
        f"{name}: it has {found.get(name)!r}, asked for {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differences:
        raise DemoError(
            f"{path} was made with other settings:\n  "
            + "\n  ".join(differences)
            + "\nuse its settings to continue, delete it, or choose another --out"
        )
    episodes, frames = len(header["episodes"]), header["columns"]["action"]["shape"][0]
    tally.episodes += episodes
    tally.found += episodes
    tally.frames += frames
    tally.found_frames += frames
    tally.played += found["attempts"]
    if tally.solved is not None:
        tally.solved += found["attempts"] - found["failures"]


# episodes


def play(
    env: VecEnv, player: Expert, attempt: int, *, stop: Callable[[], bool] = bool
) -> tuple[dict[str, Array], bool]:
    """Columns of one episode, pairs of what was seen and the action taken at it; was it solved."""
    row = env.restore([attempt], [np.zeros((0, env.spec.action_size), np.float32)])
    player.reset()
    seen: list[Obs] = []
    actions: list[Array] = []
    rewards: list[float] = []
    solved: list[bool] = []
    while not row.is_last[0]:
        if stop():
            raise RecordingStopped(f"{env.spec.task} was interrupted by a request to stop")
        if len(seen) == ENDLESS:
            raise DemoError(
                f"{env.spec.task}: attempt {attempt} has no end after {ENDLESS} steps; set one "
                "with --time-limit"
            )
        obs = {key: value[0] for key, value in row.obs.items()}
        action = np.clip(player.act(obs), np.float32(-1), np.float32(1))
        row = env.step(action[None])
        if row.info.get("interrupted", [False])[0]:
            raise EnvError(f"{env.spec.task} failed in attempt {attempt}; the log says why.")
        seen.append(obs)
        actions.append(action)
        rewards.append(float(row.reward[0]))
        solved.append(bool(row.info.get("success", [False])[0]))
    columns = {key: np.stack([obs[key] for obs in seen]) for key in seen[0]}
    columns["action"] = np.stack(actions)
    columns["reward"] = np.array(rewards, np.float32)
    columns["done"] = np.arange(len(seen)) == len(seen) - 1
    columns["success"] = np.array(solved)
    return columns, any(solved)
