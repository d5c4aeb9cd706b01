"""Every fault of the simulator on every API, through a real worker process: no cell of the table is left out.

All turns are enqueued at once, so that their countdowns run side by side; each test looks at its own turn.
HTTP/2 has a table of its own in `test_http2`, and lost anchors have theirs in `test_turns`.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, get_args

import pytest

from turnkeeper import AttemptOutcome, Transcript, TurnState
from turnkeeper.events import TurnRetry
from turnkeeper.messages import Text
from turnkeeper_ops.simulator.ready_made import ready_made_scripts
from turnkeeper_ops.simulator.scripts import (
    Answering,
    Complaint,
    CutStep,
    EndStep,
    ErrorEventStep,
    ErrorShape,
    GoAwayStep,
    IncompleteStep,
    LostAnchorStep,
    MalformedStep,
    Missing,
    Moment,
    ResetStep,
    ResetStreamStep,
    ScriptPart,
    StallStep,
    StatusStep,
    Step,
    StopReason,
)

from .conftest import HASTY, Record, Site
from .fault_rows import MID, Api, Row
from .fault_table import TABLE

ELSEWHERE = {"stuck", "too-old", "gone", "unavailable-once"}
"""Ready-made scripts of background responses, which have tests of their own."""

FIELDS_ELSEWHERE = {
    Answering: {
        "text",  # the answers of this table are told by the default one
        "queued_seconds", "resumable", "retrieval",  # of background responses
    },
    ResetStreamStep: {"code"},  # over HTTP/2
    GoAwayStep: {"code"},  # over HTTP/2
    LostAnchorStep: {"status", "in_stream"},  # of a chat's second turn
}  # fmt: skip
"""The fields of steps that other tests vary, by the model that has them."""

Records = Mapping[tuple[str, Api], Record]

every_cell = pytest.mark.parametrize(
    ("row", "api"),
    [pytest.param(row, api, id=f"{row.name}-{api.name.lower()}") for row in TABLE for api in Api],
)


@pytest.fixture(scope="module")
def records(fault_site: Site) -> Records:
    """Run the turns of all cells side by side."""
    words = {row.name: fault_site.script(*row.steps) if row.steps else f"sim:{row.name}" for row in TABLE}

    def turn(row: Row, api: Api) -> tuple[str, str]:
        return f"Once {words[row.name]}", f"{HASTY}_{api.value}" if row.is_hasty else api.value

    cells = [(row, api) for row in TABLE for api in Api]
    ended = fault_site.run_all([turn(row, api) for row, api in cells])
    return {(row.name, api): record for (row, api), record in zip(cells, ended, strict=True)}


@every_cell
def test_every_fault_has_its_ending(records: Records, row: Row, api: Api) -> None:
    record = records[row.name, api]

    ending = row.on(api)
    assert record.tries == ending.tries
    assert record.view.state is ending.state
    assert record.finish == (ending.finish if ending.state is TurnState.COMPLETED else None)
    assert len(record.calls) == len(ending.tries)
    assert statuses(record)[: len(refusals(row))] == refusals(row)
    if ending.state is TurnState.FAILED:
        assert record.view.error is not None
        assert record.view.error.kind is ending.failed[-1].kind
        assert record.view.error.message


@every_cell
def test_the_answer_is_there_once_for_every_reader(fault_site: Site, records: Records, row: Row, api: Api) -> None:
    record = records[row.name, api]
    late = Transcript()
    late.feed(fault_site.keeper.follow(record.view.id))

    ending = row.on(api)
    text = ending.text(record.answer)
    parts = {type(part) for message in record.view.messages for part in message.parts}
    assert record.view.text == text
    assert record.read().text == text
    assert late.text == text
    assert parts - {Text} == set(ending.parts)


@every_cell
def test_what_a_failed_attempt_had_said_is_taken_back(records: Records, row: Row, api: Api) -> None:
    record = records[row.name, api]

    taken = record.taken_back()
    assert [bool(before) for before, _ in taken] == [one.seen for one in row.on(api).failed]
    assert all(record.answer.startswith(before) for before, _ in taken)
    assert not any(behind for _, behind in taken)


@every_cell
def test_no_retry_comes_before_its_time(records: Records, row: Row, api: Api) -> None:
    record = records[row.name, api]

    retries = [event for event in record.events if isinstance(event, TurnRetry)]
    followed = {AttemptOutcome.RETRIED, AttemptOutcome.HEALED}
    retried = [attempt for attempt in record.view.attempts if attempt.outcome in followed]
    gaps = [later["arrived_monotonic"] - failed["ended_monotonic"] for failed, later in pairwise(record.calls)]
    assert [retry.delay_ms for retry in retries] == [attempt.delay_ms or 0 for attempt in retried]
    assert [retry.error and retry.error.kind for retry in retries] == [attempt.kind for attempt in retried]
    assert all(retry.delay_ms >= row.wait_ms for retry in retries)
    # A pause of the model's is no retry, and waits for nothing.
    assert all(gap >= retry.delay_ms / 1000 for gap, retry in zip(gaps, retries, strict=False))


def statuses(record: Record) -> list[int | None]:
    return [attempt.status_code for attempt in record.view.attempts]


def refusals(row: Row) -> list[int]:
    """Return the statuses of errors that the attempts of *row* meet, each in its own."""
    return [step.status for step in row.script if isinstance(step, StatusStep) and step.status >= 400]


def steps() -> list[Step]:
    return [step for row in TABLE for step in row.script]


STEP_TYPES: tuple[type[ScriptPart], ...] = get_args(get_args(Step)[0])


def test_the_table_has_every_step_of_the_simulator() -> None:
    assert {type(step) for step in steps()} == set(STEP_TYPES)


@pytest.mark.parametrize("kind", [Answering, *STEP_TYPES])
def test_the_table_varies_every_field_of_a_step(kind: type[ScriptPart]) -> None:
    inherited = {"type"} if kind is Answering else {"type", *Answering.model_fields}

    own = kind.model_fields.keys() - inherited
    varied = {name for step in steps() if isinstance(step, kind) for name in step.model_fields_set}
    assert own - varied == FIELDS_ELSEWHERE.get(kind, set())


def test_the_table_has_every_ready_made_script() -> None:
    named = {row.name for row in TABLE if not row.steps}

    assert named | ELSEWHERE == set(ready_made_scripts())


MOMENTS = {*get_args(get_args(Moment)[-1]), 0, MID}


@pytest.mark.parametrize(
    ("kind", "field", "variants"),
    [
        pytest.param(kind, "at", MOMENTS, id=f"{kind.__name__} at every moment")
        for kind in (
            ErrorEventStep,
            CutStep,
            ResetStep,
            ResetStreamStep,
            GoAwayStep,
            EndStep,
            StallStep,
            MalformedStep,
        )
    ]
    + [
        pytest.param(StatusStep, "complaint", {None, *Complaint}, id="every complaint"),
        pytest.param(ErrorEventStep, "shape", {*ErrorShape}, id="every shape of an error"),
        pytest.param(EndStep, "missing", {*Missing}, id="every half of an end"),
        pytest.param(IncompleteStep, "reason", {*get_args(StopReason)}, id="every reason to stop early"),
        pytest.param(IncompleteStep, "at", {0, MID}, id="early stops at once and in the middle"),
    ],
)
def test_the_table_has_every_variant(kind: type[Step], field: str, variants: set[Any]) -> None:
    assert {getattr(step, field) for step in steps() if isinstance(step, kind)} >= variants


def test_no_two_rows_have_the_same_name() -> None:
    names = [row.name for row in TABLE]

    assert sorted(set(names)) == sorted(names)
