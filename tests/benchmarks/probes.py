"""People who ask, one after the other, and hear the answer: through Turnkeeper, and from the provider itself.

`python -m tests.benchmarks.probes URL COUNT` asks both in turn, and tells the parent all delays in the end.
"""

import asyncio
import sys
import time
from dataclasses import asdict, dataclass, field
from uuid import uuid4

import aiohttp
import uvloop
from tests.benchmarks.lab import PROVIDER
from tests.benchmarks.listening import tell
from tests.benchmarks.readers import DELTA, events

from turnkeeper import AsyncTurnkeeper
from turnkeeper.events import TurnPart

MODEL = "paced-20"
EVERY_SECONDS = 0.2
"""Somebody new asks so often; each is told for a second."""
WORDS = "Why do people keep bees?"


@dataclass(slots=True)
class Delays:
    """What was found, in seconds."""

    until_called: list[float] = field(default_factory=list)
    """From asking until the provider says its first word, which it does at once."""
    first: list[float] = field(default_factory=list)
    """From the provider's first word until it is heard."""
    total: list[float] = field(default_factory=list)
    """From asking until the first word is heard."""
    events: list[float] = field(default_factory=list)
    """From the provider's sending of an event until it is heard; all but the first."""


class Ear:
    """Hears one answer."""

    def __init__(self, delays: Delays) -> None:
        self._delays = delays
        self._asked = time.monotonic()
        self._is_first = True

    def hear(self, words: str) -> None:
        """Note the pieces of *words*, each the moment at which it was sent."""
        now = time.monotonic()
        for piece in words.split():
            self._note(now, float(piece))

    def _note(self, now: float, sent: float) -> None:
        if not self._is_first:
            self._delays.events.append(now - sent)
            return
        self._is_first = False
        self._delays.until_called.append(sent - self._asked)
        self._delays.first.append(now - sent)
        self._delays.total.append(now - self._asked)


async def ask_turnkeeper(keeper: AsyncTurnkeeper, delays: Delays) -> None:
    """Enqueue a turn, and follow it."""
    ear = Ear(delays)
    turn = await keeper.enqueue(None, WORDS, provider=PROVIDER, model=MODEL, owner=str(uuid4()))
    async for event in keeper.follow(turn.id):
        if isinstance(event, TurnPart):
            ear.hear(event.text)


async def ask_provider(session: aiohttp.ClientSession, url: str, delays: Delays) -> None:
    """Call the provider, as a program without Turnkeeper would."""
    ear = Ear(delays)
    async with session.post(
        f"{url}/v1/responses", json={"model": MODEL, "input": WORDS, "stream": True}
    ) as response:
        async for event in events(response):
            if event["type"] == DELTA:
                ear.hear(event["delta"])


async def main() -> None:
    """Ask, and tell what was found."""
    url, count = sys.argv[1], int(sys.argv[2])
    ours, direct = Delays(), Delays()
    async with AsyncTurnkeeper() as keeper, aiohttp.ClientSession() as session, asyncio.TaskGroup() as asking:
        # What is loaded and connected for the first time is not what is asked about.
        await ask_turnkeeper(keeper, Delays())
        await ask_provider(session, url, Delays())
        for _ in range(count):
            asking.create_task(ask_turnkeeper(keeper, ours))
            await asyncio.sleep(EVERY_SECONDS / 2)
            asking.create_task(ask_provider(session, url, direct))
            await asyncio.sleep(EVERY_SECONDS / 2)
    tell(ours=asdict(ours), direct=asdict(direct))


if __name__ == "__main__":
    uvloop.run(main())
