"""Gates on the numbers that reveal a collapsed representation, which scores do not; and alarms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from reverie.agents.configs import RunConfig
from reverie.agents.registry import family

IN_A_ROW = 2
"""Looks that must agree before an alarm is raised, or cleared."""


class CollapseError(RuntimeError):
    """The representation of a run has collapsed, and `train.monitor` is stop."""


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


MUDREAMER = (
    *(Gate("health/information", above=0.45), Gate("health/target_cosine", below=0.955)),
    *(Gate("health/loss_ratio", below=1.75), Gate("health/embed_cosine", below=0.995)),
)
"""Nats by which posteriors differ from their mean; one posterior for everything; a prior that is
twice as far from them as a constant; one embedding for everything."""

SPR = (
    *(Gate("health/latent_cosine", below=0.998), Gate("health/target_cosine", below=0.9999)),
    Gate("health/loss_ratio", below=10.0),
)
"""One latent, or one projection, for everything; predictions far worse than a constant. Screens
are alike, and so are healthy codes of them: what counts is the distance from 1."""

ACT_JEPA = (Gate("health/loss_ratio", below=0.6),)
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


def gates(cfg: RunConfig, *, tasks: int = 1) -> tuple[Gate, ...]:
    """Gates of the agent's family, learning `tasks` tasks; those of numbers that it reports apply.

    Those of ACT-JEPA separate healthy from collapsed models of a replica with 64 features on six
    Meta-World tasks, the others small models of seed 0 on a toy world. Centred rank and linear
    probes are no gates: a collapse does not move them.
    """
    kind = family(cfg.agent)
    if kind != "act_jepa":
        return {"mudreamer": MUDREAMER, "spr": SPR}.get(kind, ())
    applied = ACT_JEPA + (SEVERAL_TASKS if tasks > 1 else ONE_TASK)
    if cfg.act_jepa.model.guard == "sigreg":
        applied = tuple(gate for gate in applied if gate.name != "health/target_std") + SIGREG
    return applied


class CollapseMonitor:
    """Alarms of a run: raised and cleared by looks that agree, so that none flickers."""

    def __init__(self, applied: tuple[Gate, ...]) -> None:
        self._gates = applied
        self._streaks: dict[str, int] = {}
        self.looked = 0
        self.judged = 0
        self.alarms: dict[str, str] = {}
        self.numbers: dict[str, float] = {}

    def look(self, update: int, found: Mapping[str, float], *, judge: bool) -> list[str]:
        """Take the numbers of an examination; returns what there is to tell.

        Without `judge` numbers are kept and alarms forgotten.
        """
        self.looked, self.judged = update, self.judged + 1 if judge else 0
        self.numbers = {k: v for k, v in found.items() if k.startswith("health/")}
        if not judge:
            self._streaks, self.alarms = {}, {}
            return []
        told = [self._judge(gate, found[gate.name]) for gate in self._gates if gate.name in found]
        return [sentence for sentence in told if sentence is not None]

    def _judge(self, gate: Gate, value: float) -> str | None:
        name, breach = gate.name, gate.breach(value)
        raised = name in self.alarms
        if breach is not None and raised:
            self.alarms[name] = breach
        streak = self._streaks.get(name, 0) + 1 if (breach is not None) != raised else 0
        self._streaks[name] = streak % IN_A_ROW
        if streak < IN_A_ROW:
            return None
        if breach is not None:
            self.alarms[name] = breach
            return f"collapse? {breach}"
        del self.alarms[name]
        return f"{name} {value:.4g} is healthy again"

    def known(self) -> list[str] | None:
        """Sentences of the alarms; None before as many looks were judged as must agree."""
        return list(self.alarms.values()) if self.judged >= IN_A_ROW else None

    def status(self) -> dict[str, Any]:
        """Update of the last look, the alarms as they are known, and its numbers."""
        return {"update": self.looked, "alarms": self.known(), **self.numbers}

    def state_dict(self) -> dict[str, Any]:
        """Everything that later looks depend on, and the last numbers."""
        return {
            "looked": self.looked,
            "judged": self.judged > 0,
            "judgements": self.judged,
            "streaks": dict(self._streaks),
            "alarms": dict(self.alarms),
            "numbers": dict(self.numbers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; a state that does not count its judgements had enough."""
        self.looked = int(state["looked"])
        self.judged = int(state.get("judgements", IN_A_ROW * state["judged"]))
        self._streaks = {str(k): int(v) for k, v in state["streaks"].items()}
        self.alarms, self.numbers = dict(state["alarms"]), dict(state["numbers"])
