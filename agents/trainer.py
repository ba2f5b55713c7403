"""The training loop: build, resume, then collect, update, evaluate and save until the budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal

import torch

from reverie.agents.checkpoint import CheckpointError
from reverie.agents.collector import Collector
from reverie.agents.configs import RunConfig
from reverie.agents.devices import memory_advice, resolve_device
from reverie.agents.evaluate import EvaluationStopped, evaluate, final_episodes, slots_for
from reverie.agents.logger import Logger
from reverie.agents.metrics import MetricMeans
from reverie.agents.progress import Cadence, Progress
from reverie.agents.registry import build_agent, build_replay
from reverie.agents.resolve import dump, run_directory
from reverie.agents.rundir import RunDir
from reverie.agents.savepoints import SavePoints
from reverie.agents.seeding import stream
from reverie.agents.stopping import NonFiniteGuard, StopRequest, check_memory
from reverie.envs.registry import make_vec
from reverie.envs.specs import VecEnv

MAY_DIFFER = ("run", "env.step_timeout", "train.checkpoint_minutes", "train.checkpoint_keep")
"""Settings that a resumed run may change: none of them touches what is learned."""


def train(cfg: RunConfig, *, fresh: bool = False) -> int:
    """Train one run, or continue it; returns the exit code.

    0: done; 130 or 143: a signal came, the run was saved, and the same call continues it. Errors
    are recorded in status.json and raised. `fresh` refuses a directory that holds a run.
    """
    torch.set_num_threads(cfg.train.threads)
    path = run_directory(cfg)
    with (
        StopRequest() as stop,
        RunDir(path, config=dump(cfg), may_differ=MAY_DIFFER, fresh=fresh) as run,
    ):
        try:
            with Trainer(cfg, run, stop) as trainer, memory_advice(cfg):
                return trainer.run()
        except BaseException as error:
            run.status("failed", reason=f"{type(error).__name__}: {error}")
            raise


def build_env(cfg: RunConfig, purpose: Literal["train", "eval"], num_envs: int) -> VecEnv:
    """The run's task; evaluation differs from training in seeds and slots, and plays full games."""
    env = cfg.env
    return make_vec(
        cfg.task,
        num_envs,
        seed=cfg.seed,
        purpose=purpose,
        image_size=env.image_size,
        action_repeat=env.action_repeat,
        render=env.render,
        time_limit=env.time_limit,
        workers=env.workers,
        step_timeout=env.step_timeout,
        on_invalid=env.on_bad_value,
        device=str(resolve_device(cfg.train.device)),
        gray=env.gray,
        life_loss=env.life_loss and purpose == "train",
        sticky=env.sticky,
    )


class Trainer:
    """One run in memory. What happens next depends on counters alone, so that any pause is safe."""

    def __init__(
        self,
        cfg: RunConfig,
        run: RunDir,
        stop: StopRequest,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build everything and load the newest valid checkpoint, if there is one."""
        self.cfg, self.run_dir, self.stop = cfg, run, stop
        self.device = resolve_device(cfg.train.device)
        self.env = build_env(cfg, "train", cfg.env.num_envs)
        self.eval_env: VecEnv | None = None
        self.agent = build_agent(self.env.spec, cfg)
        self.collector = Collector(self.env, self.agent, seed=cfg.seed, device=self.device)
        self.replay = build_replay(
            self.env.spec, cfg, directory=run.path / "replay", device=self.device
        )
        self.guard = NonFiniteGuard(
            run.path / "nonfinite", limit=cfg.train.max_nonfinite, device=self.device
        )
        self.updates = 0
        self.learn_from: int | None = None
        self.evaluated: dict[str, Any] = {"step": -1, "count": 0, "mean": None}
        self.means = MetricMeans()
        self.progress = Progress(
            cfg.train.steps, action_repeat=self.env.spec.action_repeat, clock=clock
        )
        self.saves = SavePoints(
            run.path, self.replay, keep=cfg.train.checkpoint_keep, warn=self.progress.note
        )
        resumed = self._resume()
        self.logger = Logger(run.path, resume_step=self.steps if resumed else None)
        self.save_due = Cadence(
            steps=cfg.train.checkpoint_every,
            seconds=60 * cfg.train.checkpoint_minutes,
            start=self.steps,
            clock=clock,
        )
        for note in run.notes:
            self.progress.note(note)

    @property
    def steps(self) -> int:
        """Agent steps taken, prefill included."""
        return self.collector.steps

    # the loop

    def run(self) -> int:
        """Loop until the budget is spent or a signal arrives; returns the exit code."""
        while True:
            if self.stop.code is not None and self.collector.restorable:
                return self._preempted(self.stop.code)
            if self.due_updates() > 0:
                self._update()
                continue
            self._evaluate_if_due()
            if self.collector.restorable and self.save_due.due(self.steps):
                self._save()
            if self._finished():
                break
            if self.stop and self.collector.restorable:
                continue  # no step more: a signal in the last evaluation must not cost the budget
            self._collect()
        if not self._save():
            raise CheckpointError("the finished run could not be saved; free disk space, run again")
        self.run_dir.status("done", **self._standing())
        return 0

    def due_updates(self) -> int:
        """Updates owed: replayed steps per agent step since the end of prefill, exactly."""
        cfg = self.cfg.train
        if self.learn_from is None or not self.replay.can_sample(cfg.batch_length):
            return 0
        replayed = (self.steps - self.learn_from) * cfg.train_ratio
        return int(replayed // (cfg.batch_size * cfg.batch_length)) - self.updates

    def _finished(self) -> bool:
        over = self.steps >= self.cfg.train.steps
        return over and self.collector.restorable and not self.stop

    def _collect(self) -> None:
        self.replay.add(self.collector.advance(random=self.learn_from is None))
        repeat = self.env.spec.action_repeat
        for episode in self.collector.pop_finished():
            record = {"step": self.steps, "frames": self.steps * repeat, "purpose": "train"}
            self.logger.episode(record | asdict(episode))
            if not episode.interrupted:
                scores = {"episode/score": episode.score, "episode/length": episode.length}
                self.logger.scalars(self.steps, scores)
                self.progress.update(self.steps, self.updates, {"score": episode.score})
        self.progress.update(self.steps, self.updates)
        ready = self.replay.can_sample(self.cfg.train.batch_length)
        if self.learn_from is None and ready and self.steps >= self.cfg.train.prefill:
            self.learn_from = self.steps

    def _update(self) -> None:
        cfg = self.cfg.train
        rng = stream(self.cfg.seed, "replay", self.updates)
        shape = (cfg.batch_size, cfg.batch_length)
        batch, metrics = self.agent.learn_from(self.replay, rng, shape)
        self.updates += 1
        self.guard.watch(batch, metrics["nonfinite"], self.updates)
        self.means.add(metrics)
        if self.updates % cfg.log_every == 0:
            self._report()

    # what happens now and then

    def _report(self) -> None:
        check_memory()
        self.guard.check()
        losses = self.means.take()
        self.progress.update(self.steps, self.updates, _shown(losses))
        counters = {
            "count/updates": self.updates,
            "count/frames": self.steps * self.env.spec.action_repeat,
            "count/nonfinite_updates": self.guard.total,
            "count/lost_records": self.logger.lost,
            "count/failed_replay_writes": self.replay.failed_writes,
            "replay/rows": len(self.replay),
            "speed/steps": self.progress.rates.steps,
            "speed/updates": self.progress.rates.updates,
        }
        self.logger.scalars(self.steps, losses | counters)
        self.run_dir.status("running", **self._standing())

    def _evaluate_if_due(self) -> None:
        cfg = self.cfg.train
        if cfg.eval_episodes == 0 or (self.learn_from is None and self.steps < cfg.steps):
            return
        count = self.steps // cfg.eval_every if cfg.eval_every else 0
        over = self.steps >= cfg.steps and self.evaluated["step"] != self.steps
        if count <= self.evaluated["count"] and not over:
            return
        episodes = final_episodes(self.cfg) if over else cfg.eval_episodes
        if over:
            self.progress.note(f"budget spent; the final score takes {episodes} episodes")
        try:
            result = evaluate(
                self.agent,
                self._evaluation_env(episodes),
                episodes=episodes,
                seed=self.cfg.seed,
                device=self.device,
                stop=lambda: bool(self.stop),
            )
        except EvaluationStopped:
            return
        self.evaluated = {"step": self.steps, "count": count, "mean": result["mean"]}
        self.evaluated |= {"episodes": episodes, "protocol": result["protocol"]}
        for slot, (score, length) in enumerate(
            zip(result["returns"], result["lengths"], strict=True)
        ):
            record = {"step": self.steps, "purpose": "eval", "slot": slot}
            self.logger.episode(record | {"score": score, "length": length})
        names = ("mean", "std", "min", "max")
        scores = {f"eval/{name}": result[name] for name in names}
        self.logger.scalars(self.steps, scores | self._diagnostics())
        self.progress.update(self.steps, self.updates, {"eval": result["mean"]})
        self._save(score=result["mean"])

    def _evaluation_env(self, episodes: int) -> VecEnv:
        slots = slots_for(episodes, self.cfg.task)
        if self.eval_env is not None and self.eval_env.num_envs != slots:
            self.eval_env.close()
            self.eval_env = None
        if self.eval_env is None:
            self.eval_env = build_env(self.cfg, "eval", slots)
        return self.eval_env

    def _diagnostics(self) -> dict[str, float]:
        """What an agent computes besides its updates, on a batch that no update draws."""
        cfg = self.cfg.train
        if not self.replay.can_sample(cfg.batch_length):
            return {}
        rng = stream(self.cfg.seed, "report", self.updates)
        found = self.agent.examine(self.replay, rng, (cfg.batch_size, cfg.batch_length))
        return {key: float(value) for key, value in found.items()}

    def _preempted(self, code: int) -> int:
        saved = self._save()
        reason = f"signal, exit code {code}" + ("" if saved else "; the last save failed")
        self.run_dir.status("preempted", reason=reason, **self._standing())
        return code

    def _standing(self) -> dict[str, Any]:
        return {
            "step": self.steps,
            "steps": self.cfg.train.steps,
            "updates": self.updates,
            "saved_at": self.saves.at,
            "evaluation": self.evaluated,
            "nonfinite_updates": self.guard.total,
            "replay_rows": len(self.replay),
        }

    # state

    def _save(self, *, score: float | None = None) -> bool:
        if not self.collector.restorable:
            return False
        return self.saves.save((self.steps, self.updates), self.state_dict, score=score)

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-identical continuation needs."""
        return {
            "updates": self.updates,
            "learn_from": self.learn_from,
            "evaluated": dict(self.evaluated),
            "agent": self.agent.state_dict(),
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Inverse of `state_dict`; returns notes on what could not be restored."""
        self.updates = int(state["updates"])
        self.learn_from = state["learn_from"]
        self.evaluated = dict(state["evaluated"])
        self.agent.load_state_dict(state["agent"])
        self.guard.load_state_dict(state["guard"])
        notes = self.replay.load_state_dict(state["replay"])
        return notes + self.collector.load_state_dict(state["collector"])

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
        """Close environments and files; safe to call twice."""
        self.progress.close()
        self.logger.close()
        self.env.close()
        if self.eval_env is not None:
            self.eval_env.close()

    def __enter__(self) -> Trainer:
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
