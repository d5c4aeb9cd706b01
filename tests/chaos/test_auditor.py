"""The auditor on records that were doctored: a storm that it calls clean is clean."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest

from turnkeeper.states import OnBusy

from .auditor import Complaint, audit
from .evidence import Attempt, Call, Departure, Evidence, Heard, Said, ToolNote, ToolRun, Turn
from .mischief import Incident, Prank
from .plan import PlannedTurn
from .waits import waits

T = TypeVar("T")

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
CHAT, WORKER = UUID(int=1), UUID(int=2)
FIRST, SECOND = UUID(int=11), UUID(int=12)
PID = 77


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def planned(key: str, **fields: Any) -> PlannedTurn:
    steps = tuple({"type": "answer", "text": f"{key} said {number}."} for number in (1, 2, 3))
    return PlannedTurn(key=key, kind="tools", steps=steps, **fields)


def turn(turn_id: UUID, seq: int, *, began: float, ended: float, **fields: Any) -> Turn:
    row: dict[str, Any] = {
        "id": turn_id,
        "chat_id": CHAT,
        "seq": seq,
        "state": "completed",
        "step": 1,
        "attempt": 1,
        "spent": 0,
        "lost": 0,
        "idempotency_key": f"t{seq}",
        "created_at": at(0),
        "started_at": at(began),
        "finished_at": at(ended),
    }
    return Turn(**(row | fields))


def attempt(turn_id: UUID, step: int, *, began: float, ended: float, **fields: Any) -> Attempt:
    row: dict[str, Any] = {
        "turn_id": turn_id,
        "step": step,
        "number": 1,
        "worker_id": WORKER,
        "outcome": "completed",
        "started_at": at(began),
        "finished_at": at(ended),
        "response_id": f"r{turn_id.int}{step}",
    }
    return Attempt(**(row | fields))


def call(turn_id: UUID, step: int, script: str, *, arrived: float, **fields: Any) -> Call:
    row: dict[str, Any] = {
        "turn_id": turn_id,
        "step": step,
        "attempt": 1,
        "arrived_at": at(arrived),
        "script": script,
        "step_number": step,
        "kind": "answer",
        "response_id": f"r{turn_id.int}{step}",
        "generated": True,
    }
    return Call(**(row | fields))


def said(turn_id: UUID, position: int, text: str, response_id: str | None, **fields: Any) -> Said:
    role = "user" if response_id is None else "assistant"
    row: dict[str, Any] = {"turn_id": turn_id, "position": position, "role": role, "text": text}
    return Said(**(row | {"response_id": response_id} | fields))


@pytest.fixture
def clean() -> Evidence:
    """A chat of two turns: one calls a tool and then answers, the other follows it."""
    key = f"{FIRST}/1/c1"
    return Evidence(
        planned={"t1": planned("t1"), "t2": planned("t2")},
        turns=(
            turn(FIRST, 1, began=0.1, ended=4, step=2),
            turn(SECOND, 2, began=4.2, ended=6),
        ),
        attempts=(
            attempt(FIRST, 1, began=0.1, ended=2),
            attempt(FIRST, 2, began=2.5, ended=4),
            attempt(SECOND, 1, began=4.2, ended=6),
        ),
        said=(
            said(FIRST, 0, "Hello", None),
            said(FIRST, 1, "t1 said 1.", "r111", calls=("c1",)),
            said(FIRST, 2, "", None, results=("c1",)),
            said(FIRST, 3, "t1 said 2.", "r112"),
            said(SECOND, 0, "And now?", None),
            said(SECOND, 1, "t2 said 1.", "r121"),
        ),
        tool_runs=(ToolRun(turn_id=FIRST, step=1, call_id="c1", idempotent=False, state="finished"),),
        calls=(
            call(FIRST, 1, "t1", arrived=0.2),
            call(FIRST, 2, "t1", arrived=2.6),
            call(SECOND, 1, "t2", arrived=4.3),
        ),
        tool_notes=(ToolNote(tool="pay", key=key, at="start"), ToolNote(tool="pay", key=key, at="end")),
        heard=(
            Heard(turn_id=FIRST, text="t1 said 1.t1 said 2.", end="turn.completed"),
            Heard(turn_id=SECOND, text="t2 said 1.", end="turn.completed"),
        ),
        pids={WORKER: PID},
    )


def complaints(evidence: Evidence) -> set[Complaint]:
    return {finding.complaint for finding in audit(evidence)}


def changed(rows: tuple[T, ...], place: int, **fields: Any) -> tuple[T, ...]:
    """Return *rows* with one of them doctored."""
    return (*rows[:place], replace(rows[place], **fields), *rows[place + 1 :])  # type: ignore[type-var]  # dataclasses


def incident(prank: Prank, began: float, ended: float, pid: int | None = None) -> Incident:
    return Incident(prank=prank, began=at(began), ended=at(ended), pid=pid)


def test_a_clean_record_has_no_findings(clean: Evidence) -> None:
    assert audit(clean) == []


def test_a_turn_that_was_asked_for_and_is_not_stored_is_lost(clean: Evidence) -> None:
    doctored = replace(clean, planned={**clean.planned, "t3": planned("t3")})

    assert complaints(doctored) == {Complaint.LOST}


def test_a_turn_that_has_not_ended_is_lost(clean: Evidence) -> None:
    doctored = replace(
        clean, turns=changed(clean.turns, 1, state="queued", finished_at=None), heard=clean.heard[:1]
    )

    assert complaints(doctored) == {Complaint.LOST}


def test_a_request_that_became_two_turns_is_doubled(clean: Evidence) -> None:
    doctored = replace(clean, turns=changed(clean.turns, 1, idempotency_key="t1"))

    assert Complaint.DOUBLED in complaints(doctored)


def test_an_attempt_that_never_ended_is_noticed(clean: Evidence) -> None:
    lingering = attempt(SECOND, 1, began=4.1, ended=4.1, outcome="running", number=2)

    assert complaints(replace(clean, attempts=(*clean.attempts, lingering))) == {Complaint.LOST}


def test_two_answers_to_one_step_are_doubled(clean: Evidence) -> None:
    again = said(SECOND, 2, "t2 said 1.", "r121")

    assert Complaint.DOUBLED in complaints(replace(clean, said=(*clean.said, again)))


def test_two_completed_attempts_of_one_step_are_doubled(clean: Evidence) -> None:
    again = attempt(SECOND, 1, began=5, ended=6, number=2)

    assert Complaint.DOUBLED in complaints(replace(clean, attempts=(*clean.attempts, again)))


def test_a_step_without_its_answer_is_lost(clean: Evidence) -> None:
    doctored = replace(clean, said=clean.said[:3] + clean.said[4:])

    assert Complaint.LOST in complaints(doctored)


def test_a_step_that_was_completed_without_an_answer_is_noticed(clean: Evidence) -> None:
    silent = attempt(SECOND, 2, began=5, ended=6)

    assert complaints(replace(clean, attempts=(*clean.attempts, silent))) == {Complaint.DOUBLED}


def test_a_gap_between_messages_is_noticed(clean: Evidence) -> None:
    assert complaints(replace(clean, said=changed(clean.said, 5, position=2))) == {Complaint.LOST}


def test_an_answer_whose_response_no_attempt_committed_is_wrong(clean: Evidence) -> None:
    doctored = replace(clean, attempts=changed(clean.attempts, 2, response_id="r999"))

    assert complaints(doctored) == {Complaint.WRONG_TEXT}


def test_words_that_no_generation_said_are_wrong(clean: Evidence) -> None:
    doctored = replace(
        clean,
        said=changed(clean.said, 5, text="t2 said something else."),
        heard=changed(clean.heard, 1, text="t2 said something else."),
    )

    assert complaints(doctored) == {Complaint.WRONG_TEXT}


def test_the_words_of_another_generation_than_the_committed_one_are_wrong(clean: Evidence) -> None:
    rival = call(SECOND, 1, "t2", arrived=5, step_number=2, response_id="r999")
    doctored = replace(
        clean,
        calls=(*clean.calls, rival),
        said=changed(clean.said, 5, text="t2 said 2."),
        heard=changed(clean.heard, 1, text="t2 said 2."),
    )

    assert complaints(doctored) == {Complaint.WRONG_TEXT}


def cancelled(clean: Evidence, text: str) -> Evidence:
    """Let the second turn be cancelled by its user, with this text kept."""
    return replace(
        clean,
        planned={**clean.planned, "t2": planned("t2", cancel_after=1.0)},
        turns=changed(clean.turns, 1, state="cancelled"),
        attempts=changed(clean.attempts, 2, outcome="cancelled", response_id=None),
        said=changed(clean.said, 5, text=text, response_id=None),
        heard=changed(clean.heard, 1, text=text, end="turn.cancelled"),
    )


def test_the_beginning_of_an_answer_is_what_a_cancelled_turn_keeps(clean: Evidence) -> None:
    assert audit(cancelled(clean, "t2 sa")) == []
    assert complaints(cancelled(clean, "t2 sx")) == {Complaint.WRONG_TEXT}


def test_a_turn_that_nobody_cancelled_is_not_to_be_cancelled(clean: Evidence) -> None:
    doctored = replace(cancelled(clean, "t2 sa"), planned=clean.planned)

    assert complaints(doctored) == {Complaint.UNASKED_END}


def test_an_interruption_cancels_what_stands_before_it_and_nothing_else(clean: Evidence) -> None:
    interrupting = {**clean.planned, "t2": planned("t2", on_busy=OnBusy.INTERRUPT)}
    doctored = replace(cancelled(clean, "t2 sa"), planned=interrupting)

    assert complaints(doctored) == {Complaint.UNASKED_END}


def test_a_failure_without_a_refusal_is_noticed_and_so_is_an_answer_in_spite_of_one(clean: Evidence) -> None:
    failed = replace(
        clean,
        turns=changed(clean.turns, 1, state="failed", error={"kind": "generic"}),
        attempts=changed(clean.attempts, 2, outcome="failed", response_id=None),
        said=clean.said[:5],
        heard=changed(clean.heard, 1, text="", end="turn.failed"),
    )
    refused = {**clean.planned, "t2": planned("t2", fails=True)}

    assert complaints(failed) == {Complaint.UNASKED_END}
    assert audit(replace(failed, planned=refused)) == []
    assert complaints(replace(clean, planned=refused)) == {Complaint.UNASKED_END}


@pytest.mark.parametrize(
    "swapped",
    [
        pytest.param({"turns": {"started_at": at(3.9)}}, id="claimed too early"),
        pytest.param({"calls": {"arrived_at": at(3.9)}}, id="sent too early"),
    ],
)
def test_a_turn_that_begins_before_the_one_before_it_has_ended_is_out_of_order(
    clean: Evidence, swapped: dict[str, dict[str, Any]]
) -> None:
    ((rows, fields),) = swapped.items()
    place = len(getattr(clean, rows)) - 1

    changes: dict[str, Any] = {rows: changed(getattr(clean, rows), place, **fields)}
    doctored = replace(clean, **changes)

    assert complaints(doctored) == {Complaint.ORDER}


def test_a_tool_that_must_not_run_twice_and_did_is_named(clean: Evidence) -> None:
    doctored = replace(clean, tool_notes=(*clean.tool_notes, clean.tool_notes[0]))
    repeatable = replace(doctored, tool_runs=changed(doctored.tool_runs, 0, idempotent=True))

    assert complaints(doctored) == {Complaint.TOOL_TWICE}
    assert audit(repeatable) == []


def test_a_tool_that_ran_without_a_row_is_named(clean: Evidence) -> None:
    assert complaints(replace(clean, tool_runs=())) == {Complaint.LEDGER}


def test_a_result_of_a_tool_that_never_ended_is_made_up(clean: Evidence) -> None:
    assert complaints(replace(clean, tool_notes=clean.tool_notes[:1])) == {Complaint.LEDGER}


def test_a_run_that_is_left_open_is_named(clean: Evidence) -> None:
    doctored = replace(clean, tool_runs=changed(clean.tool_runs, 0, state="started"))

    assert complaints(doctored) == {Complaint.LEDGER}


def test_a_call_has_one_result(clean: Evidence) -> None:
    assert complaints(replace(clean, said=changed(clean.said, 2, results=()))) == {Complaint.LOST}
    assert complaints(replace(clean, said=changed(clean.said, 2, results=("c1", "c1")))) == {Complaint.DOUBLED}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"text": "t2 sa"}, id="half of the text"),
        pytest.param({"text": "t2 said 1.t2 said 1."}, id="the text twice"),
        pytest.param({"end": "turn.failed"}, id="another end"),
        pytest.param({"end": None}, id="no end"),
    ],
)
def test_a_follower_that_differs_is_named(clean: Evidence, fields: dict[str, Any]) -> None:
    assert complaints(replace(clean, heard=changed(clean.heard, 1, **fields))) == {Complaint.FOLLOWER}


def test_a_reader_of_a_turn_that_is_not_stored_is_noticed(clean: Evidence) -> None:
    stranger = Heard(turn_id=UUID(int=99), text="", end="turn.completed")

    assert complaints(replace(clean, heard=(*clean.heard, stranger))) == {Complaint.LOST}


def lost_once(clean: Evidence, *, again: float = 7.0) -> Evidence:
    """Let the second turn be taken over from a worker that was killed at 5, and answered from then on."""
    return replace(
        clean,
        turns=changed(clean.turns, 1, attempt=2, lost=1, finished_at=at(again + 1)),
        attempts=(
            *clean.attempts[:2],
            attempt(SECOND, 1, began=4.2, ended=6.9, outcome="lost", response_id=None),
            attempt(SECOND, 1, began=again, ended=again + 1, number=2, response_id="r999"),
        ),
        said=changed(changed(clean.said, 5, response_id="r999"), 5, text="t2 said 2."),
        calls=(
            *clean.calls,
            call(SECOND, 1, "t2", arrived=again, attempt=2, step_number=2, response_id="r999"),
        ),
        heard=changed(clean.heard, 1, text="t2 said 2."),
        incidents=(incident(Prank.KILL, 5.0, 5.0, PID),),
    )


def test_a_killed_worker_costs_a_second_attempt_and_none_of_the_budget(clean: Evidence) -> None:
    killed = lost_once(clean)
    charged = replace(killed, turns=changed(killed.turns, 1, spent=1))

    assert audit(killed) == []
    assert complaints(charged) == {Complaint.BUDGET}


def test_a_retry_without_a_fault_spends_the_budget_for_nothing(clean: Evidence) -> None:
    killed = lost_once(clean)
    retried = replace(
        killed,
        turns=changed(killed.turns, 1, spent=1),
        attempts=changed(killed.attempts, 2, outcome="retried", delay_ms=0),
    )
    faulty = replace(retried, calls=changed(retried.calls, 2, kind="cut"))
    cut_off = replace(retried, incidents=(incident(Prank.CUT_PROVIDER, 4.5, 5.0),))

    assert complaints(retried) == {Complaint.BUDGET}
    assert audit(faulty) == []
    assert audit(cut_off) == []


def test_a_background_response_is_generated_again_only_where_nobody_could_know_of_it(clean: Evidence) -> None:
    killed = lost_once(clean)
    in_background = replace(killed, planned={**killed.planned, "t2": planned("t2", background=True)})
    at_once = replace(in_background, incidents=(incident(Prank.KILL, 4.5, 4.5, PID),))
    late = replace(in_background, incidents=(incident(Prank.KILL, 6.5, 6.5, PID),))

    assert audit(at_once) == []
    assert complaints(late) == {Complaint.GENERATIONS}


def test_a_take_over_is_timed_from_the_kill(clean: Evidence) -> None:
    slow = lost_once(clean, again=5 + 8.5)
    away = replace(slow, incidents=(*slow.incidents, incident(Prank.POSTGRES_RESTART, 6.0, 7.0)))

    assert complaints(slow) == {Complaint.WAIT}
    assert audit(away) == []


@pytest.mark.parametrize(
    ("rows", "place", "fields"),
    [
        pytest.param("turns", 1, {"started_at": at(12.1), "finished_at": at(13)}, id="the first claim"),
        pytest.param("attempts", 1, {"started_at": at(10.7)}, id="the next step"),
    ],
)
def test_whoever_waits_too_long_is_named(clean: Evidence, rows: str, place: int, fields: dict[str, Any]) -> None:
    changes: dict[str, Any] = {rows: changed(getattr(clean, rows), place, **fields)}
    doctored = replace(clean, **changes)

    assert Complaint.WAIT in complaints(doctored)


def test_a_take_over_is_not_timed_from_what_came_too_late_to_be_its_cause(clean: Evidence) -> None:
    slow = lost_once(clean, again=5 + 8.5)
    slow = replace(slow, attempts=changed(slow.attempts, 2, finished_at=at(12)))

    doctored = replace(slow, incidents=(*slow.incidents, incident(Prank.CUT_POSTGRES, 11.0, 11.1)))

    assert complaints(doctored) == {Complaint.WAIT}


def test_overlapping_outages_excuse_a_wait_once(clean: Evidence) -> None:
    outages = (
        incident(Prank.REDIS_RESTART, 4.0, 6.0),
        incident(Prank.POSTGRES_RESTART, 5.0, 7.0),
        incident(Prank.CUT_PROVIDER, 7.0, 9.0),
    )
    doctored = replace(
        clean, turns=changed(clean.turns, 1, started_at=at(10), finished_at=at(11)), incidents=outages
    )

    (wait,) = (wait for wait in waits(doctored) if wait.turn_id == SECOND)

    assert wait.extra == timedelta(seconds=6)
    assert wait.outage == timedelta(seconds=3)


def departure(how: str, lived: float) -> Departure:
    return Departure(pid=PID, started_at=at(0), at=at(lived), how=how, log=Path("worker.log"))


def test_a_worker_that_ends_by_itself_is_named_unless_it_found_no_server_when_it_came_up(clean: Evidence) -> None:
    ended = replace(clean, departures=(departure("ended by itself", 3.0),))
    excused = replace(ended, incidents=(incident(Prank.REDIS_RESTART, 2.0, 2.5),))

    assert complaints(ended) == {Complaint.WORKER}
    assert audit(excused) == []
    assert complaints(replace(excused, departures=(departure("ended by itself", 30.0),))) == {Complaint.WORKER}


def test_what_users_meet_is_told(clean: Evidence) -> None:
    assert complaints(replace(clean, troubles=("KeyError: 1",))) == {Complaint.TROUBLE}
