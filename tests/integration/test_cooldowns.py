"""The cooldown as turns ask it, with a real Redis: shared by workers, cheap where all is well, and dispensable."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import pairwise
from time import monotonic
from uuid import uuid4

import pytest
from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.cooldown import Cooldowns, Patience, Permit, Rest
from turnkeeper_worker.failures import Classified, Hint

SECOND = timedelta(seconds=1)
PATIENCE = Patience(wait=3600 * SECOND, rest=900 * SECOND)
LIMITED = {
    "x-ratelimit-limit-requests": "10",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "1s",
}
THROTTLED = Classified(
    error=ChatError(kind=ErrorKind.RATE_LIMIT, message="No.", retryable=True, status_code=429),
    hint=Hint(wait=30 * SECOND, source="retry-after"),
)

Worker = Callable[..., Cooldowns]


@pytest.fixture
async def worker(redis_server: Redis) -> AsyncIterator[Worker]:
    """Return a function that starts the cooldown of one more worker process."""
    async with AsyncExitStack() as stack:

        def start(url: str | None = None, **settings: object) -> Cooldowns:
            client = Client.from_url(url or redis_server.url(), socket_timeout=1, retry=Retry(NoBackoff(), 0))
            stack.push_async_callback(client.aclose)
            cooldowns = Cooldowns(redis=client, rng=random.Random(1), **settings)  # type: ignore[arg-type]
            stack.push_async_callback(cooldowns.close)
            return cooldowns

        yield start


def new_key() -> Credential:
    return Credential(provider="p", base_url=f"https://{uuid4().hex}.invalid", key="k", model="m")


async def go(cooldowns: Cooldowns, credential: Credential) -> Permit:
    answer = await cooldowns.ask(credential, uuid4(), PATIENCE)
    assert isinstance(answer, Permit)
    return answer


async def test_what_one_worker_hears_another_one_heeds(worker: Worker) -> None:
    one, other, key = worker(), worker(), new_key()
    (await go(one, key)).failed(THROTTLED)
    await one.close()

    rest = await other.ask(key, uuid4(), PATIENCE)

    assert isinstance(rest, Rest)
    assert 29 * SECOND < rest.wait <= 31 * SECOND
    assert rest.kind is ErrorKind.RATE_LIMIT
    assert not rest.is_too_long


async def test_a_head_is_heard_long_before_its_stream_has_ended(worker: Worker) -> None:
    one, other, key = worker(), worker(), new_key()
    (await go(one, key)).answered(200, LIMITED)
    await one.close()

    answers = await asyncio.gather(*(other.ask(key, uuid4(), PATIENCE) for _ in range(12)))

    # In which order they come to the gate, their connections decide.
    waits = sorted(answer.wait for answer in answers if isinstance(answer, Rest))
    assert len(waits) >= 5
    assert all(later - earlier > 0.09 * SECOND for earlier, later in pairwise(waits))


async def test_a_rest_that_no_turn_can_wait_for_is_told_as_such(worker: Worker) -> None:
    cooldowns, key = worker(), new_key()
    (await go(cooldowns, key)).failed(THROTTLED)
    await cooldowns.close()

    rest = await cooldowns.ask(key, uuid4(), Patience(wait=3600 * SECOND, rest=20 * SECOND))

    assert isinstance(rest, Rest)
    assert rest.is_too_long


async def test_a_key_that_is_well_asks_redis_about_once_a_second(worker: Worker) -> None:
    cooldowns, key = worker(), new_key()
    for _ in range(70):
        (await go(cooldowns, key)).answered(200, {})
        await cooldowns.close()

    before = (await cooldowns.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    began = monotonic()
    for _ in range(10_000):
        (await go(cooldowns, key)).answered(200, {})
    took = monotonic() - began
    asked = (await cooldowns.redis.info("commandstats"))["cmdstat_evalsha"]["calls"] - before

    assert asked <= took + 2


async def test_a_provider_whose_cooldown_is_off_is_never_waited_for(worker: Worker) -> None:
    cooldowns, key = worker(off={"p"}), new_key()
    for _ in range(50):
        (await go(cooldowns, key)).failed(THROTTLED)


async def test_a_provider_that_cannot_be_reached_is_not_waited_for(worker: Worker) -> None:
    cooldowns, key = worker(), new_key()
    error = ChatError(kind=ErrorKind.TIMEOUT, message="No.", retryable=True)
    for _ in range(30):
        (await go(cooldowns, key)).failed(Classified(error=error))
        await cooldowns.close()


async def test_without_redis_calls_are_made_all_the_same_and_what_is_known_is_heeded(worker: Worker) -> None:
    cooldowns, key = worker("redis://127.0.0.1:1/0"), new_key()
    for _ in range(20):
        await go(cooldowns, key)

    (await go(cooldowns, key)).failed(THROTTLED)

    assert isinstance(await cooldowns.ask(key, uuid4(), PATIENCE), Rest)
    await go(cooldowns, new_key())


async def test_a_redis_that_hangs_keeps_nobody_waiting_for_long(worker: Worker) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as deaf:
        cooldowns = worker(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        await cooldowns.ask(new_key(), uuid4(), PATIENCE)
        await cooldowns.close()

        began = monotonic()
        for _ in range(100):
            await go(cooldowns, new_key())

        assert monotonic() - began < 1


async def test_a_turn_that_waits_in_place_can_be_cancelled(worker: Worker) -> None:
    cooldowns, key = worker(), new_key()
    (await go(cooldowns, key)).answered(200, LIMITED)
    await cooldowns.close()

    waiting = [asyncio.create_task(cooldowns.ask(key, uuid4(), PATIENCE)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()

    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
