"""Taskiq: an asyncio worker on a Redis list, the asynchronous `openai` client, the answer in PostgreSQL.

Settings: one worker process, as many tasks at once as there are slots, uvloop, the broker's list (its stream,
which acknowledges, costs more), the middleware that retries, a pool of ten connections.
"""

import asyncio

from openai import AsyncOpenAI
from psycopg_pool import AsyncConnectionPool
from taskiq import Context, SmartRetryMiddleware, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker
from tests.benchmarks.peers import common

broker = ListQueueBroker(common.BROKER, queue_name="peer-taskiq").with_middlewares(
    SmartRetryMiddleware(default_retry_count=12, use_delay_exponent=True)
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def _open(state: TaskiqState) -> None:
    state.client = AsyncOpenAI(**common.OPTIONS)
    state.database = AsyncConnectionPool(
        common.DATABASE, min_size=10, max_size=10, open=False, kwargs={"autocommit": True}
    )
    await state.database.open()


@broker.task(task_name="peer", retry_on_error=True)
async def run(model: str, context: Context = TaskiqDepends()) -> None:  # noqa: B008 - taskiq's way
    """Run one turn."""
    said = await common.ask_async(context.state.client, model)
    async with context.state.database.connection() as connection:
        await connection.execute(common.STORE, (context.message.task_id, said))


def enqueue(count: int, model: str) -> None:
    """Send the tasks."""

    async def send() -> None:
        await broker.startup()
        for _ in range(count):
            await run.kiq(model)
        await broker.shutdown()

    asyncio.run(send())


WORKER = (
    "taskiq",
    "worker",
    "tests.benchmarks.peers.taskiq_redis_queue:broker",
    "--workers=1",
    "--log-level=WARNING",
)
