"""The public surface: what is promised is there, and what is there is what was promised."""

import importlib
import subprocess
import sys
import typing

import pytest

import turnkeeper

MODULES = ["turnkeeper", "turnkeeper_worker.failures", "turnkeeper_worker.providers"]


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_honest(name: str) -> None:
    module = importlib.import_module(name)

    assert module.__all__ == sorted(module.__all__, key=lambda one: (not one.isupper(), one))
    assert all(getattr(module, one) is not None for one in module.__all__)


def test_a_star_brings_everything_that_is_promised() -> None:
    statement = "from turnkeeper import *; print(sorted(name for name in dir() if name[:2] != '__'))"

    printed = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == str(sorted(turnkeeper.__all__))


def test_what_was_not_promised_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'turnkeeper' has no attribute 'Manager'"):
        _ = turnkeeper.Manager


@pytest.mark.parametrize("name", turnkeeper.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert getattr(turnkeeper, name).__doc__


def test_both_clients_are_the_same() -> None:
    def public(client: type) -> set[str]:
        return {name for name in dir(client) if not name.startswith("_")}

    assert public(turnkeeper.Turnkeeper) == public(turnkeeper.AsyncTurnkeeper)


@pytest.mark.parametrize(
    "client", [turnkeeper.Turnkeeper, turnkeeper.AsyncTurnkeeper], ids=lambda one: one.__name__
)
def test_the_clients_hints_can_be_read(client: typing.Any) -> None:
    assert typing.get_type_hints(client.enqueue)["return"].__name__ == "Enqueued"
