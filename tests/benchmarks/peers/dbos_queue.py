"""DBOS: a durable workflow with one step, which calls the model; its queue and its results are in PostgreSQL.

Settings: asynchronous workflow and step (a thread for each stream would cost more), as many workflows at once
as there are slots, the fastest polling of the queue that it advises, retries of the step switched on.
"""

import asyncio
from typing import Any

from dbos import DBOS, DBOSClient, run_dbos_database_migrations
from openai import AsyncOpenAI
from tests.benchmarks.peers import common

URL = f"{common.DATABASE.rpartition('/')[0]}/dbos"
NAME = "peer-dbos"
state: dict[str, Any] = {}


@DBOS.step(retries_allowed=True, max_attempts=12)
async def call(model: str) -> str:
    """Call the model."""
    return await common.ask_async(state["client"], model)


@DBOS.workflow(name="turn")
async def turn(model: str) -> str:
    """Run one turn; what it returns is stored."""
    return await call(model)


def enqueue(count: int, model: str) -> None:
    """Enqueue the workflows."""
    run_dbos_database_migrations(URL)
    client = DBOSClient(system_database_url=URL)
    for _ in range(count):
        client.enqueue({"workflow_name": "turn", "queue_name": NAME, "app_version": "1"}, model)
    client.destroy()


async def work() -> None:
    """Run workflows until the process is ended."""
    DBOS(
        config={"name": "peer", "system_database_url": URL, "application_version": "1", "run_admin_server": False}
    )
    state["client"] = AsyncOpenAI(**common.OPTIONS)
    DBOS.launch()
    await DBOS.register_queue_async(NAME, worker_concurrency=common.SLOTS, polling_interval_sec=0.1)
    await asyncio.Event().wait()


WORKER = ("tests.benchmarks.peers.dbos_queue",)

if __name__ == "__main__":
    asyncio.run(work())
