"""What a short turn costs, how many a process runs, against Celery tasks that do nothing, and how many several do.

`python -m tests.benchmarks.short_turns [--turns 2000] [--rounds 2]`

Everything is enqueued before the workers start, so no producer is in the way; what is measured is the stretch
between three tenths of the messages taken and `LEFT` of them left.

Several processes soon fill the machine, together with PostgreSQL, Redis and the provider, and show how many cores
it has. So they are measured a second time, each one running a quarter of the time, in turn: what they hinder each
other by, in PostgreSQL and at the broker, is all that is left.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from uuid import uuid4

from celery import Celery
from tests.benchmarks.bare_celery import NOTHING
from tests.benchmarks.bare_celery import QUEUE as BARE_QUEUE
from tests.benchmarks.lab import QUEUE, Lab, Meter, Spent, lab
from tests.benchmarks.report import Goal, Report, Series, progress, run

from turnkeeper.doorbell import producer_app

CONCURRENCY = 200
LEFT = 500
"""With fewer messages the rescue loop rings for turns that have waited long, and disturbs the figures."""
BARE_FOR_EACH = 4
"""A task that does nothing takes so much less that more of them are needed for the same stretch of time."""
PROCESSES = (1, 2, 4)
SLICES = max(PROCESSES)
LEAST_GROWTH = 1.8
"""For each time that there are twice as many processes."""
LEAST_AGAINST_BARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Run:
    """One engine, one round."""

    done: int
    spent: Spent

    @property
    def rate(self) -> float:
        """Turns per second, by the clock on the wall."""
        return self.done / self.spent.seconds

    @property
    def cores(self) -> float:
        """How many cores the workers and the servers kept busy."""
        return sum(self.spent.cpu.values()) / self.spent.seconds

    def milliseconds(self, who: str) -> float:
        """CPU of one turn."""
        return self.spent.cpu[who] / self.done * 1000


def measure(options: argparse.Namespace) -> Report:
    """Run the engines in turn."""
    found: dict[str, list[Run]] = {}
    with lab() as here:
        for number in range(options.rounds):
            for count in PROCESSES:
                progress(f"short turns: round {number + 1} of {options.rounds}, {count} processes")
                found.setdefault(f"turnkeeper, {count}", []).append(_ours(here, options.turns, count))
                if count == 1:
                    found.setdefault("bare Celery, 1", []).append(_bare(here, options.turns * BARE_FOR_EACH))
            for count in PROCESSES:
                progress(f"short turns: round {number + 1} of {options.rounds}, {count} processes in turn")
                found.setdefault(_in_turn(count), []).append(_ours_in_turn(here, options.turns, count))
        here.check_all_completed()
    return _report(options, found)


def _in_turn(count: int) -> str:
    return f"turnkeeper, {count} of {SLICES} in turn"


def _ours(here: Lab, turns: int, processes: int) -> Run:
    here.enqueue(turns, "short-3")
    with here.workers(processes, concurrency=CONCURRENCY // processes) as pids:
        found = _measure(here, turns, pids)
        here.wait(lambda: here.unfinished() == 0, "the turns end")
    return found


def _ours_in_turn(here: Lab, turns: int, processes: int) -> Run:
    with here.workers(processes, concurrency=CONCURRENCY // processes) as pids:
        here.wait_for_workers(processes)
        with ExitStack() as asleep:
            for pid in pids:
                asleep.enter_context(here.paused(pid))
            here.enqueue(turns, "short-3")
        with here.in_turn(pids, SLICES):
            found = _measure(here, turns, pids)
        here.wait(lambda: here.unfinished() == 0, "the turns end")
    return found


def _bare(here: Lab, tasks: int) -> Run:
    with producer_app(here.stack.addresses.broker_url, BARE_QUEUE) as app:
        _send(app, tasks)
    with bare_worker(here) as pid:
        found = _measure(here, tasks, [pid], BARE_QUEUE)
        here.wait(lambda: here.waiting(BARE_QUEUE) == 0, "the tasks end")
    return found


def _send(app: Celery, tasks: int) -> None:
    for _ in range(tasks):
        name = str(uuid4())
        app.send_task(
            NOTHING, args=[name], task_id=name, argsrepr=f"turn {name}", kwargsrepr="", ignore_result=True
        )


@contextmanager
def bare_worker(here: Lab) -> Iterator[int]:
    """Run a worker of bare Celery; yield its process id."""
    options = ("worker", "--pool=threads", f"--concurrency={CONCURRENCY}", "--loglevel=warning")
    quiet = ("--without-gossip", "--without-mingle", "--task-events")
    celery = (sys.executable, "-m", "celery", "--app=tests.benchmarks.bare_celery", *options, *quiet)
    with here.program("bare-celery", *celery) as worker:
        yield worker.pid


def _measure(here: Lab, count: int, pids: list[int], queue: str = QUEUE) -> Run:
    # A task that does nothing is done when it is taken; turns are taken long before.
    left = here.unfinished if queue == QUEUE else lambda: here.waiting(queue)
    # All slots are filled at once, and it takes a while until the crowd that began together has spread.
    here.wait(lambda: here.waiting(queue) <= count * 7 // 10, "the first messages are taken")
    meter = Meter(worker=pids, postgres=[here.stack.postgres.pid], redis=[here.stack.redis.pid])
    begin = left()
    here.wait(lambda: here.waiting(queue) <= LEFT, "most messages are taken")
    return Run(begin - left(), meter.read())


def _report(options: argparse.Namespace, found: dict[str, list[Run]]) -> Report:
    columns = ("engine", "a second", "worker, CPU ms", "PostgreSQL, CPU ms", "Redis, CPU ms", "cores used")
    report = Report(f"Short turns: {options.turns:,} of one step and three events, {CONCURRENCY} at once", columns)
    for engine, runs in found.items():
        report.rows.append(
            (
                engine,
                Series.over(runs, lambda one: one.rate),
                *(
                    Series.over(runs, lambda one, who=who: one.milliseconds(who))
                    for who in ("worker", "postgres", "redis")
                ),
                Series.over(runs, lambda one: one.cores),
            )
        )
    rates = {engine: Series.over(runs, lambda one: one.rate) for engine, runs in found.items()}
    ours, bare = rates["turnkeeper, 1"], rates["bare Celery, 1"]
    report.goals = [
        Goal("rate, ours / bare Celery", ours.against(bare), least=round(LEAST_AGAINST_BARE, 2)),
        *(
            Goal(
                f"rate, {count} processes / {fewer}, in turn",
                rates[_in_turn(count)].against(rates[_in_turn(fewer)]),
                least=LEAST_GROWTH,
            )
            for fewer, count in pairwise(PROCESSES)
        ),
    ]
    report.notes = [
        f"{count} processes do {rates[f'turnkeeper, {count}'].against(ours)} times what one does."
        for count in PROCESSES[1:]
    ]
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="short_turns", description="what a short turn costs")
    parser.add_argument("--turns", type=int, default=2000)
    sys.exit(run(parser, measure))
