"""Live events in a real Redis: written, capped, expiring; and dropped when it is away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis as Client

from turnkeeper.events import Event, TurnCompleted, TurnPart, read_event
from turnkeeper.follow import FIELD
from turnkeeper.keys import events_key
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import live as live_module
from turnkeeper_worker.live import Live


@pytest.fixture
async def client(redis_server: Redis) -> AsyncIterator[Client]:
    async with Client.from_url(redis_server.url()) as client:
        yield client


def live_at(client: Client, *, max_events: int = 1000, may_speak: Callable[[], bool] = lambda: True) -> Live:
    return Live(
        client,
        coalesce=timedelta(milliseconds=5),
        ttl=timedelta(seconds=100),
        max_events=max_events,
        may_speak=may_speak,
    )


def part(turn: UUID, text: str, *, attempt: int = 1) -> TurnPart:
    return TurnPart(turn_id=turn, epoch=1, attempt=attempt, text=text)


async def written(client: Client, turn: UUID) -> list[Event]:
    entries: Any = await client.xrange(events_key(turn))
    return [read_event(cursor.decode(), content[FIELD]) for cursor, content in entries]


async def until(look: Callable[[], Any]) -> Any:
    async with asyncio.timeout(10):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(0.01)


async def test_what_is_said_together_is_written_together(client: Client) -> None:
    one, other = uuid4(), uuid4()
    live = live_at(client)
    for event in (part(one, "Hel"), part(other, "x"), part(one, "lo"), TurnCompleted(turn_id=one, epoch=1)):
        live.say(event)

    await live.flush()

    assert [(event.type, getattr(event, "text", "")) for event in await written(client, one)] == [
        ("turn.part", "Hello"),
        ("turn.completed", ""),
    ]
    assert [event.turn_id for event in await written(client, other)] == [other]


async def test_the_loop_writes_soon_after_something_is_said(client: Client) -> None:
    turn, live = uuid4(), live_at(client)
    task = asyncio.create_task(live.run())

    live.say(part(turn, "Hi"))
    found = await until(lambda: written(client, turn))

    assert found[0].text == "Hi"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_stream_expires_after_its_last_event(client: Client) -> None:
    turn, live = uuid4(), live_at(client)

    live.say(part(turn, "Hi"))
    await live.flush()
    await client.expire(events_key(turn), 5)
    live.say(part(turn, "there", attempt=2))
    await live.flush()

    assert 90 < await client.ttl(events_key(turn)) <= 100


async def test_a_stream_keeps_its_newest_events(client: Client) -> None:
    turn, live = uuid4(), live_at(client, max_events=100)

    for attempt in range(1, 1001):
        live.say(part(turn, f"{attempt}", attempt=attempt))
    await live.flush()

    kept = await written(client, turn)
    assert 100 <= len(kept) < 300
    assert kept[-1].attempt == 1000


async def test_a_redis_that_is_away_costs_events_and_nothing_else(tmp_path: Path) -> None:
    server, turn = Redis(tmp_path / "redis", durable=False), uuid4()
    server.start()
    try:
        async with Client.from_url(server.url(), socket_connect_timeout=1, socket_timeout=1) as client:
            live = live_at(client)
            server.kill()
            live.say(part(turn, "lost"))
            await live.flush()

            server.start()
            live.say(part(turn, "found"))
            await live.flush()

            assert [getattr(event, "text", "") for event in await written(client, turn)] == ["found"]
    finally:
        server.stop()


async def test_a_redis_that_hangs_does_not_fill_the_memory(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "MAX_BACKLOG", 3)
    turn, live = uuid4(), live_at(client)

    for attempt in range(1, 10):
        live.say(part(turn, "x", attempt=attempt))
    await live.flush()

    assert [event.attempt for event in await written(client, turn)] == [1, 2, 3]


async def test_a_process_in_doubt_says_nothing_until_it_is_sure_again(client: Client) -> None:
    turn, is_sure = uuid4(), [False]
    live = live_at(client, may_speak=lambda: is_sure[0])
    live.say(part(turn, "Hello"))

    await live.flush()
    in_doubt = await written(client, turn)
    is_sure[0] = True
    await live.flush()

    assert in_doubt == []
    assert [event.type for event in await written(client, turn)] == ["turn.part"]


async def test_what_was_said_of_a_lost_turn_is_unsaid_and_what_is_stored_stands(client: Client) -> None:
    lost, kept = uuid4(), uuid4()
    live = live_at(client)
    for event in (part(lost, "void"), TurnCompleted(turn_id=lost, epoch=1), part(kept, "stands")):
        live.say(event)

    live.unsay(lost)
    await live.flush()

    assert [event.type for event in await written(client, lost)] == ["turn.completed"]
    assert [event.type for event in await written(client, kept)] == ["turn.part"]
