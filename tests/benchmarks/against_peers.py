"""The same turns, run by Turnkeeper and by its peers: what an event costs, and how many short turns a core does.

`python -m tests.benchmarks.against_peers [--streams 100] [--seconds 10] [--turns 400] [--rounds 2]`

The peers live in an environment of their own, which is made on the first run (`peers-requirements.txt`).
Prefork needs a process for each turn, so it gets fewer streams; the CPU of an event does not depend on that.
"""

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from tests.benchmarks.lab import ROOT, WITHIN, Lab, Meter, lab, resident_bytes
from tests.benchmarks.report import Goal, Report, Series, progress, run

REQUIREMENTS = Path(__file__).with_name("peers-requirements.txt")
OURS = "turnkeeper"
PEERS = {
    "celery_prefork": "Celery prefork + openai",
    "dbos_queue": "DBOS + openai",
    "taskiq_redis_queue": "Taskiq + openai",
}
PREFORK = "celery_prefork"
MAX_PREFORK = 16
"""Processes of 60 MB and more each."""
SHORT = "short-3"


@dataclass(frozen=True, slots=True)
class Cost:
    """One engine, one round."""

    microseconds: float
    """CPU of one event of a long stream."""
    mib: float
    """Memory of the worker with all its streams open."""
    milliseconds: float
    """CPU of one short turn."""
    rate: float
    """Short turns in a second, by the clock on the wall."""

    @property
    def rate_of_a_core(self) -> float:
        """How many short turns one second of CPU does."""
        return 1000 / self.milliseconds


def python_of_peers() -> str:
    """Return the peers' interpreter; make their environment where there is none."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    place = ROOT / ".bench" / digest
    python = place / "bin" / "python"
    if not (place / "made").exists():
        progress(f"peers: making their environment in {place}")
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        (place / "made").touch()
    return str(python)


def measure(options: argparse.Namespace) -> Report:
    """Run the engines in turn."""
    python = python_of_peers()
    found: dict[str, list[Cost]] = {}
    with lab() as here:
        here.stack.postgres.create_database("dbos")
        for number in range(options.rounds):
            for engine in options.engines:
                progress(f"peers: round {number + 1} of {options.rounds}, {engine}")
                found.setdefault(engine, []).append(Engine(here, engine, python).cost(options))
    return _report(options, found)


@dataclass(frozen=True, slots=True)
class Engine:
    """Ours, or a peer, and what it is asked to do."""

    here: Lab
    name: str
    python: str

    def cost(self, options: argparse.Namespace) -> Cost:
        """Measure short turns, then long streams."""
        slots = min(options.streams, MAX_PREFORK) if self.name == PREFORK else options.streams
        self._enqueue(options.turns, SHORT)
        with self._worker(slots) as pids:
            milliseconds, rate = self._short_turns(options.turns, pids)
            return Cost(*self._streams(slots, options.seconds, pids), milliseconds, rate)

    def _short_turns(self, turns: int, pids: list[int]) -> tuple[float, float]:
        """Measure between a tenth and nine tenths of the turns."""
        left = self.here.control("/stats")["finished"]
        first = self._finish(left + turns // 10)
        meter = Meter(worker=pids)
        last = self._finish(left + turns * 9 // 10)
        spent = meter.read()
        self._finish(left + turns)
        return spent.cpu["worker"] / (last - first) * 1000, (last - first) / spent.seconds

    def _finish(self, count: int) -> int:
        self.here.wait(lambda: self.here.control("/stats")["finished"] >= count, f"{self.name} does its turns")
        return int(self.here.control("/stats")["finished"])

    def _streams(self, streams: int, seconds: float, pids: list[int]) -> tuple[float, float]:
        self.here.control("/hold")
        self._enqueue(streams, "held")
        self.here.wait(lambda: self.here.control("/stats")["streams"] == streams, f"{self.name} opens its streams")
        before, meter = self.here.control("/open"), Meter(worker=pids)
        time.sleep(seconds)
        after, spent = self.here.control("/stats"), meter.read()
        mib = resident_bytes(pids) / 1024 / 1024
        self.here.control("/close")
        self._finish(after["finished"] + streams)
        return spent.cpu["worker"] / (after["sent"] - before["sent"]) * 1e6, mib

    def _enqueue(self, count: int, model: str) -> None:
        if self.name == OURS:
            self.here.enqueue(count, model)
            return
        with self._program("enqueue", str(count), model) as child:
            child.finish(within=WITHIN)

    @contextmanager
    def _worker(self, slots: int) -> Iterator[list[int]]:
        if self.name == OURS:
            with self.here.workers(concurrency=slots) as pids:
                yield pids
            return
        with self._program("work", slots=slots) as child:
            yield [child.pid]

    def _program(self, *arguments: str, slots: int = 1):  # noqa: ANN202 - a context manager of the lab's
        environment = {"BENCH_PROVIDER_URL": self.here.provider_url, "BENCH_SLOTS": str(slots)}
        command = (self.python, "-m", "tests.benchmarks.peers", self.name, *arguments)
        return self.here.program(f"{self.name}-{arguments[0]}", *command, environment=environment)


def _report(options: argparse.Namespace, found: dict[str, list[Cost]]) -> Report:
    columns = (
        "engine",
        "CPU of an event, µs",
        "short turn, CPU ms",
        "short turns a core and second",
        "a second",
        "MiB",
    )
    report = Report(
        f"Peers: {options.streams} streams of 20 events/s (prefork {MAX_PREFORK}), {options.turns:,} short turns",
        columns,
    )
    figures = ("microseconds", "milliseconds", "rate_of_a_core", "rate", "mib")
    for engine, costs in found.items():
        series = (Series.over(costs, attrgetter(figure)) for figure in figures)
        report.rows.append((PEERS.get(engine, engine), *series))
    cpu = {engine: Series.over(costs, lambda one: one.microseconds) for engine, costs in found.items()}
    rates = {engine: Series.over(costs, lambda one: one.rate_of_a_core) for engine, costs in found.items()}
    for peer, name in PEERS.items():
        if not {OURS, peer} <= set(found):
            continue
        events, turns = cpu[OURS].against(cpu[peer]), rates[OURS].against(rates[peer])
        report.goals.append(Goal(f"CPU of an event, ours / {name}", events, most=1.0))
        report.goals.append(Goal(f"short turns a core, ours / {name}", turns, least=1.0))
    report.notes = [
        "The peers show nothing while it is spoken, order no turns and chain nothing; ours does all that here.",
        "A worker's CPU alone is counted; DBOS and Turnkeeper use more of PostgreSQL than the others do.",
    ]
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="peers", description="the same turns, run by peers")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--engines", nargs="+", choices=(OURS, *PEERS), default=(OURS, *PEERS))
    sys.exit(run(parser, measure))
