"""What defines the problem an agent is given, apart from seeds and from how it is computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reverie.envs.distractors.distraction import Mask
from reverie.envs.distractors.sources import Split
from reverie.envs.specs import EnvError

Observe = Literal["auto", "image", "state", "both"]


@dataclass(frozen=True)
class EnvSettings:
    """The settings that a score depends on; two runs are comparable when these are equal."""

    task: str
    """Registry name, "suite/task"."""
    image_size: int = 64
    """Height and width of images, in pixels."""
    action_repeat: int = 1
    """Simulator steps per agent step."""
    render: Literal["reference", "quick"] = "reference"
    """MuJoCo's picture, or the fast one without shadows."""
    time_limit: int | None = None
    """Agent steps after which an episode is cut; None: as the suite has it."""
    on_invalid: Literal["error", "drop"] = "error"
    """What happens at NaN, absurd rewards or wrong shapes."""
    gray: bool = False
    """Atari: one channel of brightness instead of three of colour."""
    life_loss: bool = False
    """Atari: a lost life ends the learner's episode while the game goes on; for training."""
    sticky: float = 0.0
    """Atari: probability with which the emulator repeats its last action in a frame."""
    observe: Observe = "auto"
    """dm_control and Meta-World: pictures, the state as a vector, or both; `make_vec` writes here
    what auto stands for."""
    distractor: str = "none"
    """dm_control, toy/dot and toy/home: name of a preset of `envs.distractors`."""
    distractor_source: str = "procedural"
    """Where its clips come from: procedural, static, noise, or a folder of videos."""
    distractor_mask: Mask = "preset"
    """What its clips replace: as the preset has it, blue pixels, or all but the bodies."""
    split: Split = "train"
    """Its clips: those to train in front of, or those to be tested with."""


OBSERVED: dict[str, Observe] = {"dmc": "image", "metaworld": "state"}
"""What "auto" stands for in the suites whose tasks can be observed in more than one way."""

ATARI_ONLY = ("gray", "life_loss", "sticky")
"""Settings that no other suite has."""


def settings_differences(train: EnvSettings, evaluation: EnvSettings) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which evaluation differs from training, with both values."""
    ours, theirs = asdict(train), asdict(evaluation)
    return {k: (ours[k], theirs[k]) for k in ours if ours[k] != theirs[k]}


def require_same_settings(
    train: EnvSettings, evaluation: EnvSettings, *, allowed: Collection[str] = ()
) -> None:
    """Raise `EnvError` if evaluation differs from training in a field not `allowed` on purpose."""
    found = settings_differences(train, evaluation)
    wrong = {k: v for k, v in found.items() if k not in allowed}
    if wrong:
        listed = "; ".join(
            f"{k}: trained with {a!r}, evaluated with {b!r}" for k, (a, b) in wrong.items()
        )
        raise EnvError(
            f"Expected evaluation in the environment of training, found {listed}. Name the field "
            "in `allowed` if the difference is meant."
        )
