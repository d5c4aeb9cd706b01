"""Celery with tasks that do nothing, and the rest as our workers have it: the most that Celery can do for us.

The stock `threads` pool, the same concurrency, broker, serializer, early ack, no prefetch, no result, events on.
"""

from celery import Celery
from kombu import Queue

from turnkeeper_worker.app import celery_settings
from turnkeeper_worker.config import Settings

QUEUE = "bare"
NOTHING = "nothing"
_OURS_ALONE = ("worker_pool", "worker_consumer", "imports", "worker_hijack_root_logger", "worker_redirect_stdouts")

settings = celery_settings(Settings.load())
app = Celery("bare", set_as_current=False)
app.conf.update(
    {name: value for name, value in settings.items() if name not in _OURS_ALONE}
    | {"task_queues": [Queue(QUEUE)], "task_default_queue": QUEUE, "worker_pool": "threads"}
)


@app.task(name=NOTHING)  # type: ignore[untyped-decorator]  # Celery is untyped
def nothing(argument: str) -> str:
    """Do nothing with an id of the length of ours."""
    return argument
