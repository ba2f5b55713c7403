"""The command `reverie`: one small module per subcommand, imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Sequence

COMMANDS = {
    "train": ("train", "train an agent; the same command resumes"),
    "eval": ("evaluation", "score a run's newest checkpoint, with blind controls on request"),
    "demo": ("demo", "train a small MuDreamer from pixels and compare it with blind play"),
    "play": ("play", "film an episode: value, score, and imagined beside real"),
    "export": ("export_policy", "write a program that acts without this package, and check it"),
    "inspect": ("inspect_run", "show what a run's model imagines: animations, curves, numbers"),
    "tasks": ("tasks", "list tasks, agents, sizes and presets"),
    "demos make": ("demos make", "record demonstrations by an expert or a trained agent; resumes"),
    "demos show": ("demos show", "check demonstrations and say what is in them"),
    "demos export": ("demo_convert export", "write demonstrations for LeRobot or for Minari"),
    "demos import": ("demo_convert import", "take in a LeRobotDataset or a Minari dataset"),
    "distractors list": ("distractor_preview list", "list the presets of --distractor"),
    "distractors preview": ("distractor_preview preview", "draw distracted tasks on a sheet"),
    "distractors cost": ("distractor_cost", "time steps with and without what distracts"),
    "doctor": ("doctor", "check rendering, ROMs, device and versions, with the fix for each"),
    "bench run": ("grid.command run", "run agents x tasks x seeds of a suite; resumes"),
    "bench cell": ("grid.command cell", "run one cell of a grid, as in a SLURM array"),
    "bench speed": ("throughput", "measure updates, environment steps and replay windows"),
    "bench curves": ("curves", "compare a metric over seeds and agents, with intervals"),
    "bench imitation": ("imitation", "ACT-JEPA beside ACT and BC, from demonstrations to a table"),
    "bench report": ("report.command", "tables, statistics and pictures of finished runs"),
    "bench compare": ("report.compare", "two sets of runs, paired by task and seed"),
    "bench verify": ("verify", "hold finished SPR runs of Atari 100k against 100 published ones"),
}
"""Words of a subcommand -> (module of reverie.benchmarks with `main(args)`, and what it gets before
the other arguments; summary)."""

EXAMPLES = """examples:
  reverie train mudreamer --task dmc/walker_walk --size S --seed 0
  reverie train spr --task atari/pong --budget 100k --seed 0
  reverie train act-jepa --config six --seed 0
  reverie demos make --task metaworld/six --episodes 50
  reverie train dreamerv3 --task atari/pong --train.device cuda --train.precision bf16
  reverie train mudreamer --task toy/dot --config debug
  reverie train mudreamer --help        every setting, its meaning and its preset value
  reverie bench run smoke --jobs 2
  reverie eval runs/dmc/walker_walk/mudreamer-S/0 --episodes 10 --controls
  reverie inspect runs/dmc/walker_walk/mudreamer-S/0 --tag best
  reverie play runs/dmc/walker_walk/mudreamer-S/0 --out walk.gif
  reverie export runs/dmc/walker_walk/mudreamer-S/0 --out walk.pt2
"""

HELP = ("-h", "--help")


def manual() -> str:
    """Text of `reverie --help`."""
    head = "usage: reverie COMMAND ...\n\nWorld-model agents without pixel reconstruction.\n"
    return "\n".join([head, "commands:", *_rows(COMMANDS), "", EXAMPLES])


def group_manual(group: str) -> str:
    """Text of `reverie GROUP --help`; empty where no subcommand begins with that word."""
    names = [name for name in COMMANDS if name.startswith(f"{group} ")]
    if not names:
        return ""
    head = f"usage: reverie {group} COMMAND ...\n"
    tail = f"reverie {names[0]} --help, and likewise the others, lists its flags.\n"
    return "\n".join([head, "commands:", *_rows(names), "", tail])


def _rows(names: Collection[str]) -> list[str]:
    width = max(map(len, names))
    return [f"  {name:<{width}}  {COMMANDS[name][1]}" for name in names]


def main(args: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status (2: the command line is wrong)."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader went away, as in `reverie tasks | head`; keep the interpreter from flushing
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return status


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        sys.stdout.write(manual())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"reverie {version('reverie')}\n")
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            module, *first = COMMANDS[name][0].split()
            return _run(module, [*first, *words[length:]])
    return _unnamed(words)


def _unnamed(words: list[str]) -> int:
    """Help about a group of subcommands, or what there is instead of an unknown one."""
    group, *rest = words
    shown = group_manual(group)
    if shown and rest and rest[0] in HELP:
        sys.stdout.write(shown)
        return 0
    if shown and not rest:
        sys.stderr.write(shown)
        return 2
    name = " ".join(words[:2]) if shown else group
    sys.stderr.write(f"reverie: unknown command {name!r}\n\n{shown or manual()}")
    return 2


def _run(module: str, args: list[str]) -> int:
    # dm_control reads it when it is imported; headless machines have no display
    os.environ.setdefault("MUJOCO_GL", "egl")
    from reverie.agents.configs import ConfigError

    try:
        status: int = importlib.import_module(f"reverie.benchmarks.{module}").main(args)
    except ConfigError as error:
        sys.stderr.write(f"reverie: {error}\n")
        return 2
    except RuntimeError as error:
        # these explain themselves; anything else is a fault of ours and shows where
        if not isinstance(error, explained_errors()):
            raise
        sys.stderr.write(f"reverie: {error}\n")
        return 1
    return status


def explained_errors() -> tuple[type[RuntimeError], ...]:
    """Error families whose message says what was expected, what was found and what to do."""
    from reverie.agents.collapse_monitor import CollapseError
    from reverie.agents.demos.store import DemoError
    from reverie.agents.devices import DeviceMemoryError
    from reverie.agents.exported import ExportError
    from reverie.agents.runs.checkpoint import CheckpointError
    from reverie.agents.runs.rundir import RunDirError
    from reverie.agents.stopping import NonFiniteError, OutOfMemoryError
    from reverie.envs.specs import EnvError

    training = (CheckpointError, CollapseError, NonFiniteError, OutOfMemoryError, RunDirError)
    return (*training, DemoError, DeviceMemoryError, EnvError, ExportError)


if __name__ == "__main__":
    sys.exit(main())
