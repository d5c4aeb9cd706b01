"""`turnkeeper dev` as a person meets it: started in a folder, used, and ended in every way there is."""

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from turnkeeper import Turnkeeper
from turnkeeper_ops.dev import environment_of
from turnkeeper_ops.services.process import poll

GONE_WITHIN = timedelta(seconds=45)
"""A worker may drain for 20 s."""

BACKGROUND = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
"""Ignores Ctrl-C, as a shell without job control does for what it starts with `&`."""

COMMAND = [
    *BACKGROUND,
    sys.executable,
    "-m",
    "turnkeeper_worker.cli",
    "dev",
    "--workers",
    "1",
    "--concurrency",
    "4",
]

Start = Callable[..., "subprocess.Popen[str]"]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TURNKEEPER_")}


def start_dev(folder: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *options],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> None:
    """Kill what still runs, and wait until its children have followed."""
    family = descendants(process) if process.poll() is None else []
    process.kill()
    process.communicate()
    assert poll(lambda: not alive(family), within=GONE_WITHIN)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `turnkeeper dev` in the test's folder."""
    started: list[subprocess.Popen[str]] = []

    def start_in_folder(*options: str) -> "subprocess.Popen[str]":
        started.append(start_dev(tmp_path, *options))
        return started[-1]

    yield start_in_folder
    for process in started:
        end(process)


@dataclass(frozen=True, slots=True)
class Running:
    """A stack that several tests look at and leave as it is."""

    folder: Path
    process: "subprocess.Popen[str]"
    where: dict[str, Any]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("dev")
    process = start_dev(folder, "--json")
    try:
        yield Running(folder, process, addresses(process))
    finally:
        end(process)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        # It ended between the two questions.
        return False


def until_ready(process: subprocess.Popen[str]) -> list[str]:
    """The lines up to `ready`."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] == "ready":
            return lines
    raise AssertionError(f"not ready: {lines} {process.communicate()}")


def addresses(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The one line that `--json` prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_stack_that_is_ready_answers_turns(running: Running) -> None:
    where = running.where

    with Turnkeeper(
        database_url=where["database_url"], redis_url=where["redis_url"], broker_url=where["broker_url"]
    ) as keeper:
        turn = keeper.enqueue(None, "Hello", provider="simulator", model="sim-1")
        events = [event.type for event in keeper.follow(turn.id)]

    assert events[-1] == "turn.completed"


def test_a_stack_publishes_its_addresses_to_its_owner_alone(running: Running) -> None:
    env_file = running.folder / ".turnkeeper" / "dev.env"

    assert running.where["env_file"] == str(env_file)
    assert env_file.stat().st_mode & 0o777 == 0o600
    assert environment_of(running.folder)["TURNKEEPER_DATABASE_URL"] == running.where["database_url"]


def test_the_environment_file_works_in_a_shell(running: Running) -> None:
    env_file = shlex.quote(running.where["env_file"])
    script = f'. {env_file} && printf %s "$TURNKEEPER_PROVIDERS__SIMULATOR__BASE_URL"'

    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout

    assert said == f"{running.where['simulator_url']}/v1"


def test_a_stack_listens_on_loopback_alone(running: Running) -> None:
    listening = {
        connection.laddr.ip
        for process in descendants(running.process)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }

    assert listening == {"127.0.0.1"}


def test_flower_takes_no_commands(running: Running) -> None:
    request = urllib.request.Request(
        f"{running.where['flower_url']}/api/worker/shutdown/any", method="POST", data=b""
    )

    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(request)

    refused.value.close()


def test_the_ready_turn_leaves_nothing_behind(running: Running) -> None:
    with psycopg.connect(running.where["database_url"]) as connection:
        found = connection.execute("SELECT count(*) FROM messages WHERE parts::text LIKE '%ready?%'")

        assert found.fetchone() == (0,)


def test_a_second_stack_in_the_same_folder_is_refused_in_one_line(running: Running) -> None:
    second = start_dev(running.folder)

    _, err = second.communicate(timeout=30)

    pid = running.process.pid
    assert second.returncode == 2
    assert err == f"`turnkeeper dev` runs in {running.folder} already (pid {pid}): use it, or stop it first\n"
    assert running.process.poll() is None
    assert environment_of(running.folder)


def test_without_the_simulator_there_is_no_provider_by_default(start: Start, tmp_path: Path) -> None:
    where = addresses(start("--json", "--no-simulator"))

    assert where["simulator_url"] is None
    assert not any("SIMULATOR" in name for name in environment_of(tmp_path))
    assert "TURNKEEPER_DEFAULT_PROVIDER" not in environment_of(tmp_path)


def test_without_workers_a_stack_is_ready_for_those_to_come(start: Start) -> None:
    lines = until_ready(start("--workers", "0"))

    assert not any(line.startswith("worker") for line in lines)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_person_who_ends_it_gets_exit_code_0_and_a_clean_machine(
    start: Start, tmp_path: Path, how: signal.Signals
) -> None:
    process = start()
    lines = until_ready(process)
    family = descendants(process)

    process.send_signal(how)
    out, err = process.communicate(timeout=GONE_WITHIN.total_seconds())

    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert [line.split()[0] for line in lines[:3]] == ["PostgreSQL", "Redis", "simulator"]
    assert not alive(family)
    assert not (tmp_path / ".turnkeeper" / "dev.env").exists()


def test_a_killed_stack_leaves_no_process_and_the_next_one_starts(start: Start, tmp_path: Path) -> None:
    process = start()
    until_ready(process)
    family = descendants(process)

    process.kill()

    # At once: it waits for the processes of the first by itself.
    until_ready(start())
    assert not alive(family)
    assert (tmp_path / ".turnkeeper" / "dev.env").exists()


def test_the_addresses_of_a_killed_stack_are_not_believed(start: Start, tmp_path: Path) -> None:
    process = start()
    until_ready(process)
    family = descendants(process)

    process.kill()

    assert poll(lambda: not alive(family), within=GONE_WITHIN)
    assert (tmp_path / ".turnkeeper" / "dev.env").exists()
    assert environment_of(tmp_path) == {}


def test_a_part_that_dies_ends_the_stack_and_is_named(start: Start, tmp_path: Path) -> None:
    process = start()
    lines = until_ready(process)
    family = descendants(process)
    (worker,) = [line for line in lines if line.startswith("worker-1")]

    os.kill(int(worker.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=GONE_WITHIN.total_seconds())

    assert process.returncode == 1
    assert err.startswith("worker-1 ended with exit code 137; its log (")
    assert not alive(family)
