"""The ledger of tools: a row before a tool runs, and its result after; so no tool runs twice that must not.

A run belongs to the lease under which it was started. Whoever takes the turn over either makes the run its own,
and repeats it, or closes it as interrupted; in both cases the former holder can write nothing any more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from turnkeeper.messages import Parts, ToolCall, ToolResult
from turnkeeper.states import ToolRunState
from turnkeeper.tables import messages, tool_runs
from turnkeeper_worker.replay import interrupted
from turnkeeper_worker.store import Claimed, LeaseLost


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a tool, which the model asked for in the current step."""

    call: ToolCall
    number: int
    """Its place among the calls of the step, from 1."""
    idempotent: bool
    result: ToolResult | None = None
    """None while it runs."""


def open_runs(connection: Connection, turn: Claimed, runs: Sequence[Run]) -> None:
    """Enter runs that are about to start."""
    rows = [
        {
            "turn_id": turn.id,
            "step": turn.step,
            "call_id": run.call.call_id,
            "number": run.number,
            "name": run.call.name,
            "arguments": run.call.arguments,
            "idempotent": run.idempotent,
            "epoch": turn.epoch,
        }
        for run in runs
    ]
    connection.execute(insert(tool_runs), rows)


def take_over(connection: Connection, turn: Claimed) -> tuple[Run, ...]:
    """Make the step's runs ours: those that may be repeated are open again, the others are interrupted."""
    interrupt_rest(connection, turn, ~tool_runs.c.idempotent)
    connection.execute(update(tool_runs).where(_is_open(turn)).values(epoch=turn.epoch))
    rows = connection.execute(select(tool_runs).where(_of_step(turn)).order_by(tool_runs.c.number))
    return tuple(
        Run(
            call=ToolCall(call_id=row.call_id, name=row.name, arguments=row.arguments),
            number=row.number,
            idempotent=row.idempotent,
            result=ToolResult.model_validate(row.result) if row.result is not None else None,
        )
        for row in rows
    )


def close_run(connection: Connection, turn: Claimed, result: ToolResult) -> None:
    """Enter the result of a run.  Raises LeaseLost where the run is not ours any more."""
    if not close_runs(connection, turn, (result,)):
        raise LeaseLost(turn.id, turn.epoch)


def close_runs(connection: Connection, turn: Claimed, results: Iterable[ToolResult]) -> int:
    """Enter results; return how many runs were still open, and ours."""
    return sum(
        _finish(
            connection,
            and_(_is_open(turn), tool_runs.c.call_id == result.call_id, tool_runs.c.epoch == turn.epoch),
            result,
        )
        for result in results
    )


def interrupt_rest(connection: Connection, turn: Claimed, *which: ColumnElement[bool]) -> None:
    """Close the open runs of the step: nobody knows whether they did their work."""
    interrupt(connection, _of_step(turn), *which)


def interrupt(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Close the runs that are open, each with what the model is told of it."""
    told = literal(interrupted("").model_dump(mode="json"), JSONB)
    connection.execute(
        update(tool_runs)
        .where(tool_runs.c.state == ToolRunState.STARTED, *which)
        .values(
            state=ToolRunState.INTERRUPTED,
            result=told.concat(func.jsonb_build_object("call_id", tool_runs.c.call_id)),
            finished_at=func.now(),
        )
    )


def calls_of_step(connection: Connection, turn: Claimed) -> tuple[str, ...]:
    """Return the ids of all calls that the step's answer made, the producer's tools included."""
    last = (
        select(messages.c.parts)
        .where(messages.c.turn_id == turn.id, messages.c.role == "assistant")
        .order_by(messages.c.position.desc())
        .limit(1)
    )
    parts = Parts.validate_python(connection.scalar(last) or [])
    return tuple(part.call_id for part in parts if isinstance(part, ToolCall) and part.call_id)


def _of_step(turn: Claimed) -> ColumnElement[bool]:
    return and_(tool_runs.c.turn_id == turn.id, tool_runs.c.step == turn.step)


def _is_open(turn: Claimed) -> ColumnElement[bool]:
    return and_(_of_step(turn), tool_runs.c.state == ToolRunState.STARTED)


def _finish(connection: Connection, which: ColumnElement[bool], result: ToolResult) -> int:
    ended = {
        "state": ToolRunState.FINISHED,
        "result": result.model_dump(mode="json"),
        "finished_at": func.now(),
    }
    return connection.execute(update(tool_runs).where(which).values(ended)).rowcount
