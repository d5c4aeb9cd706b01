"""The folder of a stack: one holder at a time, and addresses that are good or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from turnkeeper_ops.dev.folder import AlreadyRunning, environment_of, occupy

ANOTHER = """
import sys
from pathlib import Path
from turnkeeper_ops.dev.folder import AlreadyRunning, occupy
try:
    with occupy(Path(sys.argv[1])):
        print("occupied")
except AlreadyRunning as error:
    print(error)
"""


def occupy_elsewhere(folder: Path) -> str:
    """What another process says that tries to occupy the folder."""
    command = [sys.executable, "-c", ANOTHER, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    with occupy(tmp_path):
        refusal = occupy_elsewhere(tmp_path)

    assert refusal == str(AlreadyRunning(tmp_path, os.getpid()))
    assert occupy_elsewhere(tmp_path) == "occupied"


@pytest.mark.parametrize("value", ["plain", "with space", "it's", 'a "b" $c `d` \\ e', "a=b", ""])
def test_addresses_are_read_as_they_were_published(tmp_path: Path, value: str) -> None:
    with occupy(tmp_path) as state:
        state.publish({"TURNKEEPER_DATABASE_URL": value, "TURNKEEPER_REDIS_URL": "redis://"})

        assert environment_of(tmp_path) == {
            "TURNKEEPER_DATABASE_URL": value,
            "TURNKEEPER_REDIS_URL": "redis://",
        }


def test_addresses_are_gone_with_their_holder(tmp_path: Path) -> None:
    with occupy(tmp_path) as state:
        state.publish({"TURNKEEPER_DATABASE_URL": "postgresql://"})

    assert environment_of(tmp_path) == {}
    assert not (tmp_path / ".turnkeeper" / "dev.env").exists()


def test_addresses_that_a_crash_left_are_not_believed(tmp_path: Path) -> None:
    with occupy(tmp_path) as state:
        state.publish({"TURNKEEPER_DATABASE_URL": "postgresql://"})
        left = state.environment.read_text()
    (tmp_path / ".turnkeeper" / "dev.env").write_text(left)

    assert environment_of(tmp_path) == {}


def test_a_new_holder_removes_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / ".turnkeeper").mkdir()
    (tmp_path / ".turnkeeper" / "dev.env").write_text("export TURNKEEPER_DATABASE_URL=postgresql://\n")

    with occupy(tmp_path):
        assert environment_of(tmp_path) == {}


def test_a_folder_that_never_held_a_stack_has_no_addresses(tmp_path: Path) -> None:
    assert environment_of(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_may_read_the_addresses(tmp_path: Path) -> None:
    with occupy(tmp_path) as state:
        state.publish({"TURNKEEPER_DATABASE_URL": "postgresql://"})

        assert state.environment.stat().st_mode & 0o777 == 0o600
