"""What a streamed event costs a worker, against a bare reader of the same streams and against the official client.

`python -m tests.benchmarks.streams [--turns 1000] [--few 250] [--seconds 20] [--rounds 2]`

Every engine is one process. The provider holds its words back until all streams are open, and then lets everyone
speak for the measured time, so what is measured is streaming alone; opening and ending are counted apart.

The official client cannot hear a thousand streams; falling behind, it reads many events at once, which looks
cheaper than it is. So all engines are measured a second time with as many streams as it can just follow.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from typing import TypeAlias
from uuid import UUID

from tests.benchmarks.lab import PER_SECOND, Helper, Lab, Meter, Unfinished, helper, lab, resident_bytes
from tests.benchmarks.report import Goal, Report, Series, progress, run

FOLLOWED = 16
WARM_UP = 200
"""Short turns before the memory is read for the first time: what is loaded once is nobody's."""
ENGINES = ("turnkeeper", "bare", "openai")
LATE_MS = 1000.0
"""An engine whose events come later than this at the end of the measured time has fallen behind."""
MAX_AGAINST_BARE = 2.0
MAX_AGAINST_OPENAI = 1 / 3
MAX_KIB = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One engine, one round."""

    microseconds: float
    """CPU of one event, while all streams speak."""
    with_ends: float
    """The same, with the opening and the ending of the turns."""
    kib: float
    """Memory of one turn."""
    cores: float
    p50_ms: float
    p99_ms: float
    late_s: float
    """How long after the last words the last turn ended."""
    lag_ms: float
    """How late the provider was with its own events."""

    @property
    def fell_behind(self) -> bool:
        """Whether the events came later and later."""
        return self.p99_ms > LATE_MS


Found: TypeAlias = dict[tuple[str, int], list[Run]]
"""The rounds of an engine with so many streams."""


def measure(options: argparse.Namespace) -> Report:
    """Run the engines in turn."""
    found: Found = {}
    with lab() as here:
        for number in range(options.rounds):
            for turns, engine in product((options.turns, options.few), ENGINES):
                progress(f"streams: round {number + 1} of {options.rounds}, {engine}, {turns} turns")
                found.setdefault((engine, turns), []).append(_run(here, engine, turns, options.seconds))
        here.check_all_completed()
    return _report(options, found)


def _run(here: Lab, engine: str, turns: int, seconds: float) -> Run:
    here.control("/hold")
    if engine != "turnkeeper":
        return _run_reader(here, engine, turns, seconds)
    with here.workers(concurrency=turns + FOLLOWED) as pids:
        here.wait_for_workers()
        here.enqueue(WARM_UP, "short-3")
        here.wait(lambda: here.unfinished() == 0, "the first turns end")
        idle = resident_bytes(pids)
        opening = Meter(engine=pids)
        watched = here.enqueue(turns, "held")[:FOLLOWED]
        here.wait(lambda: here.control("/stats")["streams"] == turns, "all streams are open")
        with _followers(here, watched) as followers:
            return _stream(here, pids, opening, idle, turns, seconds, followers, is_ours=True)


def _run_reader(here: Lab, engine: str, turns: int, seconds: float) -> Run:
    with helper("readers", engine, here.provider_url, "0") as warm, ExitStack() as stack:
        warm.told()
        idle = resident_bytes([warm.pid])
        reader = stack.enter_context(helper("readers", engine, here.provider_url, str(turns)))
        opening = Meter(engine=[reader.pid])
        reader.told()
        here.wait(lambda: here.control("/stats")["streams"] == turns, "all streams are open")
        return _stream(here, [reader.pid], opening, idle, turns, seconds, reader, is_ours=False)


def _stream(
    here: Lab,
    pids: list[int],
    opening: Meter,
    idle: int,
    turns: int,
    seconds: float,
    ears: Helper,
    *,
    is_ours: bool,
) -> Run:
    before, heard_before = here.control("/open"), ears.ask()
    meter = Meter(engine=pids)
    time.sleep(seconds)
    after, heard, spent = here.control("/stats"), ears.ask(), meter.read()
    if after["streams"] < turns:
        raise Unfinished(f"only {after['streams']} of {turns} streams are still open{here.last_words()}")
    kib = (resident_bytes(pids) - idle) / turns / 1024
    here.control("/close")
    closed = time.monotonic()
    sent = after["sent"] - before["sent"]
    # A worker tells nobody how many events it has heard: all that were sent, but for those still on the way.
    behind = heard["delay_p50_ms"] / 1000 if heard["delay_p50_ms"] > LATE_MS else 0.0
    events = sent * (1 - behind / seconds) if is_ours else heard["events"] - heard_before["events"]
    if is_ours or not behind:
        here.wait(lambda: _is_over(here, ears, turns, is_ours=is_ours), "the turns end")
    late = time.monotonic() - closed
    return Run(
        microseconds=spent.cpu["engine"] / events * 1e6,
        with_ends=opening.read().cpu["engine"] / events * 1e6,
        kib=kib,
        cores=spent.cpu["engine"] / spent.seconds,
        p50_ms=heard["delay_p50_ms"],
        p99_ms=heard["delay_p99_ms"],
        late_s=late,
        lag_ms=after["lag_ms"],
    )


def _is_over(here: Lab, ears: Helper, turns: int, *, is_ours: bool) -> bool:
    return here.unfinished() == 0 if is_ours else ears.ask()["ended"] == turns


@contextmanager
def _followers(here: Lab, turn_ids: list[UUID]) -> Iterator[Helper]:
    os.environ.update(here.environment)
    with helper("followers", *map(str, turn_ids)) as followers:
        followers.told()
        here.wait(lambda: followers.ask()["begun"] == len(turn_ids), "the followers are there")
        yield followers


def _report(options: argparse.Namespace, found: Found) -> Report:
    columns = ("engine", "CPU of an event, µs", "with ends, µs", "KiB a turn", "cores", "delay p50, ms", "p99, ms")
    report = Report(
        f"Streams of {PER_SECOND:g} events/s, {options.seconds:g} s, one process", (*columns, "ended after, s")
    )
    for (engine, turns), runs in found.items():
        figures = ("microseconds", "with_ends", "kib", "cores", "p50_ms", "p99_ms", "late_s")
        shown = (Series.over(runs, attrgetter(figure)) for figure in figures)
        report.rows.append((f"{engine}, {turns:,}", *shown))
    report.goals = _goals(options, found)
    behind = [
        f"{engine}, {turns:,}" for (engine, turns), runs in found.items() if any(r.fell_behind for r in runs)
    ]
    lag = max(one.lag_ms for runs in found.values() for one in runs)
    report.notes = [
        f"Fell behind: {'; '.join(behind) or 'nobody'}. The provider was at most {lag:.0f} ms late itself.",
        "An engine that falls behind reads more at once, and its events look cheaper than they are.",
    ]
    return report


def _goals(options: argparse.Namespace, found: Found) -> list[Goal]:
    cpu = {key: Series.over(runs, attrgetter("microseconds")) for key, runs in found.items()}
    many, few = options.turns, options.few
    ours = found["turnkeeper", many]
    return [
        Goal(
            f"CPU of an event, ours / bare, {many:,}",
            cpu["turnkeeper", many].against(cpu["bare", many]),
            MAX_AGAINST_BARE,
        ),
        *(
            Goal(
                f"CPU of an event, ours / openai, {turns:,}",
                cpu["turnkeeper", turns].against(cpu["openai", turns]),
                round(MAX_AGAINST_OPENAI, 2),
            )
            for turns in (many, few)
        ),
        Goal("KiB of a turn", Series.of(ours[0].kib), MAX_KIB),
        Goal("delay of our events at the end, p99, ms", Series.over(ours, attrgetter("p99_ms")), LATE_MS),
        Goal("cores", Series.over(ours, attrgetter("cores")), 1.0),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="streams", description="what a streamed event costs")
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--few", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=20.0)
    sys.exit(run(parser, measure))
