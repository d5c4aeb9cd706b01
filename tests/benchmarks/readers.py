"""The engines that a worker is compared to: they read streams, and do nothing else with them.

`python -m tests.benchmarks.readers bare|openai URL TURNS` opens so many streams in one process.

- `bare` is the least that can be done in asyncio: aiohttp (its parser is C) on uvloop, the bytes cut at the empty
  lines, each event decoded by the standard library's `json`, nothing kept.
- `openai` is the official client as its documentation shows it, `AsyncOpenAI().responses.create(stream=True)`, on
  uvloop too. The transport is its own.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvloop
from tests.benchmarks.listening import EVERY, Heard, answer_parent

if TYPE_CHECKING:
    import aiohttp

MODEL = "held"
DELTA = "response.output_text.delta"


def bare(url: str, turns: int, heard: Heard) -> list[Coroutine[Any, Any, None]]:
    """Read with aiohttp."""
    import aiohttp  # noqa: PLC0415 - each engine loads its own, or the memory would be everybody's

    async def read(number: int, session: aiohttp.ClientSession) -> None:
        body = {"model": MODEL, "input": "Why do people keep bees?", "stream": True}
        async with session.post(f"{url}/v1/responses", json=body) as response:
            heard.begun += 1
            async for event in events(response):
                if event["type"] == DELTA:
                    heard.events += 1
                    if number % EVERY == 0:
                        heard.note(event["delta"])
        heard.ended += 1

    async def read_all() -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(read(number, session) for number in range(turns)))

    return [read_all()]


async def events(response: "aiohttp.ClientResponse") -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a stream."""
    rest = b""
    async for data in response.content.iter_any():
        *blocks, rest = (rest + data).split(b"\n\n")
        for block in blocks:
            yield json.loads(block[block.index(b"data: ") + 6 :])


def openai(url: str, turns: int, heard: Heard) -> list[Coroutine[Any, Any, None]]:
    """Read with the official client."""
    from openai import AsyncOpenAI  # noqa: PLC0415 - as above

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-bench", timeout=600, max_retries=0)

    async def read(number: int) -> None:
        stream = await client.responses.create(model=MODEL, input="Why do people keep bees?", stream=True)
        heard.begun += 1
        async for event in stream:
            if event.type == DELTA:
                heard.events += 1
                if number % EVERY == 0:
                    heard.note(event.delta)
        heard.ended += 1

    return [read(number) for number in range(turns)]


ENGINES: dict[str, Callable[[str, int, Heard], list[Coroutine[Any, Any, None]]]] = {"bare": bare, "openai": openai}


async def main() -> None:
    """Read until the parent goes away."""
    engine, url, turns = sys.argv[1:]
    heard = Heard()
    await answer_parent(heard, ENGINES[engine](url, int(turns), heard))


if __name__ == "__main__":
    uvloop.run(main())
