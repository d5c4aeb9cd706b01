"""An operator switches a provider off, and on again, while workers run."""

import json
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest

from turnkeeper import ErrorKind, TurnState
from turnkeeper.events import TurnPart
from turnkeeper.views import TurnView
from turnkeeper_ops.dev.addresses import SIMULATOR_MESSAGES
from turnkeeper_ops.services.process import poll

from .conftest import Site

NAME = SIMULATOR_MESSAGES


@pytest.fixture
def switched_off(site: Site) -> Iterator[None]:
    """A provider that is off, and of which the worker knows."""
    assert site.cli("providers", "disable", NAME, "--reason", "the invoice").code == 0
    try:
        yield
    finally:
        assert site.cli("providers", "enable", NAME).code == 0
    assert poll(
        lambda: site.run("Hello", provider=NAME).state is TurnState.COMPLETED, within=timedelta(seconds=10)
    )


def failed(site: Site) -> TurnView | None:
    view = site.run("Hello", provider=NAME)
    return view if view.state is TurnState.FAILED else None


def wait_for_words(site: Site, turn_id: UUID) -> None:
    next(event for event in site.keeper.follow(turn_id) if isinstance(event, TurnPart))


def test_a_call_that_runs_goes_on_and_the_next_one_fails(site: Site, request: pytest.FixtureRequest) -> None:
    word = site.script({"type": "answer", "text": "word " * 100, "chunk_chars": 5, "chunk_delay_ms": 40})
    running = site.enqueue(f"Slowly {word}", provider=NAME)
    wait_for_words(site, running.id)

    request.getfixturevalue("switched_off")

    view = poll(lambda: failed(site), within=timedelta(seconds=10))
    assert view is not None
    assert view.error is not None
    assert (view.error.kind, view.error.retryable) == (ErrorKind.PROVIDER_DISABLED, False)
    assert "the invoice" not in view.model_dump_json()
    assert site.calls(view.id) == []
    assert site.finish(running).text == "word " * 100


@pytest.mark.usefixtures("switched_off")
def test_operators_see_what_is_off_since_when_and_why(site: Site) -> None:
    rows = {row["name"]: row for row in json.loads(site.cli("providers", "--json").out)}

    assert (rows[NAME]["status"], rows[NAME]["reason"]) == ("switched off", "the invoice")
    assert rows[NAME]["disabled_since"]
    assert rows["simulator"]["disabled_since"] is None
    assert "invoice" in site.cli("providers").out


@pytest.mark.parametrize("switch", ["disable", "enable"])
def test_an_unknown_name_is_one_line_with_those_that_exist(site: Site, switch: str) -> None:
    ran = site.cli("providers", switch, "opnai")

    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert line.startswith("turnkeeper: no provider is called 'opnai'; there are: ")
    assert "simulator_chat" in line
