"""Learning from demonstrations: updates on windows, looks at held-out ones, success at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from reverie.agents.collapse_monitor import CollapseMonitor, gates
from reverie.agents.configs import RunConfig
from reverie.agents.demos.demonstrations import Demonstrations, demo_folder, load_demonstrations
from reverie.agents.demos.evaluation import evaluate_tasks, probe, probed_offsets, shown
from reverie.agents.demos.store import DemoError
from reverie.agents.evaluate import EvaluationStopped, final_episodes
from reverie.agents.interface import Imitator
from reverie.agents.progress import Progress
from reverie.agents.registry import build_imitator
from reverie.agents.run_loop import RunLoop
from reverie.agents.runs.rundir import RunDir
from reverie.agents.seeding import stream
from reverie.agents.stopping import StopRequest


class ImitationTrainer(RunLoop):
    """One update per step, on windows that are a function of seed and update."""

    agent: Imitator

    def __init__(
        self,
        cfg: RunConfig,
        run: RunDir,
        stop: StopRequest,
        *,
        data: Demonstrations | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the demonstrations unless `data` has them, and load the newest valid checkpoint."""
        super().__init__(cfg, run, stop, clock=clock)
        self.data = load_demonstrations(cfg) if data is None else data
        self.spec = self.data.spec.env_spec(cfg.task)
        self.agent = build_imitator(
            self.spec, cfg, tasks=self.data.tasks, statistics=self.data.train.statistics()
        )
        self.monitor = CollapseMonitor(gates(cfg, tasks=len(self.data.tasks)))
        self.begin(Progress(cfg.train.steps, unit="update", clock=clock))

    @property
    def steps(self) -> int:
        """Updates: nothing is collected."""
        return self.updates

    # the loop

    def run(self) -> int:
        """Loop until the budget is spent or a signal arrives; returns the exit code."""
        while True:
            if self.stop.code is not None:
                return self._preempted(self.stop.code)
            self._monitor_if_due(over=self._over)
            self._stop_if_collapsed()
            self._inspect_if_due()  # before the save of the evaluation, which counts it as done
            self._evaluate_if_due()
            if self.save_due.due(self.updates):
                self._save()
            if self.stop:
                continue  # a signal in the last evaluation must not cost the budget
            if self._over:
                break
            self._update()
        return self._done()

    @property
    def _over(self) -> bool:
        return self.updates >= self.cfg.train.steps

    def _update(self) -> None:
        cfg = self.cfg.train
        rng = stream(self.cfg.seed, "demos", self.updates)
        shape = (cfg.batch_size, self.cfg.act_jepa.model.chunk)
        batch, metrics = self.agent.learn_from(self.data.train, rng, shape)
        self.updates += 1
        self.guard.watch(batch, metrics["nonfinite"], self.updates)
        self.means.add(metrics)
        self.progress.update(self.updates, self.updates)
        if self.updates % cfg.log_every == 0:
            self._report()

    # what happens now and then

    def examine(self) -> dict[str, float]:
        """Losses and collapse diagnostics of held-out windows; none without such."""
        if self.data.held_out is None:
            return {}
        rng = stream(self.cfg.seed, "report", self.updates)
        shape = (self.cfg.train.batch_size, self.cfg.act_jepa.model.chunk)
        measured = self.agent.examine(self.data.held_out, rng, shape)
        return {key: float(value) for key, value in measured.items()}

    def _inspect_if_due(self) -> None:
        if self.updates and self.inspector.due(self.updates, over=self._over):
            windows = self.data.held_out or self.data.train
            self.inspector.look(self.agent, windows, self.updates)

    def _evaluate_if_due(self) -> None:
        cfg = self.cfg.train
        count = self.updates // cfg.eval_every if cfg.eval_every else 0
        over = self._over and self.evaluated["step"] != self.updates
        if count <= self.evaluated["count"] and not over:
            return
        episodes = final_episodes(self.cfg) if over else cfg.eval_episodes
        if over and episodes:
            tasks = ", ".join(self.data.tasks)
            self.progress.note(
                f"budget spent; the final score takes {episodes} episodes of {tasks}"
            )
        try:
            result = self._played(episodes) if episodes else None
        except EvaluationStopped:
            return
        self.evaluated = {"step": self.updates, "count": count, "mean": None}
        scores = self._probes()
        if result is not None:
            kept = ("mean", "success", "interval", "episodes", "protocol")
            self.evaluated |= {name: result[name] for name in kept if name in result}
            scores |= shown(result)
            self._record(result)
        self.logger.scalars(self.updates, scores)
        line = ("success", "mean") if result is not None else ()
        values = {name: self.evaluated[name] for name in line if name in self.evaluated}
        self.progress.update(self.updates, self.updates, values)
        self._save(score=self.evaluated.get("success", self.evaluated["mean"]))

    def _played(self, episodes: int) -> dict[str, Any]:
        return evaluate_tasks(self.agent, self.cfg, episodes=episodes, stop=lambda: bool(self.stop))

    def _record(self, result: dict[str, Any]) -> None:
        for task, one in result["tasks"].items():
            record = {"step": self.updates, "purpose": "eval", "task": task}
            solved = one.get("successes", [None] * len(one["returns"]))
            rows = zip(one["returns"], one["lengths"], solved, strict=True)
            for slot, (score, length, success) in enumerate(rows):
                known = {} if success is None else {"success": success}
                own = {"slot": slot, "score": score, "length": length}
                self.logger.episode(record | own | known)

    def _probes(self) -> dict[str, float]:
        if self.data.held_out is None or not self.spec.vector_size:
            return {}
        return probe(
            self.agent,
            self.data.train,
            self.data.held_out,
            probed_offsets(self.cfg.act_jepa.model.chunk),
            proprio_size=self.spec.proprio_size or self.spec.vector_size,
        )

    # state

    def counters(self) -> dict[str, float]:
        """Those of every run, and how fast it learns."""
        windows = self.progress.rates.updates * self.cfg.train.batch_size
        return super().counters() | {"speed/windows": windows}

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-identical continuation needs besides the demonstrations."""
        return super().state_dict() | {"demos": self.data.digest}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Inverse of `state_dict`; DemoError if the run began on other demonstrations."""
        if state["demos"] != self.data.digest:
            raise DemoError(
                f"{demo_folder(self.cfg)}: the run began on other demonstrations (digest "
                f"{state['demos']}, found {self.data.digest}); restore those, or choose another "
                "--run"
            )
        return super().load_state_dict(state)
