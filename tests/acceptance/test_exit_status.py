"""What a worker process ends with: systemd, Docker and Kubernetes restart by it, and people read it first."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest

from turnkeeper.doorbell import producer_app
from turnkeeper_ops.dev.readiness import workers_answer
from turnkeeper_ops.services.process import Child, poll

from .conftest import Site, open_site

ENDS_WITHIN = timedelta(seconds=30)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack whose workers the tests end."""
    yield from open_site(tmp_path_factory.mktemp("exits"), lines=("drain_seconds = 5",))


@pytest.fixture
def worker(home: Site) -> Iterator[Child]:
    """A worker that takes turns."""
    started = home.running.start_worker()
    home.running.workers.remove(started)
    with producer_app(home.running.addresses.broker_url, "turnkeeper") as app:
        assert poll(lambda: workers_answer(app, len(home.running.workers) + 1), within=ENDS_WITHIN)
    yield started
    started.stop()


def status_of(worker: Child) -> int | None:
    assert poll(lambda: worker.exit_code() is not None, within=ENDS_WITHIN), worker.output()
    return worker.exit_code()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_who_asks_a_worker_to_stop_gets_0(worker: Child, how: signal.Signals) -> None:
    os.kill(worker.pid, how)

    assert status_of(worker) == 0


def test_who_asks_twice_gets_0_as_well(home: Site, worker: Child) -> None:
    word = home.script({"type": "stall", "seconds": 600})
    turn = home.enqueue(f"Wait {word}")
    os.kill(worker.pid, signal.SIGTERM)
    assert poll(lambda: "shutdown" in worker.output(), within=ENDS_WITHIN)
    os.kill(worker.pid, signal.SIGTERM)

    assert status_of(worker) == 0
    home.keeper.cancel(turn.id)


def test_a_shutdown_by_remote_control_ends_with_0(home: Site, worker: Child) -> None:
    with producer_app(home.running.addresses.broker_url, "turnkeeper") as app:
        names = [name for ping in app.control.ping(timeout=5) for name in ping if f"-{worker.pid}@" in name]
        app.control.shutdown(destination=names)

    assert len(names) == 1
    assert status_of(worker) == 0


def test_a_worker_that_celery_gives_up_ends_with_1(home: Site) -> None:
    # kombu knows the transport by name, and finds at the first connection that its library is not installed.
    where = home.running.addresses.environment() | {"TURNKEEPER_BROKER_URL": "pyro://broker/"}

    ran = home.cli("worker", **where)

    assert ran.code == 1, ran.err


def test_a_worker_whose_port_is_taken_says_so_in_one_line_and_ends_with_2(home: Site) -> None:
    taken = home.running.redis.port
    where = home.running.addresses.environment() | {"TURNKEEPER_METRICS_PORT": str(taken)}

    ran = home.cli("worker", **where)

    assert ran.code == 2
    (line,) = (line for line in ran.err.splitlines() if "metrics_port" in line)
    assert f"127.0.0.1:{taken}" in line
    assert "Traceback" not in ran.err
