"""What the schema refuses: each invariant, broken behind everybody's back."""

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, insert, text, update
from sqlalchemy.exc import IntegrityError

from turnkeeper.states import AttemptOutcome, ToolRunState, TurnState
from turnkeeper.tables import attempts, tool_runs

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

NOW = text("now()")
WORKER = uuid4()


@pytest.mark.parametrize(
    ("state", "change", "constraint"),
    [
        pytest.param(
            "queued", {"state": "paused", "available_at": None}, "state_known", id="a state that does not exist"
        ),
        pytest.param("queued", {"state": "completed"}, "final_is_finished", id="an end without its time"),
        pytest.param("queued", {"finished_at": NOW}, "final_is_finished", id="a time of an end that is none"),
        pytest.param(
            "queued",
            {"state": "running", "available_at": None},
            "running_has_a_worker",
            id="running without a worker",
        ),
        pytest.param("queued", {"worker_id": WORKER}, "running_has_a_worker", id="a worker without running"),
        pytest.param("running", {"available_at": NOW}, "only_waiting_is_available", id="running and due"),
        pytest.param("completed", {"available_at": NOW}, "only_waiting_is_available", id="ended and due"),
        pytest.param("retrying", {"available_at": None}, "retrying_is_due_sometime", id="retrying for ever"),
        pytest.param("failed", {"error": None}, "failed_has_an_error", id="failed without an error"),
        pytest.param(
            "completed", {"error": {"message": "x"}}, "failed_has_an_error", id="completed with an error"
        ),
        pytest.param("queued", {"epoch": -1}, "counts_range", id="an epoch below zero"),
        pytest.param("queued", {"seq": 0}, "counts_range", id="a place before the first"),
        pytest.param("queued", {"spent": -1}, "counts_range", id="an attempt given back"),
    ],
)
def test_a_turn_in_an_impossible_condition_is_refused(
    stage: "Stage", state: str, change: dict[str, Any], constraint: str
) -> None:
    turn_id = stage.turn(TurnState(state))

    with pytest.raises(IntegrityError, match=constraint):
        stage.set(turn_id, **change)


def test_two_turns_of_a_chat_cannot_run(stage: "Stage") -> None:
    running = stage.claim(stage.enqueue().id)
    second = stage.enqueue(chat_id=running.chat_id)

    with pytest.raises(IntegrityError, match="ix_turns_one_runs"):
        stage.set(second.id, state="running", worker_id=WORKER, available_at=None)


def test_two_turns_of_a_chat_cannot_have_one_number(stage: "Stage") -> None:
    first = stage.enqueue()
    second = stage.enqueue(chat_id=first.chat_id)

    with pytest.raises(IntegrityError, match="uq_turns_chat_id"):
        stage.set(second.id, seq=1)


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        pytest.param({"outcome": "won", "finished_at": NOW}, "outcome_known", id="an outcome that does not exist"),
        pytest.param({"outcome": "lost"}, "ended_is_finished", id="an end without its time"),
        pytest.param({"finished_at": NOW}, "ended_is_finished", id="a time of an end that is none"),
        pytest.param({"number": 0}, "numbers_range", id="attempts count from one"),
        pytest.param({"delay_ms": -1}, "numbers_range", id="a wait into the past"),
    ],
)
def test_an_attempt_in_an_impossible_condition_is_refused(
    stage: "Stage", change: dict[str, Any], constraint: str
) -> None:
    stage.turn(TurnState.RUNNING)

    with pytest.raises(IntegrityError, match=constraint):
        stage.do(Connection.execute, update(attempts).values(**change))


@pytest.mark.parametrize("state", list(ToolRunState))
@pytest.mark.parametrize("missing", ["finished_at", "result"])
def test_a_tool_run_has_its_end_and_its_result_when_its_state_says_so(
    stage: "Stage", state: ToolRunState, missing: str
) -> None:
    is_over = state is not ToolRunState.STARTED
    run = {"turn_id": stage.turn(TurnState.RUNNING), "step": 1, "call_id": "1", "number": 1, "name": "look"}
    right = {"finished_at": NOW, "result": {}} if is_over else {"finished_at": None, "result": None}
    wrong = right | {missing: None if is_over else {"finished_at": NOW, "result": {}}[missing]}

    with pytest.raises(IntegrityError, match="ended_is_finished" if missing == "finished_at" else "ended_has_a"):
        stage.do(
            Connection.execute,
            insert(tool_runs).values(**run, arguments="{}", idempotent=True, epoch=1, state=state, **wrong),
        )


@pytest.mark.parametrize(
    ("constraint", "enum"),
    [
        pytest.param("ck_turns_state_known", TurnState, id="turns"),
        pytest.param("ck_attempts_outcome_known", AttemptOutcome, id="attempts"),
        pytest.param("ck_tool_runs_state_known", ToolRunState, id="tool runs"),
    ],
)
def test_the_constraint_knows_exactly_the_states_of_the_code(
    connection: Connection, constraint: str, enum: type[TurnState | AttemptOutcome | ToolRunState]
) -> None:
    definition = text(
        "SELECT array(SELECT (regexp_matches(pg_get_constraintdef(oid), '''([a-z_]+)''', 'g'))[1])"
        " FROM pg_constraint WHERE conname = :name"
    )

    known = connection.scalar(definition, {"name": constraint})

    assert set(known or []) == {str(one) for one in enum}
