"""What the helper processes share: they hear events, and tell the parent how many and how late when it asks.

The events are pieces of text, each of them the moment at which it left the provider; several may have been joined.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

EVERY = 16
"""The delays of one stream in so many are noted; of all, the noting would be a good part of what is measured."""


@dataclass(slots=True)
class Heard:
    """What a process has heard so far."""

    events: int = 0
    begun: int = 0
    """How many streams have begun."""
    ended: int = 0
    delays: list[float] = field(default_factory=list)
    """Since the parent asked last, in seconds."""

    def note(self, words: str) -> None:
        """Note how late the pieces of *words* are."""
        now = time.monotonic()
        self.delays += [now - float(sent) for sent in words.split()]

    def tell(self) -> dict[str, Any]:
        """Return the counts, and the delays since the last time in milliseconds."""
        delays, self.delays = self.delays, []
        return {
            "events": self.events,
            "begun": self.begun,
            "ended": self.ended,
            "delay_p50_ms": percentile(delays, 50) * 1000,
            "delay_p99_ms": percentile(delays, 99) * 1000,
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile; of nothing, nothing.

    >>> percentile([1.0, 2.0, 3.0], 50), percentile([], 99)
    (2.0, 0.0)
    """
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def answer_parent(heard: Heard, work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do the work; answer each line of the parent with what was heard until it goes away."""
    parent = await _listen_to_parent()
    tasks = [asyncio.create_task(one) for one in work]
    failing = asyncio.gather(*tasks)
    failing.add_done_callback(_complain)
    tell(ready=True)
    while await parent.readline():
        tell(**heard.tell())


async def until_parent_leaves() -> None:
    """Wait until the parent closes our standard input, or ends."""
    await (await _listen_to_parent()).read()


async def _listen_to_parent() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _complain(work: "asyncio.Future[Any]") -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - read by a person


def tell(**facts: Any) -> None:
    """Say something to the parent."""
    print(json.dumps(facts), flush=True)  # noqa: T201 - read by the parent
