"""What many turns at once make of a provider that takes ten calls a second.

`python tests/benchmarks/cooldown.py [TURNS]` sends so many turns at once through two workers to a simulator with
that limit, in each way of telling of it. It prints what share of the calls was refused, and how much of the
limit was used, measured over at least 30 seconds in which turns were waiting. It exits 1 where the provider tells
of its limit and more than 2 % are refused, or less than 95 % of it is used.
"""

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from turnkeeper import Turnkeeper
from turnkeeper_ops.dev import Stack, stack

RATE = 10.0
BURST = 10
WORKERS = 2
CONCURRENCY = 500
TURNS = 450
SETTLES_SECONDS = 3.0
"""Left out when the last turn is stored: the bucket was full, nobody knew the pace, and storing took its CPU."""
MEASURED_SECONDS = 30.0
MAX_REFUSED = 0.02
MIN_USED = 0.95
CALM_POLL_SECONDS = 0.5
HTTP_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run the same turns."""

    name: str
    provider: str
    headers: bool
    must_hold: bool
    """Whether the bounds are a promise here."""


CASES = (
    Case("limits told (OpenAI)", "told", headers=True, must_hold=True),
    Case("nothing told", "silent", headers=False, must_hold=False),
    Case("no cooldown", "heedless", headers=True, must_hold=False),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of the calls."""

    calls: int
    refused: int
    used: float
    """Of the limit, while turns were waiting."""
    seconds: float

    @property
    def share(self) -> float:
        """Of all calls, those that were refused."""
        return self.refused / self.calls


def main() -> int:
    """Print the figures; return 1 when one of them is out of bounds."""
    parser = argparse.ArgumentParser(prog="cooldown", description="what many turns make of a limited provider")
    parser.add_argument("turns", type=int, nargs="?", default=TURNS, help="how many are sent at once")
    options = parser.parse_args()
    with open_stack() as running, running.keeper() as keeper:
        figures = {case: measure(running, keeper, case, options.turns) for case in CASES}
    report(figures)
    is_good = all(
        one.share <= MAX_REFUSED and one.used >= MIN_USED for case, one in figures.items() if case.must_hold
    )
    return 0 if is_good else 1


@contextmanager
def open_stack() -> Iterator[Stack]:
    """Run two workers that know a provider for each case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with stack(path, workers=0, concurrency=CONCURRENCY, durable=False) as running:
            url = running.addresses.simulator_url or ""
            lines = "\n".join(settings_of(case, url) for case in CASES)
            (path / "turnkeeper.toml").write_text(f"[retry]\nmax_attempts = 100\n{lines}", encoding="utf-8")
            for _ in range(WORKERS):
                running.start_worker()
            running.wait_until_ready()
            yield running


def settings_of(case: Case, url: str) -> str:
    """Configure the provider of a case; a model of its own is a bucket of its own."""
    return f"""
[providers.{case.provider}]
base_url = "{url}/v1"
api_key_env = "TURNKEEPER_SIMULATOR_KEY"
model = "{case.provider}"
cooldown = {str(case.provider != "heedless").lower()}
"""


def measure(running: Stack, keeper: Turnkeeper, case: Case, turns: int) -> Figures:
    """Send so many turns at once, and read the simulator's log when the last one has ended."""
    ask(running, "PUT", "/simulator/limit", {"requests_per_second": RATE, "burst": BURST, "headers": case.headers})
    ask(running, "DELETE", "/simulator/requests")
    with ThreadPoolExecutor(16) as users:
        ids = list(
            users.map(lambda n: keeper.enqueue(None, f"Question {n}", provider=case.provider).id, range(turns))
        )
    stored_at = time.monotonic()
    wait_for_all(keeper, ids)
    return read(ask(running, "GET", "/simulator/requests?items=0")["requests"], since=stored_at + SETTLES_SECONDS)


def wait_for_all(keeper: Turnkeeper, ids: Sequence[Any]) -> None:
    """Return when every turn has ended.  Raises SystemExit where one did not complete."""
    for turn_id in ids:
        while not (state := keeper.show(turn_id).state).is_final:
            time.sleep(CALM_POLL_SECONDS)
        if state != "completed":
            raise SystemExit(f"turn {turn_id} is {state}: {keeper.show(turn_id).error}")


def read(calls: Sequence[dict[str, Any]], since: float) -> Figures:
    """Read the log: what was taken within the measured time, against what the limit allowed."""
    taken = [call["arrived_monotonic"] for call in calls if call["status"] != HTTP_TOO_MANY_REQUESTS]
    # The last turns of all may be spread thinly: nobody waits behind them.
    until = max(since + MEASURED_SECONDS, taken[-1] - SETTLES_SECONDS)
    within = sum(since <= at < until for at in taken)
    return Figures(
        calls=len(calls),
        refused=len(calls) - len(taken),
        used=within / (RATE * (until - since)),
        seconds=until - since,
    )


def ask(running: Stack, method: str, path: str, body: object = None) -> Any:
    """Use the simulator's control API."""
    content = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{running.addresses.simulator_url}{path}", content, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def report(figures: dict[Case, Figures]) -> None:
    """Print the table."""
    table = Table("", "calls", "refused", "share", "of the limit used", "measured over", box=None)
    for case, one in figures.items():
        cells = (
            f"{one.calls:,}",
            f"{one.refused:,}",
            f"{one.share:.1%}",
            f"{one.used:.1%}",
            f"{one.seconds:.0f} s",
        )
        table.add_row(case.name, *cells)
    console = Console()
    console.print(table)
    console.print(f"where the limit is told: refused at most {MAX_REFUSED:.0%}, used at least {MIN_USED:.0%}")


if __name__ == "__main__":
    sys.exit(main())
