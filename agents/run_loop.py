"""What every way to train shares: checkpoints, signals, records and the state of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from reverie.agents.collapse_monitor import CollapseError, CollapseMonitor, gates
from reverie.agents.configs import RunConfig
from reverie.agents.devices import resolve_device
from reverie.agents.inspection.inspector import Inspector
from reverie.agents.interface import Agent
from reverie.agents.metrics import MetricMeans
from reverie.agents.progress import Cadence, Progress
from reverie.agents.runs.checkpoint import CheckpointError
from reverie.agents.runs.logger import Logger
from reverie.agents.runs.rundir import RunDir
from reverie.agents.runs.savepoints import SavePoints, Segments
from reverie.agents.runs.summary import FIRST, SCORES, hparams, layout, overview, settings
from reverie.agents.stopping import NonFiniteGuard, StopRequest, check_memory


class RunLoop:
    """One run in memory. What happens next depends on counters alone, so that any pause is safe.

    A way to train builds its parts behind `super().__init__`, ends with `begin`, and says what
    `run`, `steps` and `state_dict` are.
    """

    agent: Agent

    def __init__(
        self,
        cfg: RunConfig,
        run: RunDir,
        stop: StopRequest,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Counters and device; nothing is loaded yet."""
        self.cfg, self.run_dir, self.stop, self.clock = cfg, run, stop, clock
        self.device = resolve_device(cfg.train.device)
        self.guard = NonFiniteGuard(
            run.path / "nonfinite", limit=cfg.train.max_nonfinite, device=self.device
        )
        self.updates = 0
        self.evaluated: dict[str, Any] = {"step": -1, "count": 0, "mean": None}
        self.means = MetricMeans()
        self.monitor = CollapseMonitor(gates(cfg))

    def begin(self, progress: Progress, *, segments: Segments | None = None) -> None:
        """Load the newest valid checkpoint, if there is one, and open the run's records.

        `segments` are files beside the checkpoints that these name.
        """
        cfg = self.cfg.train
        self.progress = progress
        self.saves = SavePoints(
            self.run_dir.path, segments, keep=cfg.checkpoint_keep, warn=progress.note
        )
        resumed = self._resume()
        self.logger = Logger(
            self.run_dir.path,
            resume_step=self.steps if resumed else None,
            layout=layout(self.cfg),
        )
        if not resumed:
            self.logger.text(0, "run", overview(self.cfg, self.run_dir.path))
            self.logger.text(0, "config", settings(self.cfg))
        self.save_due = Cadence(
            steps=cfg.checkpoint_every,
            seconds=60 * cfg.checkpoint_minutes,
            start=self.steps,
            clock=self.clock,
        )
        self.inspector = Inspector(
            self.cfg, self.run_dir.path, self.logger, start=self.steps, note=progress.note
        )
        progress.note(f"run {self.run_dir.path}")
        for note in self.run_dir.notes:
            progress.note(note)

    # what a way to train says

    @property
    def steps(self) -> int:
        """The x-axis of every record, in the unit of the budget."""
        raise AssertionError(f"{type(self).__name__} does not say how far it is")

    def run(self) -> int:
        """Loop until the budget is spent or a signal arrives; returns the exit code."""
        raise AssertionError(f"{type(self).__name__} does not say how it trains")

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-identical continuation needs, besides what is added here."""
        return {
            "updates": self.updates,
            "evaluated": dict(self.evaluated),
            "agent": self.agent.state_dict(),
            "guard": self.guard.state_dict(),
            "monitor": self.monitor.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Inverse of `state_dict`; returns notes on what could not be restored."""
        self.updates = int(state["updates"])
        self.evaluated = dict(state["evaluated"])
        self.agent.load_state_dict(state["agent"])
        self.guard.load_state_dict(state["guard"])
        self.monitor.load_state_dict(state["monitor"])
        return []

    def counters(self) -> dict[str, float]:
        """Numbers logged beside the means of the losses."""
        return {
            "count/updates": self.updates,
            "count/nonfinite_updates": self.guard.total,
            "count/lost_records": self.logger.lost,
            "speed/updates": self.progress.rates.updates,
        }

    def standing(self) -> dict[str, Any]:
        """How the run stands, for status.json."""
        return {
            "step": self.steps,
            "steps": self.cfg.train.steps,
            "updates": self.updates,
            "saved_at": self.saves.at,
            "evaluation": self.evaluated,
            "nonfinite_updates": self.guard.total,
            "health": self.monitor.status(),
        }

    def examine(self) -> dict[str, float]:
        """Numbers of the agent as it is, which change nothing; none where nothing can be shown."""
        raise AssertionError(f"{type(self).__name__} does not say what it looks at")

    # what the ways share

    def _monitor_if_due(self, *, over: bool) -> None:
        cfg = self.cfg.train
        due = over or (cfg.monitor_every > 0 and self.updates % cfg.monitor_every == 0)
        if not due or self.updates in (0, self.monitor.looked):
            return
        found = self.examine()
        if not found:
            return
        judge = cfg.monitor != "off" and self.updates >= cfg.monitor_from
        for sentence in self.monitor.look(self.updates, found, judge=judge):
            self.progress.note(f"update {self.updates:,}: {sentence}")
        alarms = self.monitor.known()
        if alarms is not None:
            found["health/alarms"] = len(alarms)
            self.progress.update(self.steps, self.updates, {"alarms": len(alarms)})
        self.logger.scalars(self.steps, found)

    def _stop_if_collapsed(self) -> None:
        """Raises CollapseError where an alarm is to end the run; the same command raises again."""
        if self.cfg.train.monitor != "stop" or not self.monitor.alarms:
            return
        self._save()
        raise CollapseError(
            f"the representation has collapsed at update {self.updates:,}: "
            f"{'; '.join(self.monitor.alarms.values())}; the run is saved; continue it with "
            "--train.monitor warn, or train another with more that holds its latents "
            "(ACT-JEPA: act_jepa.model.guard ema)"
        )

    def _report(self) -> None:
        check_memory()
        self.guard.check()
        losses = self.means.take()
        self.progress.update(self.steps, self.updates, _shown(losses))
        self.logger.scalars(self.steps, losses | self.counters())
        self.run_dir.status("running", **self.standing())

    def _done(self) -> int:
        """Save what the budget has made; returns the exit code of success."""
        if not self._save():
            raise CheckpointError("the finished run could not be saved; free disk space, run again")
        self.logger.hparams(self.steps, hparams(self.cfg), SCORES, first=FIRST)
        self.run_dir.status("done", **self.standing())
        score, solved = self.evaluated["mean"], self.evaluated.get("success")
        told = "done" if score is None else f"done, final score {score:.4g}"
        told += "" if solved is None else f", {solved:.0%} solved"
        self.progress.note(f"{told}; all files are in {self.run_dir.path}")
        return 0

    def _preempted(self, code: int) -> int:
        saved = self._save()
        reason = f"signal, exit code {code}" + ("" if saved else "; the last save failed")
        self.run_dir.status("preempted", reason=reason, **self.standing())
        told = f"saved at step {self.steps:,}" if saved else "stopped, and the last save failed"
        self.progress.note(f"{told}; the same command continues")
        return code

    def _save(self, *, score: float | None = None) -> bool:
        return self.saves.save((self.steps, self.updates), self.state_dict, score=score)

    def _resume(self) -> bool:
        found = self.saves.load()
        if found is None:
            return False
        state, notes = found
        self.run_dir.notes += notes + self.load_state_dict(state)
        self.saves.at = (self.steps, self.updates)
        self.run_dir.notes.append(
            f"resumed at step {self.steps:,} of {self.cfg.train.steps:,}, update {self.updates:,}"
        )
        return True

    def close(self) -> None:
        """Close records; safe to call twice."""
        self.progress.close()
        self.logger.close()

    def __enter__(self) -> Self:
        """Nothing to do: everything is open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _shown(losses: dict[str, float]) -> dict[str, float]:
    """The few losses that fit the progress line: totals, where an agent has them."""
    names = [name for name in losses if name.startswith("loss/")]
    totals = [name for name in names if name.endswith("total")] or names[:3]
    return {name.removeprefix("loss/").removesuffix("_total"): losses[name] for name in totals}
