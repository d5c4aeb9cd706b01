"""`make demo`: a tour of real turns on a stack that lives for a minute.

Every step says beforehand what should happen; the tour ends with exit code 1 at the first that went otherwise.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnkeeper import AttemptOutcome, Turnkeeper, TurnkeeperError, TurnState
from turnkeeper.terminal import TurnScreen
from turnkeeper.views import AttemptView, TurnView
from turnkeeper_ops.dev import Stack, stack
from turnkeeper_ops.dev.addresses import WRONG_KEY
from turnkeeper_ops.services.process import ServiceError, poll

FLOWER_WITHIN = timedelta(seconds=10)
"""Flower hears of a task's end by an event, a moment after its followers."""


class Unexpected(Exception):
    """A step of the tour went otherwise than announced."""

    def __init__(self, title: str, view: TurnView) -> None:
        super().__init__(title, view)
        self.title = title
        self.view = view

    def __str__(self) -> str:
        outcomes = ", ".join(attempt.outcome for attempt in self.view.attempts)
        return f"“{self.title}” ended {self.view.state} after attempts: {outcomes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """One stop of the tour: a turn, and how it should go."""

    title: str
    says: str
    goes: tuple[AttemptOutcome, ...]
    """The outcomes of its attempts, in order."""
    ends: TurnState = TurnState.COMPLETED
    provider: str | None = None
    """Another provider than the tour's chat has."""


TOUR = (
    Stop(
        title="a plain turn, streamed",
        says="Why do people keep bees?",
        goes=(AttemptOutcome.COMPLETED,),
    ),
    Stop(
        title="a second turn of that chat, chained: only the new message is sent",
        says="And what do the bees get out of it?",
        goes=(AttemptOutcome.COMPLETED,),
    ),
    Stop(
        title="429 with Retry-After: 2, a countdown, then the answer",
        says="How many are there in a hive? sim:rate-limited",
        goes=(AttemptOutcome.RETRIED, AttemptOutcome.COMPLETED),
    ),
    Stop(
        title="the provider has lost the chain: healed at once with the full history",
        says="Who counts them? sim:lost-anchor",
        goes=(AttemptOutcome.HEALED, AttemptOutcome.COMPLETED),
    ),
    Stop(
        title="the stream is cut in the middle: rolled back, tried again, nothing doubled",
        says="Do they mind? sim:cut",
        goes=(AttemptOutcome.RETRIED, AttemptOutcome.COMPLETED),
    ),
    Stop(
        title="a bad key: no retry helps, so the error is stored",
        says="Is anybody there?",
        goes=(AttemptOutcome.FAILED,),
        ends=TurnState.FAILED,
        provider=WRONG_KEY,
    ),
)


def main() -> int:
    """Run the tour; return the exit code."""
    console = Console(highlight=False)
    console.print("Starting PostgreSQL, Redis, a simulated provider, Flower and one worker:")
    try:
        with tempfile.TemporaryDirectory(prefix="turnkeeper-demo-") as folder:
            _run(Path(folder), console)
    except (ServiceError, TurnkeeperError, Unexpected, OSError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)  # noqa: T201 - this is a command
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("\nEverything is stopped. `make up` keeps it running; README.md goes on from here.")
    return 0


def _run(folder: Path, console: Console) -> None:
    def announce(name: str, where: str) -> None:
        console.print(Text(f"  {name:<12}{where}", style="dim"))

    with stack(folder, durable=False, announce=announce) as running, running.keeper() as keeper:
        views = _tour(keeper, console)
        _show_after_restart(folder, views[-1], console)
        console.print(_table(views))
        console.print(_flower_table(running, views))


def _tour(keeper: Turnkeeper, console: Console) -> list[TurnView]:
    chat: UUID | None = None
    views: list[TurnView] = []
    for number, stop in enumerate(TOUR, start=1):
        console.print(Text(f"\n({number}) {stop.title}", style="bold"))
        console.print(Text(f"  “{stop.says}”", style="cyan"))
        provider = stop.provider or "simulator"
        turn = keeper.enqueue(None if stop.provider else chat, stop.says, provider=provider, model="sim-1")
        chat = chat or turn.chat_id
        TurnScreen(console).show(keeper.follow(turn.id))
        views.append(_expect(stop, keeper.show(turn.id)))
    return views


def _expect(stop: Stop, view: TurnView) -> TurnView:
    if view.state is not stop.ends or tuple(attempt.outcome for attempt in view.attempts) != stop.goes:
        raise Unexpected(stop.title, view)
    return view


def _show_after_restart(folder: Path, failed: TurnView, console: Console) -> None:
    """Ask a new process for the stored error: it comes from PostgreSQL, not from anybody's memory."""
    console.print(Text(f"\n$ turnkeeper show {failed.id}", style="bold"))
    command = [sys.executable, "-m", "turnkeeper_worker.cli", "show", str(failed.id)]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    console.print(Text(shown.stdout.rstrip() or shown.stderr.rstrip()))
    if shown.returncode != 0:
        raise Unexpected("show the stored error", failed)


def _table(views: Sequence[TurnView]) -> Table:
    table = Table("", "state", "attempts", "kinds", "waits", "chained", title="\nThe turns", title_justify="left")
    for number, view in enumerate(views, start=1):
        table.add_row(
            f"({number})",
            view.state,
            str(len(view.attempts)),
            ", ".join(filter(None, map(_kind, view.attempts))),
            ", ".join(f"{attempt.delay_ms / 1000:.1f} s" for attempt in view.attempts if attempt.delay_ms),
            ", ".join("yes" if attempt.chained else "no" for attempt in view.attempts),
        )
    return table


def _kind(attempt: AttemptView) -> str:
    return "chain broken" if attempt.outcome is AttemptOutcome.HEALED else attempt.kind or ""


def _flower_table(running: Stack, views: Sequence[TurnView]) -> Table:
    """Show the same turns as Flower's API tells them: a task's id is its turn's."""
    url = f"{running.addresses.flower_url}/api/tasks"
    tasks: dict[str, dict[str, Any]] = {}

    def is_up_to_date() -> bool:
        tasks.update(_fetch(url))
        return all(tasks.get(str(view.id), {}).get("state") in {"SUCCESS", "FAILURE"} for view in views)

    if not poll(is_up_to_date, within=FLOWER_WITHIN):
        raise ServiceError(f"Flower at {url} does not know every turn")
    table = Table("", "task", "state", "retries", "runtime", title=f"\n{url}", title_justify="left")
    for number, view in enumerate(views, start=1):
        task = tasks[str(view.id)]
        runtime = f"{task['runtime']:.2f} s" if task["runtime"] is not None else ""
        table.add_row(f"({number})", str(view.id), task["state"], str(task["retries"]), runtime)
    return table


def _fetch(url: str) -> dict[str, dict[str, Any]]:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own address
        found: dict[str, dict[str, Any]] = json.load(response)
    return found


if __name__ == "__main__":
    sys.exit(main())
