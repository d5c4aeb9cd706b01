"""How much later people hear an answer than the provider says it, while a worker is half full.

`python -m tests.benchmarks.latency [--turns 500] [--probes 150] [--rounds 2]`

A worker streams so many turns to nobody; beside them people ask, one after the other, through Turnkeeper and
from the provider itself, and hear the answers in one and the same process. The provider stamps its words.
"""

import argparse
import os
import sys
from collections.abc import Callable

from tests.benchmarks.lab import PER_SECOND, Lab, Meter, helper, lab
from tests.benchmarks.listening import percentile
from tests.benchmarks.report import Goal, Report, Series, progress, run

SPARE = 100
ROWS = {
    "total": "asked → first word heard",
    "until_called": "of that: asked → provider speaks",
    "first": "of that: provider speaks → heard",
    "events": "later events: sent → heard",
}
MAX_FIRST_MS = 25.0
MAX_EVENT_MS = 40.0

Delays = dict[str, dict[str, list[float]]]


def measure(options: argparse.Namespace) -> Report:
    """Ask round after round."""
    found: list[Delays] = []
    loads: list[float] = []
    with lab() as here, here.workers(concurrency=options.turns + SPARE) as pids:
        here.wait_for_workers()
        os.environ.update(here.environment)
        for number in range(options.rounds):
            progress(f"latency: round {number + 1} of {options.rounds}")
            here.control("/hold")
            here.enqueue(options.turns, "held")
            here.wait(lambda: here.control("/stats")["streams"] == options.turns, "all streams are open")
            here.control("/open")
            meter = Meter(worker=pids)
            found.append(_probe(here, options.probes))
            spent = meter.read()
            loads.append(spent.cpu["worker"] / spent.seconds)
            here.control("/close")
            here.wait(lambda: here.unfinished() == 0, "the turns end")
        here.check_all_completed()
    return _report(options, found, Series(tuple(loads)))


def _probe(here: Lab, count: int) -> Delays:
    with helper("probes", here.provider_url, str(count)) as people:
        told: Delays = people.told()
    return told


def _report(options: argparse.Namespace, found: list[Delays], load: Series) -> Report:
    columns = ("milliseconds", "ours p50", "ours p99", "direct p50", "direct p99", "added p50", "added p99")
    report = Report(
        f"Latency: beside {options.turns:,} turns of {PER_SECOND:g} events/s, {options.probes} questions", columns
    )
    for key, name in ROWS.items():
        ours, direct = (_percentiles(found, who, key) for who in ("ours", "direct"))
        added = tuple(_each(lambda mine, other: mine - other, *pair) for pair in zip(ours, direct, strict=True))
        report.rows.append((name, *ours, *direct, *added))
    report.goals = [
        Goal("first word, way from the provider, added p99, ms", _last(report, "first"), MAX_FIRST_MS),
        Goal("later events, ours p99, ms", _percentiles(found, "ours", "events")[1], MAX_EVENT_MS),
    ]
    report.notes = [f"The worker used {load} cores."]
    return report


def _percentiles(found: list[Delays], who: str, key: str) -> tuple[Series, Series]:
    values = [[percentile(one[who][key], percent) * 1000 for one in found] for percent in (50, 99)]
    return Series(tuple(values[0])), Series(tuple(values[1]))


def _each(work: Callable[[float, float], float], one: Series, other: Series) -> Series:
    return Series(tuple(map(work, one.values, other.values)))


def _last(report: Report, key: str) -> Series:
    cell = report.rows[list(ROWS).index(key)][-1]
    assert isinstance(cell, Series)
    return cell


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="latency", description="how much later people hear")
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--probes", type=int, default=150)
    sys.exit(run(parser, measure))
