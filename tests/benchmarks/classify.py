"""How long one classification takes: the median over the corpus, or over a few failures of our own.

`python tests/benchmarks/classify.py` prints the figures and exits 1 above the budget.
"""

import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from turnkeeper_worker.cli.classify import read_failure
from turnkeeper_worker.failures import Failure, classify

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "failures.jsonl"
BUDGET_MICROSECONDS = 100.0
ROUNDS = 9
"""Runs of each failure; the fastest counts, because everything else is the machine's noise."""

OWN: list[dict[str, object]] = [
    {"http_status": 429, "headers": {"retry-after": "7"}, "body": '{"error":{"message":"slow","type":"tokens"}}'},
    {"http_status": 529, "body": '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'},
    {"exception_type": "httpx.ReadError", "exception_text": ""},
    {"http_status": 400, "body": "{'error': {'message': 'prompt is too long: 2 tokens > 1 maximum'}}"},
    {"http_status": 502, "body": "<html><head><title>502 Bad Gateway</title></head></html>"},
]
"""Used where the corpus is absent."""


def failures() -> list[Failure]:
    """Return what is classified."""
    if not CORPUS.exists():
        return [read_failure(case) for case in OWN]
    return [read_failure(json.loads(line)) for line in CORPUS.read_text("utf-8").splitlines()]


def microseconds(failure: Failure) -> float:
    """Return the fastest of `ROUNDS` classifications of *failure*."""
    now = datetime.now(UTC)
    fastest = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        classify(failure, now=now)
        fastest = min(fastest, (time.perf_counter_ns() - started) / 1_000)
    return fastest


def main() -> int:
    """Print the figures; return 1 when the median is above the budget."""
    times = [microseconds(failure) for failure in failures()]
    median = statistics.median(times)
    sys.stdout.write(
        f"{len(times)} failures: median {median:.0f} µs of at most {BUDGET_MICROSECONDS:.0f} µs, "
        f"slowest {max(times):.0f} µs\n"
    )
    return int(median > BUDGET_MICROSECONDS)


if __name__ == "__main__":
    sys.exit(main())
