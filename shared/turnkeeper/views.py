"""What `show` tells: a turn with its attempts, its error and its words."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, RowMapping, select

from turnkeeper.errors import ChatError, read_stored
from turnkeeper.messages import Message, Parts, ToolResult
from turnkeeper.requests import Fallback
from turnkeeper.states import AttemptOutcome, ToolRunState, TurnState
from turnkeeper.tables import attempts, messages, tool_runs, turns
from turnkeeper.turns import unknown


class AttemptView(BaseModel):
    """One attempt, as `show` tells it."""

    model_config = ConfigDict(frozen=True)

    step: int
    number: int
    outcome: AttemptOutcome
    kind: str | None
    status_code: int | None
    delay_ms: int | None
    chained: bool | None
    """Whether the request continued from an anchor; None while it runs, and where it never came to an end."""
    resumed: bool | None
    """Whether it came back to a background response that an earlier attempt had asked for; None likewise."""
    provider: str
    model: str | None
    error: ChatError | None
    facts: dict[str, Any] | None
    response_id: str | None
    usage: dict[str, int] | None
    started_at: datetime
    first_event_at: datetime | None
    finished_at: datetime | None


class ToolRunView(BaseModel):
    """One run of a worker's tool."""

    model_config = ConfigDict(frozen=True)

    step: int
    call_id: str
    name: str
    idempotent: bool
    state: ToolRunState
    result: ToolResult | None
    started_at: datetime
    finished_at: datetime | None


class TurnView(BaseModel):
    """Everything stored about a turn."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    chat_id: UUID
    seq: int
    state: TurnState
    provider: str
    model: str | None
    epoch: int
    step: int
    attempt: int
    available_at: datetime | None
    cancel_requested_at: datetime | None
    retry_of: UUID | None
    superseded_by: UUID | None = None
    """The turn whose message was said instead of this one, or of one before it."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: ChatError | None
    usage: dict[str, int] | None
    tools: tuple[str, ...]
    """The workers' tools that the model may call."""
    fallbacks: tuple[Fallback, ...] | None = None
    """The models that may still answer instead; None: as the provider is configured."""
    first_choice: dict[str, Any] | None = None
    """What it asked for at first, where it has fallen back."""
    attempts: tuple[AttemptView, ...]
    tool_runs: tuple[ToolRunView, ...]
    messages: tuple[Message, ...]
    text: str
    """The words of the answer; empty where there is none."""

    @property
    def parked_until(self) -> datetime | None:
        """When a turn is back that waits for its provider's cooldown; None where it does not."""
        if self.state is not TurnState.QUEUED or self.available_at is None:
            return None
        return self.available_at if self.available_at > datetime.now(UTC) else None


def show(connection: Connection, turn_id: UUID) -> TurnView:
    """Read a turn with its attempts and messages.  Raises UnknownTurn or TurnRejected."""
    turn = connection.execute(select(turns).where(turns.c.id == turn_id)).mappings().first()
    if turn is None:
        raise unknown(connection, turn_id)
    said = _read_messages(connection, turn_id)
    tried = connection.execute(
        select(attempts).where(attempts.c.turn_id == turn_id).order_by(attempts.c.step, attempts.c.number)
    ).mappings()
    ran = connection.execute(
        select(tool_runs).where(tool_runs.c.turn_id == turn_id).order_by(tool_runs.c.step, tool_runs.c.number)
    ).mappings()
    return TurnView(
        **{name: turn[name] for name in TurnView.model_fields if name in turns.c and name != "error"},
        error=read_stored(turn["error"]),
        attempts=tuple(_attempt_view(row) for row in tried),
        tool_runs=tuple(ToolRunView.model_validate(dict(row)) for row in ran),
        messages=said,
        text="".join(message.text for message in said if message.role == "assistant"),
    )


def _read_messages(connection: Connection, turn_id: UUID) -> tuple[Message, ...]:
    rows = connection.execute(
        select(messages.c.role, messages.c.parts)
        .where(messages.c.turn_id == turn_id)
        .order_by(messages.c.position)
    )
    return tuple(Message(role=row.role, parts=Parts.validate_python(row.parts)) for row in rows)


def _attempt_view(row: RowMapping) -> AttemptView:
    error = read_stored(row["error"])
    stored = {name: row[name] for name in AttemptView.model_fields if name in attempts.c}
    told = {
        "error": error,
        "kind": error.kind if error else None,
        "status_code": error.status_code if error else None,
    }
    return AttemptView(**(stored | told))
