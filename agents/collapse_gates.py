"""Gates on the numbers that reveal a collapsed latent prediction, which success does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MARK = "health/loss_ratio"
"""Number that only an agent with a latent prediction reports; without it there is no gate."""


class CollapseError(RuntimeError):
    """The latent prediction of a run has collapsed, and `demos.gates` is stop."""


class Gate(NamedTuple):
    """One number and the open interval in which it is healthy."""

    name: str
    above: float | None = None
    below: float | None = None

    def breach(self, value: float) -> str | None:
        """What is wrong with `value`, which may be NaN; None: nothing."""
        low = self.above is None or value > self.above
        high = self.below is None or value < self.below
        if low and high:
            return None
        bounds = []
        if self.above is not None:
            bounds.append(f"more than {self.above}")
        if self.below is not None:
            bounds.append(f"less than {self.below}")
        return f"{self.name} {value:.4g}, expected {' and '.join(bounds)}"


COMMON = (Gate(MARK, below=0.6),)
"""Predictions hardly better than the mean of the targets."""

ONE_TASK = (Gate("health/target_std", above=0.15), Gate("health/target_cosine", below=0.98))
"""Within a task targets spread less, and at their fixed scale the cosine is about sqrt(1 - std^2);
how many directions they need is the task's affair."""

SEVERAL_TASKS = (
    *(Gate("health/target_std", above=0.45), Gate("health/task_std", above=0.15)),
    *(Gate("health/target_cosine", below=0.9), Gate("health/top_share", below=0.7)),
)
"""The std over tasks, that within the most frequent one, one code for everything, and the share of
the first direction."""

SIGREG = (Gate("health/projected_std", above=0.4, below=1.5), Gate("health/sigreg", below=5.0))
"""What the regulariser asks of its projections, in place of the targets' std."""


def gates(found: Mapping[str, float], *, several_tasks: bool, guard: str) -> list[str]:
    """A sentence for every gate that `found` fails; [] without a latent prediction.

    Args:
        found: what `examine` measured at the middle step of held-out chunks.
        several_tasks: the windows come from more than one task.
        guard: `act_jepa.model.guard`.

    Thresholds separate healthy from collapsed models of a replica with 64 features on six
    Meta-World tasks. Centred rank and linear probes are no gates: a collapse does not move them.
    """
    if MARK not in found:
        return []
    applied = COMMON + (SEVERAL_TASKS if several_tasks else ONE_TASK)
    if guard == "sigreg":
        applied = tuple(gate for gate in applied if gate.name != "health/target_std") + SIGREG
    breaches = (gate.breach(found[gate.name]) for gate in applied if gate.name in found)
    return [breach for breach in breaches if breach is not None]
