"""Where a worker's microseconds go: samples of py-spy, added up by component.

`python -m tests.benchmarks.profiles streams|turns --py-spy PATH` (`make bench-peers` installs it)
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.benchmarks.lab import Lab, Unfinished, lab
from tests.benchmarks.report import Report, Series, run

_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^():]*)(?::\d+)?\)$")
_PACKAGE = re.compile(r"site-packages/([^/.]+)")
_OURS = re.compile(r"(turnkeeper_worker|turnkeeper)/(.+)\.py")
NAMES = {
    "psycopg_binary": "psycopg",
    "kombu": "Celery, kombu",
    "celery": "Celery, kombu",
    "vine": "Celery, kombu",
    "httpx_aiohttp": "httpx, aiohttp",
    "httpx": "httpx, aiohttp",
    "aiohttp": "httpx, aiohttp",
    "yarl": "httpx, aiohttp",
    "multidict": "httpx, aiohttp",
    "pydantic_core": "pydantic",
}
SECONDS = 10
RATE = "200"
"""Samples in a second."""
WARM_UP = 300
SHORT_TURNS = 1200
MOST_FUNCTIONS = 12


def component(stack: str) -> str:
    """Name the library, or the module of ours, in which a sample was taken.

    >>> component("run (asyncio/runners.py:1);_take (turnkeeper_worker/providers/sse.py:3)")
    'ours: providers/sse'
    """
    frame = _FRAME.match(stack.rsplit(";", 1)[-1])
    file = frame["file"] if frame else ""
    if ours := _OURS.search(file):
        return f"ours: {ours[2]}"
    if package := _PACKAGE.search(file):
        return NAMES.get(package[1], package[1])
    if frame and frame["function"].endswith("run") and file.endswith("asyncio/runners.py"):
        return "event loop, sockets"
    return "asyncio, threading, json, …"


def function(stack: str) -> str:
    """Name the function in which a sample was taken."""
    frame = _FRAME.match(stack.rsplit(";", 1)[-1])
    return f"{frame['function']} ({'/'.join(Path(frame['file']).parts[-2:])})" if frame else stack


def measure(options: argparse.Namespace) -> Report:
    """Sample a worker that does one thing."""
    with lab() as here, here.workers(concurrency=options.turns) as pids:
        here.wait_for_workers()
        samples = _streams(here, pids[0], options) if options.what == "streams" else _turns(here, pids[0], options)
    total = sum(samples.values())
    report = Report(f"Where the CPU goes: {options.what}, {total:,} samples", ("component", "share, %"))
    for name, by in (("component", component), ("function", function)):
        counted: Counter[str] = Counter()
        for stack, count in samples.items():
            counted[by(stack)] += count
        most = counted.most_common(None if name == "component" else MOST_FUNCTIONS)
        report.rows += [(one, Series.of(100 * count / total)) for one, count in most if count / total >= 1 / 100]
        report.rows.append(("—", ""))
    report.rows.pop()
    return report


def _streams(here: Lab, pid: int, options: argparse.Namespace) -> Counter[str]:
    here.control("/hold")
    here.enqueue(options.turns, "held")
    here.wait(lambda: here.control("/stats")["streams"] == options.turns, "all streams are open")
    here.control("/open")
    samples = _record(options.py_spy, pid)
    here.control("/close")
    here.wait(lambda: here.unfinished() == 0, "the turns end")
    return samples


def _turns(here: Lab, pid: int, options: argparse.Namespace) -> Counter[str]:
    here.enqueue(WARM_UP, "short-3")
    here.wait(lambda: here.unfinished() == 0, "the first turns end")
    with here.paused(pid):
        here.enqueue(SHORT_TURNS, "short-3")
    samples = _record(options.py_spy, pid)
    here.wait(lambda: here.unfinished() == 0, "the turns end")
    return samples


def _record(py_spy: str, pid: int) -> Counter[str]:
    raw = Path(f"/proc/{pid}/cwd") / "samples"
    command = [
        py_spy,
        "record",
        "--pid",
        str(pid),
        "--duration",
        str(SECONDS),
        "--rate",
        RATE,
        "--nonblocking",
        "--full-filenames",
    ]
    done = subprocess.run(
        [*command, "--format", "raw", "--output", str(raw.resolve())], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Unfinished(f"py-spy says: {done.stderr.strip()}")
    samples: Counter[str] = Counter()
    for line in raw.read_text("utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        samples[stack] += int(count)
    return samples


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="profiles", description="where the microseconds go")
    parser.add_argument("what", choices=("streams", "turns"))
    parser.add_argument("--py-spy", default="py-spy")
    parser.add_argument("--turns", type=int, default=500, help="at once")
    sys.exit(run(parser, measure))
