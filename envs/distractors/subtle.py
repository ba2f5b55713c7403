"""DMC-Subtle, after R2-Dreamer: what the task is about becomes tiny.

Nothing is added. Where distractors reward throwing detail away, this punishes it. Sizes act on
masses, inertias, contacts and rewards, so that physics differ from the stock suite's by design:
they are those of a model compiled with the smaller sizes.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reverie.envs.distractors.distraction import Distraction, Mask
from reverie.envs.distractors.sources import ClipSource, Split
from reverie.envs.specs import Array, EnvError

SHRUNK: dict[str, dict[tuple[str, str], float]] = {
    "ball_in_cup": {("geom", "ball"): 1 / 12, ("tendon", "string"): 1 / 12},
    "cartpole": {("geom", "pole_1"): 1 / 20},
    "point_mass": {("geom", "target"): 1 / 6, ("geom", "pointmass"): 1 / 6},
}
"""Domain -> (kind, name) of an object -> factor on its radius or width."""

TARGETS: dict[str, tuple[str, float]] = {
    "finger": ("site", 0.03 / 2),
    "reacher": ("geom", 0.015 / 3),
}
"""Domain -> kind and radius of the target, which the task itself sets at every reset.

A share of the hard task's radius, whichever of the two tasks is played.
"""

TASKS = {
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse"),
    "finger": ("turn_easy", "turn_hard"),
    "point_mass": ("easy", "hard"),
    "reacher": ("easy", "hard"),
}


def smaller_model(domain: str) -> dict[str, tuple[Array, Array]]:
    """Return the arrays of a compiled model that shrinking changes: name -> (stock, smaller)."""
    import mujoco

    suite = importlib.import_module(f"dm_control.suite.{domain}")
    text, assets = suite.get_model_and_assets()
    spec = mujoco.MjSpec.from_string(text.decode(), include=assets)
    stock = _arrays(spec.compile())
    for (kind, name), factor in SHRUNK[domain].items():
        part = getattr(spec, kind)(name)
        if kind == "tendon":
            part.width *= factor
        else:
            part.size[0] *= factor
    smaller = _arrays(spec.compile())
    differing = (k for k in stock if not np.array_equal(stock[k], smaller[k]))
    return {name: (stock[name], smaller[name]) for name in differing}


def _arrays(model: Any) -> dict[str, Array]:
    """Copies of every number of a model that is not text or a texture, by its dotted name."""
    found = {}
    for name in dir(model):
        value = getattr(model, name)
        if isinstance(value, np.ndarray) and not name.startswith(("_", "tex_", "name")):
            found[name] = value.copy()
    for name in ("meaninertia", "meanmass", "meansize", "extent", "center"):
        found[f"stat.{name}"] = np.array(getattr(model.stat, name))
    return found


class Shrunk:
    """Smaller objects in one physics."""

    def __init__(self) -> None:
        self._saved: dict[str, Array] = {}
        self._target: tuple[str, float] | None = None
        self._stock_radius: float | None = None

    def attach(self, physics: Any, *, domain: str, task: str, camera_id: int, size: int) -> None:
        """Shrink a loaded physics before its first reset.

        Raises:
            EnvError: the physics are not of the suite's own model.
        """
        self._model = physics.model
        self._target = TARGETS.get(domain)
        changes = smaller_model(domain) if domain in SHRUNK else {}
        for name, (stock, smaller) in changes.items():
            found = self._read(name)
            if found.shape != stock.shape:
                raise EnvError(
                    f"dmc/{domain}_{task}: expected {name} of shape {stock.shape}, found "
                    f"{found.shape}. Shrink only the suite's own tasks."
                )
            self._saved[name] = found
            self._write(name, np.where(stock != smaller, smaller, found))

    def reset(self, rng: np.random.Generator) -> None:
        """Shrink what the task's own reset has just given its stock size; nothing is random."""
        if self._target is not None:
            kind, radius = self._target
            found = float(self._sizes(kind)[0])
            if found != radius:
                self._stock_radius = found
            self._sizes(kind)[0] = radius

    def after_simulator_step(self) -> None:
        """Nothing moves."""

    def after_agent_step(self) -> None:
        """Nothing moves."""

    def before_render(self, camera: Any) -> None:
        """Nothing is drawn differently."""

    def after_render(self, picture: Array) -> Array:
        """Return the picture as it is."""
        return picture

    def close(self) -> None:
        """Give the model its sizes back, a target that of the task's last reset."""
        for name, stock in self._saved.items():
            self._write(name, stock)
        if self._target is not None and self._stock_radius is not None:
            self._sizes(self._target[0])[0] = self._stock_radius
        self._saved, self._target, self._stock_radius = {}, None, None

    def _sizes(self, kind: str) -> Array:
        """View of the target's sizes."""
        sizes: Array = getattr(self._model, f"{kind}_size")[self._model.name2id("target", kind)]
        return sizes

    def _read(self, name: str) -> Array:
        owner, field = self._owner(name)
        return np.array(getattr(owner, field))

    def _write(self, name: str, value: Array) -> None:
        owner, field = self._owner(name)
        if value.ndim == 0:
            setattr(owner, field, float(value))
        else:
            getattr(owner, field)[:] = value

    def _owner(self, name: str) -> tuple[Any, str]:
        first, _, field = name.rpartition(".")
        return (getattr(self._model, first), field) if first else (self._model, field)


@dataclass(frozen=True)
class SubtlePreset:
    """The one preset that changes physics and rewards."""

    name: str
    family: Literal["subtle"] = "subtle"

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return "the task's objects shrink to between a half and a twentieth; physics change"

    def defined(self, domain: str, task: str) -> bool:
        """Whether the original shrinks something in this task."""
        return task in TASKS.get(domain, ())

    def build(self, source: ClipSource, split: Split, mask: Mask) -> Distraction:
        """Build it; it plays no clips.

        Raises:
            EnvError: a mask was asked for.
        """
        if mask != "preset":
            raise EnvError(
                f"{self.name}: expected the mask 'preset', found {mask!r}; there is no background "
                "to cut out. Leave the mask out."
            )
        return Shrunk()


PRESETS: dict[str, SubtlePreset] = {"subtle": SubtlePreset("subtle")}
