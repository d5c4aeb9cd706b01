"""Limits of usage through real workers and every door by which a turn comes in."""

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from turnkeeper import AttemptOutcome, ErrorKind, TurnState
from turnkeeper.doorbell import SUBMIT_TURN, producer_app
from turnkeeper.events import TurnFailed
from turnkeeper.exceptions import TurnRejected, UnknownTurn, UsageLimitExceeded
from turnkeeper_ops.dev.addresses import SIMULATOR_CHAT
from turnkeeper_ops.services.process import poll

from .conftest import Ran, Site, open_site
from .tools_package import install_tools

CALLS = {"type": "answer", "calls": [{"name": "look", "arguments": {}}]}


@pytest.fixture(scope="module")
def till(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack with tools."""
    tools = tmp_path_factory.mktemp("tools")
    install_tools(tools)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tools), os.environ.get("PYTHONPATH")))))
        yield from open_site(tmp_path_factory.mktemp("till"), concurrency=20)


@pytest.fixture
def owner() -> str:
    return f"owner-{uuid4().hex[:8]}"


def limit(site: Site, owner: str, *more: str) -> Ran:
    ran = site.cli("limits", "set", owner, "--period", "month", *more)
    assert ran.code == 0, ran.err
    return ran


def test_what_a_turn_costs_is_counted_and_shown(till: Site, owner: str) -> None:
    limit(till, owner, "--turns", "5", "--tokens", "100000")

    views = [till.run("Hello", owner=owner) for _ in range(2)]

    (row,) = json.loads(till.cli("usage", owner, "--json").out)
    usages = [view.usage or {} for view in views]
    assert (row["period"], row["turns"], row["max_turns"], row["max_tokens"]) == ("month", 2, 5, 100_000)
    assert row["input_tokens"] == sum(usage["input_tokens"] for usage in usages) > 0
    assert row["output_tokens"] == sum(usage["output_tokens"] for usage in usages) > 0
    assert "2 of 5" in till.cli("usage", owner).out
    assert owner in till.cli("limits").out
    assert till.cli("limits", "list", "--json").out == till.cli("limits", "--json").out


def test_every_door_is_closed_when_the_limit_is_reached(till: Site, owner: str) -> None:
    limit(till, owner, "--turns", "1")
    till.run("Hello", owner=owner)
    turn_id = uuid4()
    request = {"text": "Hello", "provider": "simulator", "model": "sim-1", "owner": owner}

    with pytest.raises(UsageLimitExceeded):
        till.enqueue("Hello", owner=owner)
    with producer_app(till.running.addresses.broker_url, "turnkeeper") as producer:
        producer.send_task(SUBMIT_TURN, args=[request], task_id=str(turn_id))

    def reason() -> str | None:
        try:
            till.keeper.show(turn_id)
        except TurnRejected as rejected:
            return rejected.reason
        except UnknownTurn:
            return None
        raise AssertionError("it was taken")

    said = poll(reason, within=timedelta(seconds=15))
    assert said is not None
    assert said.startswith("1 of 1 turns of this month are used; try after ")


def test_the_command_line_refuses_in_one_line(till: Site) -> None:
    till.cli("limits", "set", "*", "--period", "hour", "--turns", "0")
    try:
        ran = till.cli("enqueue", "Hello")
    finally:
        removed = till.cli("limits", "remove", "*", "--period", "hour")

    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out, removed.out.strip()) == (2, "", "removed")
    assert line.startswith("turnkeeper: 0 of 0 turns of this hour are used; try after ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["limits", "set", "ada", "--period", "week", "--turns", "1"], "week"),
        (["limits", "set", "ada", "--period", "day"], "--turns, --tokens or both"),
        (["limits", "set", "ada", "--period", "day", "--turns", "1", "--unlimited"], "--unlimited alone"),
        (["limits", "set", "ada", "--period", "day", "--turns", "-1"], "--turns"),
        (["limits", "set", "ada", "--period", "day", "--tokens", "9" * 30], "max_tokens"),
    ],
)
def test_a_limit_that_is_none_is_one_line(till: Site, arguments: list[str], says: str) -> None:
    ran = till.cli(*arguments)

    (line,) = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert says in line


def test_a_turn_that_reaches_the_limit_is_not_given_another_step_by_anybody(till: Site, owner: str) -> None:
    limit(till, owner, "--tokens", "1")
    turn = till.enqueue(f"Do it {till.script(CALLS)}", owner=owner, tools=("look",), fallbacks=[SIMULATOR_CHAT])

    record = till.record(turn)

    view = record.view
    assert (view.state, [one.outcome for one in view.attempts]) == (
        TurnState.FAILED,
        [AttemptOutcome.COMPLETED, AttemptOutcome.FAILED],
    )
    assert view.error is not None
    assert (view.error.kind, view.error.provider) == (ErrorKind.USAGE_LIMIT, None)
    assert view.error.message == "The usage limit for this period is reached. Wait until the next one begins."
    assert "tokens of this month are used; try after" in (view.error.detail or "")
    assert isinstance(record.events[-1], TurnFailed)
    assert len(record.calls) == 1
    assert [run.state for run in view.tool_runs] == ["finished"]
