"""Real servers on loopback, for the dev stack and for the tests.

Each server runs under a guard (`guard.py`) and never outlives the process that started it,
not even when that process is killed with SIGKILL. Nothing is imported here, so that the guard stays light:

    from turnkeeper_ops.services.postgres import Postgres
    from turnkeeper_ops.services.redis import Redis

    with (
        Postgres(folder / "postgres", durable=False) as postgres,  # `durable=False` (fsync off) is for tests
        Redis(folder / "redis", durable=False) as redis,
    ):
        postgres.create_database("chats")  # made unless it exists
        postgres.url("chats")  # postgresql://turnkeeper:…@127.0.0.1:PORT/chats
        redis.url(0)  # redis://:…@127.0.0.1:PORT/0

Both offer the same surface:

    start()   Return when the server answers a real request; raise ServiceError with the end of its log.
    stop()    Return when no process is left; harmless when nothing runs.
    kill()    SIGKILL, as a crash would; `start()` afterwards brings the same data back on the same port.
    ready()   Whether the server answers now (`SELECT 1`, `PING`).
    pid       The process id of the server itself.
    port      Chosen when the object is made, and kept through every restart.

The first folder is the data folder; the log goes to `logs/NAME.log` beside it, or to the folder `logs=...`.

`process.py` runs any other command in the same way; `Child` ends with its owner, too:

    child = Child.start(Command(name="worker", argv=(...), log=path, environment={...}))
    child.wait_for(lambda: "ready" in child.output(), within=timedelta(seconds=10))
    child.pid, child.exit_code(), child.stop(), child.kill()
"""
