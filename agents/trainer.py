"""The training loop: build, resume, then collect, update, evaluate and save until the budget."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch

from reverie.agents.clips_record import check_clips, record_clips
from reverie.agents.collector import Collector
from reverie.agents.configs import RunConfig
from reverie.agents.devices import memory_advice, resolve_device
from reverie.agents.evaluate import EvaluationStopped, evaluate, final_episodes, slots_for
from reverie.agents.progress import Progress
from reverie.agents.registry import build_agent, build_replay, family
from reverie.agents.resolve import dump, run_directory
from reverie.agents.run_loop import RunLoop
from reverie.agents.runs.rundir import RunDir
from reverie.agents.seeding import stream
from reverie.agents.stopping import StopRequest
from reverie.envs.registry import make_vec
from reverie.envs.specs import VecEnv

MAY_DIFFER = (
    *("run", "env.step_timeout", "train.checkpoint_minutes", "train.checkpoint_keep"),
    *("demos.path", "demos.verify"),
    *("train.monitor", "train.monitor_every", "train.monitor_from"),
    *("train.inspect_every", "train.inspect_probe", "env.distractor_source"),
)
"""Settings that a resumed run may change: none of them touches what is learned. The clips of a
source are compared by their contents."""


View = Literal["test", "train", "clean"]
"""What an evaluation of a distracted task sees: clips never trained on, those of training, none."""


def other_views(cfg: RunConfig) -> tuple[View, ...]:
    """Views that are scored at the end besides "test": those that differ from it."""
    name = cfg.env.distractor
    if name == "none":
        return ()
    # late: a task that nothing distracts from needs no preset
    from reverie.envs.distractors.presets import has_splits

    return ("train", "clean") if has_splits(name) else ("clean",)


def train(cfg: RunConfig, *, fresh: bool = False) -> int:
    """Train one run, or continue it; returns the exit code.

    0: done; 130 or 143: a signal came, the run was saved, and the same call continues it. Errors
    are recorded in status.json and raised; a refused continuation leaves the run as it stands.
    `fresh` refuses a directory that holds a run.
    """
    torch.set_num_threads(cfg.train.threads)
    loop = loop_of(cfg)
    path, check = run_directory(cfg), functools.partial(check_clips, cfg=cfg)
    with (
        StopRequest() as stop,
        RunDir(path, config=dump(cfg), may_differ=MAY_DIFFER, fresh=fresh, check=check) as run,
    ):
        try:
            with loop(cfg, run, stop) as trainer, memory_advice(cfg):
                return trainer.run()
        except BaseException as error:
            run.status("failed", reason=f"{type(error).__name__}: {error}")
            raise


def loop_of(cfg: RunConfig) -> Callable[[RunConfig, RunDir, StopRequest], RunLoop]:
    """The way to train that suits the agent: from its own experience, or from demonstrations.

    Demonstrations are read and the simulator is looked at here, so that what is wrong with them
    leaves no run directory behind.
    """
    if family(cfg.agent) != "act_jepa":
        return Trainer
    from reverie.agents.demos.demonstrations import load_demonstrations
    from reverie.agents.demos.evaluation import check_simulator
    from reverie.agents.imitation import ImitationTrainer

    data = load_demonstrations(cfg)
    if final_episodes(cfg):
        check_simulator(cfg, data.spec.env_spec(cfg.task))
    return functools.partial(ImitationTrainer, data=data)


def build_env(
    cfg: RunConfig, purpose: Literal["train", "eval"], num_envs: int, *, view: View = "test"
) -> VecEnv:
    """The run's task; evaluation differs from training in seeds and slots, and plays full games.

    `view` is what an evaluation of a distracted task sees behind the scene.
    """
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
        observe=env.observe,
        distractor="none" if purpose == "eval" and view == "clean" else env.distractor,
        distractor_source=env.distractor_source,
        distractor_mask=env.distractor_mask,
        split="test" if purpose == "eval" and view == "test" else "train",
    )


class Trainer(RunLoop):
    """Collect, update, evaluate: learning from the agent's own experience."""

    def __init__(
        self,
        cfg: RunConfig,
        run: RunDir,
        stop: StopRequest,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Build everything and load the newest valid checkpoint, if there is one."""
        super().__init__(cfg, run, stop, clock=clock)
        record_clips(run.path, cfg)
        self.env = build_env(cfg, "train", cfg.env.num_envs)
        self.eval_env: VecEnv | None = None
        self._evaluated_in: tuple[int, View] | None = None
        self.agent = build_agent(self.env.spec, cfg)
        self.collector = Collector(self.env, self.agent, seed=cfg.seed, device=self.device)
        self.replay = build_replay(
            self.env.spec, cfg, directory=run.path / "replay", device=self.device
        )
        self.learn_from: int | None = None
        repeat = self.env.spec.action_repeat
        progress = Progress(cfg.train.steps, action_repeat=repeat, clock=clock)
        self.begin(progress, segments=self.replay)

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
                self._monitor_if_due(over=False)
                continue
            if self._finished():
                self._monitor_if_due(over=True)  # before the save that a repeated command loads
            if self.collector.restorable:
                self._stop_if_collapsed()
            self._inspect_if_due()  # before the save of the evaluation, which counts it as done
            self._evaluate_if_due()
            if self.collector.restorable and self.save_due.due(self.steps):
                self._save()
            if self._finished():
                break
            if self.stop and self.collector.restorable:
                continue  # no step more: a signal in the last evaluation must not cost the budget
            self._collect()
        return self._done()

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

    def counters(self) -> dict[str, float]:
        """Those of every run, and what was collected."""
        return super().counters() | {
            "count/frames": self.steps * self.env.spec.action_repeat,
            "count/failed_replay_writes": self.replay.failed_writes,
            "replay/rows": len(self.replay),
            "speed/steps": self.progress.rates.steps,
        }

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
            self._check_clips()
            self.progress.note(f"budget spent; the final score takes {episodes} episodes")
        try:
            result = self._score(episodes)
            others = {view: self._score(episodes, view) for view in self._other_views(over)}
        except EvaluationStopped:
            return
        self.evaluated = {"step": self.steps, "count": count, "mean": result["mean"]}
        kept = ("episodes", "protocol", "success")
        self.evaluated |= {name: result[name] for name in kept if name in result}
        if others:
            told = ("mean", "std", "episodes", "protocol")
            self.evaluated["others"] = {v: {k: r[k] for k in told} for v, r in others.items()}
        self._record(result, others)
        self._save(score=result["mean"])

    def _check_clips(self) -> None:
        """The final score is one in front of the clips of training, or there is none yet."""
        try:
            check_clips(self.run_dir.path, self.cfg)
        except Exception:
            self._save()
            raise

    def _other_views(self, over: bool) -> tuple[View, ...]:
        """Views scored besides the test clips: at the end, of a task that is distracted."""
        return other_views(self.cfg) if over else ()

    def _score(self, episodes: int, view: View = "test") -> dict[str, Any]:
        env = self._evaluation_env(episodes, view)
        return evaluate(
            self.agent,
            env,
            episodes=episodes,
            seed=self.cfg.seed,
            device=self.device,
            stop=lambda: bool(self.stop),
        )

    def _record(self, result: dict[str, Any], others: dict[View, dict[str, Any]]) -> None:
        """Write an evaluation into every log."""
        for slot, (score, length) in enumerate(
            zip(result["returns"], result["lengths"], strict=True)
        ):
            record = {"step": self.steps, "purpose": "eval", "slot": slot}
            self.logger.episode(record | {"score": score, "length": length})
        names = ("mean", "std", "min", "max", "success")
        scores = {f"eval/{name}": result[name] for name in names if name in result}
        scores |= {f"eval_{view}/mean": other["mean"] for view, other in others.items()}
        self.logger.scalars(self.steps, scores)
        shown = {str(view): other["mean"] for view, other in others.items()}
        self.progress.update(self.steps, self.updates, {"eval": result["mean"]} | shown)

    def _evaluation_env(self, episodes: int, view: View) -> VecEnv:
        wanted = (slots_for(episodes, self.cfg.task), view)
        if self.eval_env is not None and self._evaluated_in != wanted:
            self.eval_env.close()
            self.eval_env = None
        if self.eval_env is None:
            self.eval_env = build_env(self.cfg, "eval", wanted[0], view=view)
            self._evaluated_in = wanted
        return self.eval_env

    def _inspect_if_due(self) -> None:
        over = self.steps >= self.cfg.train.steps
        if self.learn_from is not None and self.inspector.due(self.steps, over=over):
            self.inspector.look(self.agent, self.replay, self.steps)

    def examine(self) -> dict[str, float]:
        """What an agent computes besides its updates, on a batch that no update draws."""
        cfg = self.cfg.train
        if not self.replay.can_sample(cfg.batch_length):
            return {}
        rng = stream(self.cfg.seed, "report", self.updates)
        found = self.agent.examine(self.replay, rng, (cfg.batch_size, cfg.batch_length))
        return {key: float(value) for key, value in found.items()}

    def standing(self) -> dict[str, Any]:
        """That of every run, and how much there is to learn from."""
        return super().standing() | {"replay_rows": len(self.replay)}

    # state

    def _save(self, *, score: float | None = None) -> bool:
        return self.collector.restorable and super()._save(score=score)

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-identical continuation needs."""
        return super().state_dict() | {
            "learn_from": self.learn_from,
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Inverse of `state_dict`; returns notes on what could not be restored."""
        notes = super().load_state_dict(state)
        self.learn_from = state["learn_from"]
        notes += self.replay.load_state_dict(state["replay"])
        return notes + self.collector.load_state_dict(state["collector"])

    def close(self) -> None:
        """Close environments and files; safe to call twice."""
        super().close()
        self.env.close()
        if self.eval_env is not None:
            self.eval_env.close()
