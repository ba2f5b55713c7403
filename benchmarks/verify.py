"""`reverie bench verify`: finished SPR runs of Atari 100k against 100 published runs per game."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from reverie.agents.configs import ConfigError, RunConfig
from reverie.agents.resolve import changed_settings, load
from reverie.agents.runs.files import write_atomic
from reverie.agents.runs.rundir import read_status
from reverie.benchmarks.grid.cells import GRID, open_grid
from reverie.benchmarks.reference import Spread, game, games, spr_spread

STEPS = 100_000
EPISODES = 100
PROTOCOL = "sticky=0,noops=0-29,actions=minimal,lives=unused,view=84x84 gray"
"""What the environment of a final evaluation says of itself."""

FREE = ("train.device", "train.compile", "train.precision", "train.threads")
"""Settings that may differ, besides seed and directory: how it is computed and not what."""

QUIET = 0.27
"""Standard deviation over mean of the published runs below which a game tells much."""

USELESS = ("UpNDown", "Frostbite", "Kangaroo", "PrivateEye", "Freeway", "Breakout")
"""Games whose runs spread so far that the game alone tells nothing."""

INSIDE, UNDECIDED, OUTSIDE = 0, 4, 3
"""Exit statuses: every game inside; none outside, but some without a band; any outside."""

CAPTION = (
    f"SPR, {STEPS:,} agent steps, {EPISODES} full games of the final agent, raw scores; "
    f"{PROTOCOL}. A right agent is outside a 90 % band in one case of ten, a 95 % band in one of "
    "twenty."
)

Place = Literal["inside", "below", "above", "undecided"]


@dataclass(frozen=True)
class Run:
    """One fit run."""

    path: str
    seed: int
    score: float
    """Mean raw score of the final evaluation."""


@dataclass(frozen=True)
class Verdict:
    """Where the runs of one game lie among the published ones."""

    task: str
    runs: list[Run]
    mean: float
    published: float
    """Mean of the 100 published runs."""
    low: float | None
    """Band of the mean of as many published runs, bounds included; none for most numbers."""
    high: float | None
    level: float | None
    """Share of equally good results that the band holds."""
    noise: str
    place: Place
    text: str


def main(args: Sequence[str]) -> int:
    """Verify the runs that `args` name; returns the exit status."""
    return tyro.cli(verify, args=list(args), prog="reverie bench verify")


def verify(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> int:
    """Is this SPR as good as the published one? Scores of finished runs against 100 runs per game.

    Takes grids of `reverie bench run`, whose other agents are passed over, and runs of
    `reverie train spr --task atari/GAME --budget 100k --seed N` with nothing changed but seed, run,
    train.device, train.compile, train.precision and train.threads. Any other run is refused, and so
    is a seed that comes twice.

    1 run of a game: its score should lie between the 5th and 95th percentile of the published
    runs, a 90 % band. 3 or 5 runs: their mean should lie where the mean of 3 or 5 published runs
    lies in 95 % of all cases. Other numbers of runs have no band. An agent that equals the
    published one still falls outside such a band in one game of ten, or of twenty: of all 26
    games two or three are expected outside with 1 run, one or two with 3 or 5. Above is outside
    as well: it is another agent, or another protocol.

    Which games to run. Low noise (standard deviation below 0.27 of the mean), which tell the most:
    Assault, Krull, Asterix, Jamesbond, Alien, Amidar, DemonAttack, Seaquest, MsPacman. Useless
    alone, because equal agents differ by whole multiples: UpNDown, Frostbite, Kangaroo,
    PrivateEye, Freeway (0 or about 30), Breakout (a long tail upwards).

    Exit status: 0 every game inside; 3 any game outside; 4 none outside, but some have no band for
    their number of runs; 2 unfit runs. Published scores are those of rliable's 100 runs, not those
    of SPR's paper, whose ten seeds have a higher mean than the 100 runs allow.

    Args:
        runs: Directories of finished runs, of one game or of several, or of grids.
        out: JSON to write, with every score, band and verdict.
    """
    verdicts = judge(collect(runs))
    console = Console()
    console.print(as_table(verdicts))
    if out is not None:
        found = {"protocol": CAPTION, "games": [asdict(verdict) for verdict in verdicts]}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (json.dumps(found, indent=1) + "\n").encode())
        console.print(f"wrote {out}")
    places = {verdict.place for verdict in verdicts}
    if places & {"below", "above"}:
        return OUTSIDE
    return UNDECIDED if "undecided" in places else INSIDE


# which runs are fit


def collect(paths: Sequence[Path]) -> dict[str, list[Run]]:
    """Runs by task, in the order of the games and of their seeds.

    Raises:
        ConfigError: lists every unfit run and all that is wrong with it.
    """
    problems: list[str] = [] if paths else ["expected at least one RUN"]
    found: dict[str, list[Run]] = {}
    for path in _runs(paths, problems):
        cfg, faults = _settings(path)
        score, more = _score(path)
        faults += more
        if cfg is not None:
            known = found.setdefault(cfg.task, [])
            twins = [run.path for run in known if run.seed == cfg.seed]
            faults += [f"seed {cfg.seed} of {cfg.task} is that of {twin} already" for twin in twins]
            known.append(Run(str(path), cfg.seed, score))
        if faults:
            problems.append(f"{path}: {'; '.join(faults)}")
    if problems:
        raise ConfigError(problems)
    order = [one.task for one in games() if one.task in found]
    return {task: sorted(found[task], key=lambda run: run.seed) for task in order}


def _runs(paths: Sequence[Path], problems: list[str]) -> list[Path]:
    """Run directories, with grids replaced by their SPR runs, begun or not."""
    found: list[Path] = []
    for path in paths:
        if not (path / GRID).is_file():
            found.append(path)
            continue
        grid = open_grid(path)
        own = [grid.run(cell) for cell in grid.cells if cell.words[0] == "spr"]
        if not own:
            agents = ", ".join(dict.fromkeys(cell.words[0] for cell in grid.cells)) or "nothing"
            problems.append(f"{path}: expected a grid with runs of spr, found one of {agents}")
        found += own
    return found


def _settings(path: Path) -> tuple[RunConfig | None, list[str]]:
    """Settings, where they can be read, and what is wrong with them."""
    if not (path / "config.toml").is_file():
        return None, ["expected a run directory with config.toml, found none"]
    try:
        cfg = load(path / "config.toml")
    except ConfigError as error:
        return None, [f"config.toml: {problem}" for problem in error.problems]
    faults = []
    if cfg.agent != "spr":
        faults.append(f"expected agent spr, found {cfg.agent}")
    if cfg.size != "S":
        faults.append(f"expected size S, found {cfg.size}")
    try:
        game(cfg.task)
    except ConfigError as error:
        faults += error.problems
    return cfg, [*faults, *_changes(cfg)]


def _changes(cfg: RunConfig) -> list[str]:
    """The protocol's settings by name, then all others that differ from the presets."""
    protocol = {
        "train.steps": (cfg.train.steps, STEPS),
        "train.final_episodes": (cfg.train.final_episodes, EPISODES),
        "env.sticky": (cfg.env.sticky, 0.0),
    }
    faults = [f"expected {k} {want}, found {have}" for k, (have, want) in protocol.items()]
    wrong = [have != want for have, want in protocol.values()]
    faults = [fault for fault, bad in zip(faults, wrong, strict=True) if bad]
    changed = {
        name: value
        for name, value in changed_settings(cfg).items()
        if name not in (*FREE, *protocol)
    }
    listed = ", ".join(f"{name} = {value}" for name, value in changed.items())
    return [*faults, *([f"settings changed from the presets: {listed}"] if changed else [])]


def _score(path: Path) -> tuple[float, list[str]]:
    """Score of the final evaluation, and what is wrong with it."""
    status = read_status(path)
    state = status.get("state", "unknown: no readable status.json")
    if state != "done":
        return math.nan, [f"expected a finished run, found it {state}; its command continues it"]
    found = status.get("evaluation")
    result: dict[str, Any] = found if isinstance(found, dict) else {}
    step, episodes, mean = (_number(result.get(key)) for key in ("step", "episodes", "mean"))
    faults = []
    if not step >= STEPS or episodes != EPISODES:
        faults.append(
            f"expected a final evaluation of {EPISODES} episodes at step {STEPS}, found "
            f"{result.get('episodes')} at step {result.get('step')}"
        )
    if not math.isfinite(mean):
        faults.append(f"expected a finite score, found {result.get('mean')}")
    if result.get("protocol") != PROTOCOL:
        faults.append(f"expected protocol {PROTOCOL}, found {result.get('protocol')}")
    return mean, faults


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


# where they lie


def judge(found: dict[str, list[Run]]) -> list[Verdict]:
    """A verdict on each game."""
    return [_verdict(task, runs) for task, runs in found.items()]


def _verdict(task: str, runs: list[Run]) -> Verdict:
    spread = spr_spread(task)
    mean = math.fsum(run.score for run in runs) / len(runs)
    low, high, level = spread.band(len(runs)) or (None, None, None)
    place: Place = "undecided"
    text = f"no band for {len(runs)} runs, use 1, 3 or 5"
    if low is not None and high is not None and level is not None:
        place = "below" if mean < low else "above" if mean > high else "inside"
        text = "inside" if place == "inside" else f"outside, {place}"
        text += f" the {100 * level:.0f} % band"
    noise = _noise(task, spread)
    return Verdict(task, runs, mean, spread.mean, low, high, level, noise, place, text)


def _noise(task: str, spread: Spread) -> str:
    if game(task).name in USELESS:
        return "useless alone"
    return "low" if spread.sd < QUIET * abs(spread.mean) else "middling"


def as_table(verdicts: Sequence[Verdict]) -> Table:
    """All games, one row each."""
    table = Table(
        *("game", "scores by seed", "mean", "published band", "noise", "verdict"),
        title="SPR against 100 published runs per game",
        caption=CAPTION,
    )
    for one in verdicts:
        scores = "\n".join(f"{run.seed}: {run.score:.1f}" for run in one.runs)
        band = "none" if one.low is None else f"{one.low:.1f} to {one.high:.1f}"
        name = game(one.task).name
        table.add_row(name, scores, f"{one.mean:.1f}", band, one.noise, one.text)
    return table
