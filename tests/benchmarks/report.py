"""Prints what was measured: as a table for people, as JSON for programs, as Markdown for the documentation."""

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from tests.benchmarks.lab import Unfinished

T = TypeVar("T")

FEW = 100
"""From here on, decimals say nothing."""
FEWER = 10


@dataclass(frozen=True, slots=True)
class Series:
    """One figure, once for each round."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, *values: float) -> "Series":
        """Make a series of the rounds' figures."""
        return cls(tuple(values))

    @classmethod
    def over(cls, rounds: Iterable[T], figure: Callable[[T], float]) -> "Series":
        """Read one figure of each round."""
        return cls(tuple(map(figure, rounds)))

    @property
    def median(self) -> float:
        """The figure that counts."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        """Show the median, and between what the rounds lay."""
        if len(self.values) == 1:
            return _number(self.median)
        return f"{_number(self.median)} ({_number(min(self.values))} to {_number(max(self.values))})"

    def against(self, other: "Series") -> "Series":
        """Return the ratios, round by round: what disturbed one engine may have disturbed its neighbour too."""
        return Series(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)))


def _number(value: float) -> str:
    """Write a figure with the digits that mean something.

    >>> _number(12345.6), _number(12.34), _number(1.234)
    ('12,346', '12.3', '1.23')
    """
    digits = 0 if abs(value) >= FEW else 1 if abs(value) >= FEWER else 2
    return f"{value:,.{digits}f}"


Cell = str | Series


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, and what it should be."""

    what: str
    found: Series
    most: float | None = None
    least: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the median is where it should be."""
        found = self.found.median
        return (self.most is None or found <= self.most) and (self.least is None or found >= self.least)

    @property
    def bound(self) -> str:
        """The goal in words."""
        return f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"


@dataclass(slots=True)
class Report:
    """What one benchmark found."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """How it was measured, in sentences."""

    def as_json(self) -> str:
        """Return it for programs: the median of each figure, and the figures of all rounds."""
        return json.dumps(
            {
                "title": self.title,
                "rows": [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows],
                "goals": [
                    {"what": goal.what, "found": _plain(goal.found), "goal": goal.bound, "met": goal.is_met}
                    for goal in self.goals
                ],
                "notes": self.notes,
            },
            indent=2,
        )

    def as_markdown(self) -> str:
        """Return it for docs/benchmarks.md."""
        lines = [f"### {self.title}", "", _line(self.columns), _line(["---", *["--:"] * (len(self.columns) - 1)])]
        lines += [_line(row) for row in self.rows]
        lines += ["", "| goal | found | |", "|---|--:|---|"] if self.goals else []
        lines += [_line((f"{one.what}: {one.bound}", one.found, _met(one))) for one in self.goals]
        return "\n".join([*lines, "", *self.notes, ""])

    def print(self) -> None:
        """Show it to a person."""
        console = Console(width=None if sys.stdout.isatty() else 130)
        table = Table(*self.columns, title=self.title, title_justify="left", box=None, pad_edge=False)
        for row in self.rows:
            table.add_row(*map(str, row))
        console.print(table)
        for goal in self.goals:
            console.print(f"  {goal.what}: {goal.found}, {goal.bound}: {_met(goal)}", highlight=False)
        for note in self.notes:
            console.print(f"  {note}", style="dim", highlight=False)
        console.print()


def _plain(cell: Cell) -> object:
    return {"median": cell.median, "rounds": cell.values} if isinstance(cell, Series) else cell


def _line(cells: Sequence[Cell]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _met(goal: Goal) -> str:
    return "met" if goal.is_met else "MISSED"


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Report]) -> int:
    """Measure what the command line asks for, and print it as it asks; return the exit code."""
    parser.add_argument("--rounds", type=int, default=2, help="how often each engine is measured, in turn")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--markdown", action="store_true", help="print Markdown")
    options = parser.parse_args()
    # Who is told to end cleans up first.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        report = measure(options)
    except Unfinished as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    if options.json:
        print(report.as_json())  # noqa: T201 - as above
    elif options.markdown:
        print(report.as_markdown())  # noqa: T201 - as above
    else:
        report.print()
    return 0


def progress(line: str) -> None:
    """Tell a person that waits what is going on."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command line
