"""What a background response does while nobody listens."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from turnkeeper_ops.simulator import generations
from turnkeeper_ops.simulator.actions import Action, Commit, Finish, Head, Send, Wait
from turnkeeper_ops.simulator.generations import Generation, Generations, spared
from turnkeeper_ops.simulator.journal import Instant, Journal
from turnkeeper_ops.simulator.scripts import (
    AnswerStep,
    CutStep,
    DripStep,
    EmptyStep,
    EndStep,
    ErrorEventStep,
    GoAwayStep,
    IncompleteStep,
    MalformedStep,
    ResetStep,
    ResetStreamStep,
    Retrieval,
    StallStep,
)
from turnkeeper_ops.simulator.turns import Sender

NOW = Instant(monotonic=5.0, wall=datetime(2026, 7, 1, tzinfo=UTC))
FOR_EVER = Wait(3600)


def generation(
    stored: list[str] | None = None, response_id: str = "resp_1", retrieval: Retrieval = Retrieval.OK
) -> Generation:
    entry = Journal().open(api="openai-responses", sender=Sender(None, None), arrived=NOW, request_bytes=1)
    return Generation(
        id=response_id,
        entry=entry,
        streamed=True,
        resumable=True,
        retrieval=retrieval,
        body=lambda status: {"status": status},
        cancelled=lambda chunks: {"status": "cancelled", "chunks": chunks},
        outcome=lambda: {"status": "completed"},
        store=lambda: (stored if stored is not None else []).append(response_id),
    )


def sends(*events: bytes) -> list[Action]:
    return [Send(event) for event in events]


async def started(actions: Iterable[Action], stored: list[str] | None = None) -> Generation:
    running = generation(stored)
    running.start(actions)
    # Its task runs up to its first wait.
    await asyncio.sleep(0)
    return running


async def followed(running: Generation, after: int) -> list[bytes]:
    return [event async for event in running.follow(after)]


@pytest.mark.parametrize(
    ("events", "status"),
    [
        pytest.param(sends(b"created"), "queued", id="created"),
        pytest.param(sends(b"created", b"queued"), "queued", id="queued"),
        pytest.param(sends(b"created", b"queued", b"begun"), "in_progress", id="begun"),
    ],
)
async def test_its_status_follows_its_events(events: list[Action], status: str) -> None:
    running = await started([Head(200, {}), *events, FOR_EVER])

    assert running.response() == {"status": status}


async def test_it_is_stored_before_its_last_event_and_only_once() -> None:
    stored: list[str] = []
    running = await started([*sends(b"a"), Commit(), *sends(b"z"), Finish("completed")], stored)

    running.commit()

    assert (running.response(), stored) == ({"status": "completed"}, ["resp_1"])
    assert await followed(running, -1) == [b"a", b"z"]


@pytest.mark.parametrize(("after", "rest"), [(-1, [b"0", b"1", b"2"]), (0, [b"1", b"2"]), (2, []), (9, [])])
async def test_who_follows_gets_what_is_behind_the_cursor(after: int, rest: list[bytes]) -> None:
    running = await started(sends(b"0", b"1", b"2"))

    assert await followed(running, after) == rest


async def test_several_follow_what_is_still_to_come() -> None:
    running = await started([*sends(b"0"), Wait(0.01), *sends(b"1"), Wait(0.01), *sends(b"2")])

    both = await asyncio.gather(followed(running, -1), followed(running, 0))

    assert both == [[b"0", b"1", b"2"], [b"1", b"2"]]


async def test_a_cancel_ends_it_for_everybody() -> None:
    running = await started([*sends(b"0"), FOR_EVER, *sends(b"1")])
    following = asyncio.create_task(followed(running, -1))
    waiting = asyncio.create_task(running.called_off(60))
    await asyncio.sleep(0)

    running.cancel()

    assert (await following, await waiting) == ([b"0"], True)
    assert running.response() == {"status": "cancelled", "chunks": 0}


async def test_a_cancel_comes_too_late_for_what_has_ended() -> None:
    running = await started([*sends(b"0"), Commit()])

    running.cancel()

    assert running.response() == {"status": "completed"}
    assert await running.called_off(0) is False


async def test_the_oldest_makes_room_and_is_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "MAX_GENERATIONS", 1)
    kept = Generations()
    first, second = generation(response_id="resp_1"), generation(response_id="resp_2")
    kept.add(first)

    kept.add(second)

    assert (kept.get("resp_1"), kept.get("resp_2")) == (None, second)
    assert first.response() == {"status": "cancelled", "chunks": 0}


async def test_a_cancel_counts_what_had_been_said() -> None:
    running = await started([Send(b"created"), Send(b"a", 1), Send(b"b", 1), FOR_EVER, Send(b"c", 1)])

    running.cancel()

    assert running.response() == {"status": "cancelled", "chunks": 2}


@pytest.mark.parametrize(
    ("retrieval", "statuses"),
    [
        pytest.param(Retrieval.OK, [200, 200]),
        pytest.param(Retrieval.GONE, [404, 404]),
        pytest.param(Retrieval.GONE_ONCE, [404, 200]),
        pytest.param(Retrieval.UNAVAILABLE, [500, 500]),
        pytest.param(Retrieval.UNAVAILABLE_ONCE, [500, 200]),
    ],
)
def test_it_fails_those_who_ask_once_or_always(retrieval: Retrieval, statuses: list[int]) -> None:
    asked = generation(retrieval=retrieval)

    assert [asked.ask(), asked.ask()] == statuses


TOLD: dict[str, Any] = {"text": "Hello", "chunk_delay_ms": 5.0, "queued_seconds": 1.0}


@pytest.mark.parametrize(
    "kind", [CutStep, ResetStep, ResetStreamStep, GoAwayStep, EndStep, StallStep, DripStep, MalformedStep]
)
def test_what_strikes_a_connection_spares_the_generation(kind: type[Any]) -> None:
    assert spared(kind(**TOLD)) == AnswerStep(**TOLD)


@pytest.mark.parametrize("step", [ErrorEventStep(), IncompleteStep(), EmptyStep(), AnswerStep()])
def test_what_strikes_the_provider_strikes_the_generation(step: Any) -> None:
    assert spared(step) is step
