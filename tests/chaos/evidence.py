"""What a storm leaves behind: rows, the provider's log, the tools' log, what readers saw, what the monkeys did."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Table, select

from turnkeeper.messages import Message, Parts, ToolCall, ToolResult
from turnkeeper.tables import attempts, messages, tool_runs, turns, workers

from .mischief import Incident
from .plan import PlannedTurn


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A row of `turns`."""

    id: UUID
    chat_id: UUID
    seq: int
    state: str
    step: int
    attempt: int
    spent: int
    lost: int
    idempotency_key: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A row of `attempts`."""

    turn_id: UUID
    step: int
    number: int
    worker_id: UUID
    outcome: str
    started_at: datetime
    finished_at: datetime | None
    delay_ms: int | None = None
    response_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A row of `messages`."""

    turn_id: UUID
    position: int
    role: str
    text: str
    response_id: str | None = None
    calls: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    """The ids of the calls that it makes, or answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """A row of `tool_runs`, the ledger."""

    turn_id: UUID
    step: int
    call_id: str
    idempotent: bool
    state: str

    @property
    def key(self) -> str:
        """The key under which the tool itself wrote down that it ran."""
        return f"{self.turn_id}/{self.step}/{self.call_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request in the provider's log."""

    turn_id: UUID
    step: int
    attempt: int
    arrived_at: datetime
    script: str | None
    """Whose script it took a step of.

    Where a user interrupts before the model has said anything, the next question is part of the same message, and
    the model takes it for a part of the former turn."""
    step_number: int | None
    """Which step; None: refused before."""
    kind: str | None
    """What that step does: `answer`, `cut`, …"""
    response_id: str | None
    generated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolNote:
    """A line that a tool wrote when it started or ended."""

    tool: str
    key: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What one reader was left with."""

    turn_id: UUID
    text: str
    end: str | None
    """The type of the final event; None: it never came."""
    visits: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A worker that ended, though nobody wished it, or not as it was asked to."""

    pid: int
    started_at: datetime
    at: datetime
    how: str
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of a storm when it is over."""

    planned: Mapping[str, PlannedTurn]
    """By key."""
    turns: tuple[Turn, ...]
    attempts: tuple[Attempt, ...] = ()
    said: tuple[Said, ...] = ()
    tool_runs: tuple[ToolRun, ...] = ()
    calls: tuple[Call, ...] = ()
    tool_notes: tuple[ToolNote, ...] = ()
    heard: tuple[Heard, ...] = ()
    incidents: tuple[Incident, ...] = ()
    departures: tuple[Departure, ...] = ()
    troubles: tuple[str, ...] = ()
    """What users and readers met that they should not have."""
    pids: Mapping[UUID, int]
    """The process ids of workers by their ids."""


RowT = TypeVar("RowT")


def read_rows(connection: Connection) -> dict[str, Any]:
    """Read what the database holds, as the fields of `Evidence`."""
    said = connection.execute(select(messages).order_by(messages.c.turn_id, messages.c.position)).mappings()
    return {
        "turns": _read(connection, turns, Turn),
        "attempts": _read(connection, attempts, Attempt),
        "tool_runs": _read(connection, tool_runs, ToolRun),
        "said": tuple(_said(row) for row in said),
        "pids": {row.id: row.pid for row in connection.execute(select(workers.c.id, workers.c.pid))},
    }


def _read(connection: Connection, table: Table, kind: type[RowT]) -> tuple[RowT, ...]:
    columns = [table.c[field.name] for field in fields(kind)]  # type: ignore[arg-type]  # rows are dataclasses
    rows = connection.execute(select(*columns).order_by(*table.primary_key.columns)).mappings()
    return tuple(kind(**row) for row in rows)


def _said(row: Mapping[Any, Any]) -> Said:
    message = Message(role=row["role"], parts=Parts.validate_python(row["parts"]))
    return Said(
        turn_id=row["turn_id"],
        position=row["position"],
        role=row["role"],
        text=message.text,
        response_id=row["response_id"],
        calls=tuple(part.call_id for part in message.parts if isinstance(part, ToolCall)),
        results=tuple(part.call_id for part in message.parts if isinstance(part, ToolResult)),
    )


def read_calls(log: Iterable[Mapping[str, Any]]) -> tuple[Call, ...]:
    """Read the provider's log, as its control API tells it."""
    return tuple(_call(entry) for entry in log if entry["turn"] is not None)


def _call(entry: Mapping[str, Any]) -> Call:
    step, _, attempt = entry["attempt"].partition(".")
    return Call(
        turn_id=UUID(entry["turn"]),
        step=int(step),
        attempt=int(attempt),
        arrived_at=datetime.fromisoformat(entry["arrived_at"]),
        script=entry["script"],
        step_number=entry["step_number"],
        kind=entry["step"],
        response_id=entry["response_id"],
        generated=entry["generated"],
    )


def read_tool_notes(log: Path) -> tuple[ToolNote, ...]:
    """Read what the tools wrote down about themselves."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return tuple(ToolNote(tool=one["tool"], key=one["key"], at=one["at"]) for one in map(json.loads, lines))
