"""The servers of the dev stack: they answer, they keep their data, and they never outlive their owner."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from turnkeeper_ops.services.postgres import Postgres
from turnkeeper_ops.services.process import Child, Command, ServiceError
from turnkeeper_ops.services.redis import Redis, find_server

GONE_WITHIN_SECONDS = 15.0

OWNER = """
import signal, sys
from pathlib import Path
from turnkeeper_ops.services.postgres import Postgres
from turnkeeper_ops.services.redis import Redis

folder = Path(sys.argv[1])
with Postgres(folder / "postgres", durable=False), Redis(folder / "redis", durable=False):
    print("started", flush=True)
    signal.pause()
"""

ONCE = """
import sys
from pathlib import Path
from turnkeeper_ops.services.postgres import Postgres

data = Path(sys.argv[1]) / "postgres"
with Postgres(data, durable=False):
    print(data.owner())
"""

# Runs its arguments as root of a user namespace that allows no further one, as a Docker container does.
WITHOUT_NAMESPACES = """
import ctypes, os, sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
entered, mapped = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    code = ctypes.CDLL(None).unshare(CLONE_NEWUSER)
    os.write(entered[1], bytes([code & 1]))
    os.read(mapped[0], 1)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
if os.read(entered[0], 1) != bytes(1):
    sys.exit("skip")
Path(f"/proc/{child}/uid_map").write_text("0 0 65536")
Path(f"/proc/{child}/gid_map").write_text("0 0 65536")
os.write(mapped[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("stubborn", flush=True)
signal.pause()
"""


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != "zombie"]


def family(pid: int) -> list[psutil.Process]:
    """The process, its guard and everything it has started."""
    process = psutil.Process(pid)
    guard = process.parent()
    return [process, *([guard] if guard else []), *process.children(recursive=True)]


@pytest.fixture(params=[Postgres, Redis])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Postgres | Redis]:
    with request.param(tmp_path / "data", durable=False) as server:
        yield server


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has started both servers and waits for its end."""
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
        process.kill()


def child_of(tmp_path: Path, script: str, *, grace: timedelta = timedelta(seconds=10)) -> Child:
    argv = (sys.executable, "-c", script)
    return Child.start(Command(name="child", argv=argv, log=tmp_path / "child.log", grace=grace))


class TestServers:
    def test_a_server_answers_once_it_has_started(self, server: Postgres | Redis) -> None:
        assert server.ready()

    def test_a_server_listens_on_loopback_alone(self, server: Postgres | Redis) -> None:
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(server.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]

        assert listening == ["127.0.0.1"]

    def test_a_server_that_stops_leaves_no_process(self, server: Postgres | Redis) -> None:
        processes = family(server.pid)

        server.stop()

        assert not alive(processes)
        assert not server.ready()

    def test_stopping_twice_is_harmless(self, server: Postgres | Redis) -> None:
        server.stop()
        server.stop()

        with pytest.raises(ServiceError, match="is not running"):
            _ = server.pid

    def test_a_killed_server_starts_again_under_its_address(self, server: Postgres | Redis) -> None:
        address = server.url("0") if isinstance(server, Postgres) else server.url()

        server.kill()
        server.start()

        assert server.ready()
        assert address == (server.url("0") if isinstance(server, Postgres) else server.url())

    def test_a_command_line_never_shows_the_password(self, server: Postgres | Redis) -> None:
        url = server.url("postgres") if isinstance(server, Postgres) else server.url()
        password = url.split("@")[0].rsplit(":", 1)[1]
        process = psutil.Process(server.pid)
        guard = process.parent()

        assert guard is not None
        assert password not in " ".join([*process.cmdline(), *guard.cmdline()])


class TestPostgres:
    def test_data_survives_a_restart(self, tmp_path: Path) -> None:
        postgres = Postgres(tmp_path / "postgres")
        with postgres:
            postgres.create_database("kept")

        with postgres, psycopg.connect(postgres.url("kept")) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("kept",)

    def test_creating_a_database_twice_is_harmless(self, tmp_path: Path) -> None:
        with Postgres(tmp_path / "postgres", durable=False) as postgres:
            postgres.create_database("chats")
            postgres.create_database("chats")

    def test_a_data_folder_left_unfinished_is_made_again(self, tmp_path: Path) -> None:
        (tmp_path / "postgres.unfinished" / "base").mkdir(parents=True)

        with Postgres(tmp_path / "postgres", durable=False) as postgres:
            assert postgres.ready()

    def test_a_lock_whose_process_id_is_somebody_else_by_now_is_removed(self, tmp_path: Path) -> None:
        postgres = Postgres(tmp_path / "postgres", durable=False)
        postgres.start()
        lock = tmp_path / "postgres" / "postmaster.pid"
        lines = lock.read_text().splitlines()
        postgres.kill()
        lock.write_text("\n".join([str(os.getpid()), *lines[1:]]))

        with postgres:
            assert postgres.ready()

    def test_it_runs_below_a_folder_that_only_we_may_enter(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)

        with Postgres(closed / "postgres", durable=False) as postgres:
            assert postgres.ready()

        assert closed.stat().st_mode & 0o777 == 0o700

    @pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root has to become another")
    def test_as_root_it_also_runs_where_user_namespaces_are_forbidden(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)

        outcome = subprocess.run(
            [sys.executable, "-c", WITHOUT_NAMESPACES, "-c", ONCE, str(closed)],
            capture_output=True,
            text=True,
            check=False,
        )

        if outcome.stderr == "skip\n":
            pytest.skip("user namespaces are forbidden here, so every other test has shown it")
        assert outcome.stdout == "nobody\n", outcome.stderr
        # Back with namespaces, the same data belongs to us again.
        with Postgres(closed / "postgres", durable=False) as postgres:
            assert postgres.ready()
        assert (closed / "postgres").stat().st_uid == os.geteuid()

    def test_it_refuses_a_wrong_password(self, tmp_path: Path) -> None:
        with Postgres(tmp_path / "postgres", durable=False) as postgres:
            stranger = postgres.url("postgres").replace(":", ":wrong", 2).replace(":wrong", ":", 1)

            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(stranger)

    def test_a_server_that_cannot_start_shows_the_end_of_its_log(self, tmp_path: Path) -> None:
        (tmp_path / "postgres").mkdir()
        (tmp_path / "postgres.password").write_text("unused")

        with pytest.raises(ServiceError, match=r"(?s)postgres ended with exit code 2;.*postgresql\.conf"):
            Postgres(tmp_path / "postgres").start()


class TestRedis:
    def test_data_survives_a_crash(self, tmp_path: Path) -> None:
        server = Redis(tmp_path / "redis")
        server.start()
        with redis.Redis.from_url(server.url()) as client:
            client.set("kept", "yes")
            # Everything written so far is on disk when this answers; the policy alone may lose a second.
            client.bgrewriteaof()
            assert eventually(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)

        server.kill()

        with server, redis.Redis.from_url(server.url()) as client:
            assert client.get("kept") == b"yes"

    def test_it_never_evicts(self, tmp_path: Path) -> None:
        with (
            Redis(tmp_path / "redis", durable=False) as server,
            redis.Redis.from_url(server.url()) as client,
        ):
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}

    def test_a_missing_program_is_one_line_that_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "path", [])

        with pytest.raises(ServiceError, match=r"^no Redis 6\.2 or newer: install redis-server [^\n]*$"):
            find_server()

    def test_a_program_that_is_too_old_is_passed_over(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        old = tmp_path / "redis-server"
        old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0'\n")
        old.chmod(0o755)
        shutil.copy(old, new := tmp_path / "valkey-server")
        new.write_text("#!/bin/sh\necho 'Server v=8.1.0 sha=00000000:0'\n")
        monkeypatch.setenv("PATH", str(tmp_path))

        assert find_server() == new


class TestOwners:
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
    def test_however_the_owner_ends_nothing_is_left(
        self, owner: subprocess.Popen[str], how: signal.Signals
    ) -> None:
        processes = psutil.Process(owner.pid).children(recursive=True)

        owner.send_signal(how)

        assert eventually(lambda: not alive(processes)), alive(processes)

    def test_a_guard_that_is_killed_takes_its_server_along(self, owner: subprocess.Popen[str]) -> None:
        processes = psutil.Process(owner.pid).children(recursive=True)

        for guard in psutil.Process(owner.pid).children():
            guard.kill()

        assert eventually(lambda: not alive(processes)), alive(processes)


class TestChildren:
    def test_a_child_that_ignores_its_signal_is_killed_with_all_it_started(self, tmp_path: Path) -> None:
        child = child_of(tmp_path, STUBBORN, grace=timedelta(seconds=0.2))
        child.wait_for(lambda: "stubborn" in child.output(), within=timedelta(seconds=10))
        processes = family(child.pid)

        child.stop()

        assert eventually(lambda: not alive(processes)), alive(processes)

    def test_waiting_for_a_child_that_has_ended_shows_the_end_of_its_log(self, tmp_path: Path) -> None:
        child = child_of(tmp_path, "import sys; sys.exit('no such planet')")

        with pytest.raises(ServiceError, match=r"child ended with exit code 1; .*\n  no such planet"):
            child.wait_for(lambda: False, within=timedelta(seconds=10))

    def test_waiting_too_long_is_an_error(self, tmp_path: Path) -> None:
        child = child_of(tmp_path, "import signal; signal.pause()")

        with pytest.raises(ServiceError, match=r"child did not answer within 0\.1 s; .* nothing$"):
            child.wait_for(lambda: False, within=timedelta(seconds=0.1))

        child.stop()

    def test_a_program_that_does_not_exist_is_an_error(self, tmp_path: Path) -> None:
        command = Command(name="child", argv=(str(tmp_path / "nowhere"),), log=tmp_path / "child.log")

        with pytest.raises(ServiceError, match=r"(?s)child did not start; .*nowhere"):
            Child.start(command)

    def test_a_child_killed_by_a_signal_reports_it_like_a_shell(self, tmp_path: Path) -> None:
        child = child_of(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

        with pytest.raises(ServiceError, match="ended with exit code 137"):
            child.finish(within=timedelta(seconds=10))

    def test_output_starts_with_this_run(self, tmp_path: Path) -> None:
        (tmp_path / "child.log").write_text("what an earlier run said\n")

        child = child_of(tmp_path, "print('now')")
        child.finish(within=timedelta(seconds=10))

        assert child.output() == "now\n"
