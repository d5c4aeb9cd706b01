"""Plain Celery: the prefork pool, a process for each turn, `autoretry_for` with backoff, the answer in PostgreSQL.

Settings: prefetch 1 and no results, as one would for long tasks; no events, which is Celery's default; late
acks, or a worker that dies would lose its turns; a client and a connection per process, kept.
"""

import psycopg
from celery import Celery, Task
from celery.signals import worker_process_init
from openai import APIError, OpenAI
from tests.benchmarks.peers import common

app = Celery("peer", broker=common.BROKER)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_default_queue="peer-celery",
)


@worker_process_init.connect
def _open(**_: object) -> None:
    app.client = OpenAI(**common.OPTIONS)
    app.database = psycopg.connect(common.DATABASE, autocommit=True)


@app.task(bind=True, name="peer", autoretry_for=(APIError,), retry_backoff=True, max_retries=12)
def run(self: Task, model: str) -> None:
    """Run one turn."""
    said = common.ask(app.client, model)
    app.database.execute(common.STORE, (self.request.id, said))


def enqueue(count: int, model: str) -> None:
    """Send the tasks."""
    for _ in range(count):
        run.delay(model)


WORKER = (
    "celery",
    "--app=tests.benchmarks.peers.celery_prefork",
    "worker",
    "--pool=prefork",
    "--loglevel=warning",
)
"""The module that runs as the worker, and its arguments."""
