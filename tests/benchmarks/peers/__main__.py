"""`python -m tests.benchmarks.peers PEER enqueue COUNT MODEL`, and `… PEER work`, in the peers' environment."""

import importlib
import os
import sys

import psycopg
from tests.benchmarks.peers import common


def main() -> None:
    """Do what the command line asks for."""
    name, what, *rest = sys.argv[1:]
    peer = importlib.import_module(f"tests.benchmarks.peers.{name}")
    if what == "enqueue":
        with psycopg.connect(common.DATABASE, autocommit=True) as connection:
            connection.execute(common.TABLE)
        peer.enqueue(int(rest[0]), rest[1])
    else:
        slots = {
            "celery_prefork": f"--concurrency={common.SLOTS}",
            "taskiq_redis_queue": f"--max-async-tasks={common.SLOTS}",
        }
        # Replaced, so that who started us measures the worker alone.
        os.execv(sys.executable, [sys.executable, "-m", *peer.WORKER, *filter(None, [slots.get(name)])])


main()
