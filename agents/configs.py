"""Every setting of a run: frozen dataclasses whose field docstrings are the manual."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reverie.agents.act_jepa_config import ACTJEPAConfig
from reverie.agents.mudreamer_config import MuDreamerConfig
from reverie.agents.spr_config import SPRConfig


class ConfigError(ValueError):
    """One or more settings are wrong; the message lists every problem with its remedy."""

    def __init__(self, problems: list[str]):
        assert problems
        self.problems = list(problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(
            f"{len(problems)} {noun} in the configuration:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )


@dataclass(frozen=True)
class EnvConfig:
    """How the task is built; evaluation differs in seeds, slots and `life_loss` alone."""

    image_size: int = 64
    """Height and width of the image in pixels: 4 times a power of two (SPR family: 36 or more)."""
    action_repeat: int | None = None
    """Simulator steps per agent step; none: the suite's own (dmc 2, atari 4, others 1)."""
    render: Literal["reference", "quick"] = "reference"
    """MuJoCo's default picture (scores), or without shadows and multisampling (15x faster)."""
    observe: Literal["auto", "image", "state", "both"] = "auto"
    """dm_control and Meta-World: images, the state as a vector, or both; auto: images for dmc,
    state for metaworld. Other suites have one kind of observation."""
    num_envs: int = 1
    """N: environments collected from at once."""
    time_limit: int | None = None
    """Agent steps after which an episode is cut; none: the suite's own."""
    workers: Literal["auto", "process", "inline"] = "auto"
    """Where environments run; auto: one inline, more in worker processes."""
    step_timeout: float = 60.0
    """Seconds after which a silent worker is killed and restarted."""
    on_bad_value: Literal["error", "drop"] = "error"
    """NaN, wrong shape or absurd reward: stop, or end the episode as interrupted."""
    gray: bool = False
    """Atari: one channel of brightness instead of three of colour."""
    life_loss: bool = False
    """Atari: a lost life ends the learner's episode, the game goes on; never in evaluation."""
    sticky: float = 0.0
    """Atari: probability with which the emulator repeats its last action in a frame."""
    distractor: str = "none"
    """dm_control, toy/dot and toy/home: what distracts, as `reverie distractors list` names it."""
    distractor_source: str = "procedural"
    """Clips behind the scene: procedural, procedural-shift (test clips of another look), static,
    noise, or a folder of videos."""
    distractor_mask: Literal["preset", "blue", "exact"] = "preset"
    """What the clips replace: as the preset has it, blue pixels, or all but the bodies."""


@dataclass(frozen=True)
class TrainConfig:
    """Budget, rhythm and machine; one agent step is one action, whatever the action repeat."""

    steps: int = 500_000
    """Budget in agent steps, prefill included (ACT-JEPA family: in updates)."""
    train_ratio: float = 512.0
    """Replayed steps per agent step: an update every batch_size x batch_length / ratio steps."""
    batch_size: int = 16
    """B: windows per update, or transitions (SPR family)."""
    batch_length: int = 64
    """T: rows per window; 1 for the SPR family, which draws transitions, and for the ACT-JEPA
    family, whose windows are `act_jepa.model.chunk` long."""
    prefill: int = 1024
    """Agent steps with uniformly random actions before the first update."""
    eval_every: int = 10_000
    """Agent steps (ACT-JEPA family: updates) between evaluations; 0: only at the end."""
    eval_episodes: int = 10
    """Episodes of an evaluation (ACT-JEPA family: of each task), shared equally by parallel
    slots; 0: never evaluate."""
    final_episodes: int | None = None
    """Episodes of the evaluation at the end of the budget; none: as many as eval_episodes."""
    log_every: int = 500
    """Updates between two metric rows; only then does the device answer the host."""
    checkpoint_every: int = 10_000
    """Agent steps (ACT-JEPA family: updates) between checkpoints."""
    checkpoint_minutes: float = 10.0
    """A checkpoint is due after this time as well."""
    checkpoint_keep: int = 2
    """Newest checkpoints kept; the best one is kept besides."""
    inspect_every: int = 0
    """Agent steps (ACT-JEPA family: updates) between two looks at what the agent imagines, with
    one at the end, in TensorBoard and in the folder inspection; 0: none. Changes no result."""
    inspect_probe: int = 0
    """Updates of the probe decoder at every look, which draws what it reads from detached
    features; 0, or a model with a decoder of its own: no probe decoder."""
    monitor: Literal["warn", "stop", "off"] = "warn"
    """What a collapsed representation does: a note, the tag health/alarms and an entry in
    status.json; the end of the run as well; or nothing. It is looked at in any case."""
    monitor_every: int = 500
    """Updates between two looks at the representation, and one at the end of the run; 0: only
    that, which raises no alarm, as two looks must agree."""
    monitor_from: int = 500
    """Updates before which no look is judged, because nothing is learned yet."""
    max_nonfinite: int = 20
    """Consecutive skipped (NaN or infinite) updates after which the run stops."""
    threads: int = 1
    """CPU threads of torch; a different number changes the last bits of every result."""
    device: str = "auto"
    """auto (cuda if there is one), cpu, cuda or cuda:N."""
    compile: Literal["off", "inductor", "graph"] = "off"
    """How the update runs: eager, torch.compile, or captured into a CUDA graph."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast on CUDA with float32 master weights."""


@dataclass(frozen=True)
class ReplayConfig:
    """Where experience is kept; see `reverie.agents.budget` for the bytes it takes."""

    capacity: int = 1_000_000
    """Rows kept over all environments (steps and reset rows); the oldest go first."""
    storage: Literal["ram", "memmap", "device"] = "ram"
    """Arrays in memory, in mapped files of the run directory, or on the training device."""


@dataclass(frozen=True)
class DemosConfig:
    """Demonstrations of the ACT-JEPA family, and what is measured on those held out."""

    path: str | None = None
    """A shard, or any folder above shards; none: demos/<suite>/<name>[-<image size>px]."""
    train_episodes: int = 40
    """Episodes of each task to learn from, the first ones in the order of the shards."""
    held_out_episodes: int = 10
    """Episodes behind them, never learned from, for probes and the monitor; 0: neither."""
    verify: bool = True
    """Compare every file with its checksum before training."""


@dataclass(frozen=True)
class RunConfig:
    """One training run, completely resolved."""

    agent: str = "mudreamer"
    """Name of the agent, as `reverie tasks` lists them."""
    task: str = "dmc/cartpole_swingup"
    """Environment as suite/task; `reverie tasks` lists them."""
    size: str = "S"
    """Size preset of the world model: nano, XS, S (the paper), M, L, XL; SPR and ACT-JEPA
    families: nano, S."""
    seed: int = 0
    """Root of every random stream of the run."""
    run: str | None = None
    """Run directory; none: runs/<suite>/<task>/<agent>-<size>[-<hash of overrides>]/<seed>."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Environment."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Replay."""
    mudreamer: MuDreamerConfig = field(default_factory=MuDreamerConfig)
    """Agents mudreamer and dreamerv3."""
    spr: SPRConfig = field(default_factory=SPRConfig)
    """Agents spr, spr-noaug, rainbow, sr-spr and bbf."""
    act_jepa: ACTJEPAConfig = field(default_factory=ACTJEPAConfig)
    """Agents act-jepa, act and bc."""
    demos: DemosConfig = field(default_factory=DemosConfig)
    """What they learn from."""
