"""What a storm came to: the figures, the findings, and how both are shown."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from turnkeeper.states import AttemptOutcome, TurnState

from .auditor import Complaint, Finding, audit
from .evidence import Evidence
from .mischief import Prank
from .waits import waits

_WIRES = (Prank.PART_POSTGRES, Prank.PART_REDIS, Prank.CUT_POSTGRES, Prank.CUT_REDIS, Prank.CUT_PROVIDER)
_RESTARTS = (Prank.REDIS_RESTART, Prank.REDIS_WIPE, Prank.POSTGRES_RESTART)
_SHOWN = 20
"""How many findings are printed; there is rarely more than one reason."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a storm."""

    seed: int
    figures: dict[str, int | float]
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not self.findings

    def as_json(self) -> str:
        """Return everything as one JSON object."""
        findings = [
            {"complaint": one.complaint, "turn": one.turn_id and str(one.turn_id), "detail": one.detail}
            for one in self.findings
        ]
        return json.dumps({"seed": self.seed, "clean": self.is_clean, **self.figures, "findings": findings})

    def print(self, console: Console) -> None:
        """Show the figures as a table, and the findings below it."""
        table = Table(title=f"storm {self.seed}", show_header=False)
        for name, figure in self.figures.items():
            table.add_row(name, f"{figure:g}", style="bold red" if _is_bad(name, figure) else None)
        console.print(table)
        for line in self.lines():
            console.print(line, style="red", markup=False, highlight=False)

    def lines(self) -> Iterator[str]:
        """Return one line for each finding, up to a limit, and how to see them again."""
        for one in self.findings[:_SHOWN]:
            yield f"{one.complaint}: {f'turn {one.turn_id}: ' if one.turn_id else ''}{one.detail}"
        if len(self.findings) > _SHOWN:
            yield f"… and {len(self.findings) - _SHOWN} more"


def report(seed: int, evidence: Evidence) -> Report:
    """Audit *evidence* and count what happened."""
    findings = tuple(audit(evidence))
    return Report(seed, dict(_figures(evidence, findings)), findings)


def _figures(evidence: Evidence, findings: Sequence[Finding]) -> Iterator[tuple[str, int | float]]:
    states = Counter(turn.state for turn in evidence.turns)
    outcomes = Counter(one.outcome for one in evidence.attempts)
    pranks = Counter(incident.prank for incident in evidence.incidents)
    complaints = Counter(one.complaint for one in findings)
    yield "turns", len(evidence.turns)
    for state in (TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED):
        yield state, states[state]
    yield "workers killed", pranks[Prank.KILL]
    yield "workers told to leave", pranks[Prank.TERM]
    yield "workers stopped", pranks[Prank.STOP]
    yield "servers restarted", sum(pranks[prank] for prank in _RESTARTS)
    yield "wires cut", sum(pranks[prank] for prank in _WIRES)
    yield "attempts", len(evidence.attempts)
    yield "retries", outcomes[AttemptOutcome.RETRIED]
    yield "heals", outcomes[AttemptOutcome.HEALED]
    yield "rescues", outcomes[AttemptOutcome.LOST]
    yield "hand backs", outcomes[AttemptOutcome.HANDED_BACK]
    yield "runs of tools", len(evidence.tool_runs)
    yield "generations paid", sum(call.generated for call in evidence.calls)
    yield "readers", len(evidence.heard)
    yield "visits of readers", sum(one.visits for one in evidence.heard)
    yield "lost", complaints[Complaint.LOST]
    yield "doubled", complaints[Complaint.DOUBLED] + complaints[Complaint.TOOL_TWICE]
    yield (
        "other findings",
        len(findings) - sum(complaints[one] for one in (Complaint.LOST, Complaint.DOUBLED, Complaint.TOOL_TWICE)),
    )
    yield from _waits(wait.extra for wait in waits(evidence))


def _waits(extra: Iterable[timedelta]) -> Iterator[tuple[str, float]]:
    seconds = sorted(wait.total_seconds() for wait in extra) or [0.0]
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        yield f"extra wait {name}, s", round(seconds[min(len(seconds) - 1, int(len(seconds) * share))], 2)


def _is_bad(name: str, figure: float) -> bool:
    return figure > 0 and name in {"lost", "doubled", "other findings"}
