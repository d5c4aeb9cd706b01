"""How many messages the broker holds: the rescue loop rings for nobody while there are many."""

from uuid import uuid4

import pytest

from turnkeeper.doorbell import ring
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker.app import WorkerApp, celery_settings


def test_a_worker_knows_how_many_messages_redis_holds_for_it(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNKEEPER_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("TURNKEEPER_BROKER_URL", redis_server.url(1))
    monkeypatch.setenv("TURNKEEPER_QUEUE", uuid4().hex)

    with WorkerApp("queue-length", set_as_current=False) as app:
        app.add_defaults(lambda: celery_settings(app.settings))
        before = app._queue_length()
        for _ in range(3):
            ring(app, uuid4())

        assert (before, app._queue_length()) == (0, 3)
