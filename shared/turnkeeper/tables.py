"""The tables.  Each invariant that SQL can state is stated here as a constraint."""

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from turnkeeper.states import FINAL_STATES, WAITING_STATES, AttemptOutcome, ToolRunState, TurnState, UsagePeriod

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _one_of(column: str, values: Iterable[StrEnum]) -> str:
    return f"{column} IN ({', '.join(sorted(repr(str(value)) for value in values))})"


def _id() -> Column[object]:
    return Column("id", Uuid, primary_key=True)


def _at(name: str, *, default: bool = False, nullable: bool = True, primary_key: bool = False) -> Column[object]:
    return Column(
        name,
        DateTime(timezone=True),
        primary_key=primary_key,
        nullable=nullable and not default,
        server_default=func.now() if default else None,
    )


def _count(name: str) -> Column[object]:
    return Column(name, Integer, nullable=False, server_default=text("0"))


_FINAL = _one_of("state", FINAL_STATES)
_WAITING = _one_of("state", WAITING_STATES)

workers = Table(
    "workers",
    metadata,
    _id(),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("concurrency", Integer, nullable=False),
    # The names of the providers that it is configured for.
    Column("providers", JSONB, nullable=False, server_default=text("'[]'")),
    _at("started_at", default=True),
    # The lease of every turn that this process runs: it lives while this is fresh by the database's clock.
    _at("heartbeat_at", default=True),
)

chats = Table(
    "chats",
    metadata,
    _id(),
    Column("owner", Text, nullable=False, server_default=text("''")),
    Column("provider", Text, nullable=False),
    Column("model", Text),
    Column("instructions", Text),
    Column("tools", JSONB, nullable=False, server_default=text("'[]'")),
    Column("fallbacks", JSONB(none_as_null=True)),
    # The seq of the newest turn; raising it is how enqueue locks the chat and takes a number.
    _count("turn_count"),
    Column("anchor", JSONB(none_as_null=True)),
    Column("last_error", JSONB(none_as_null=True)),
    _at("created_at", default=True),
    _at("updated_at", default=True),
    CheckConstraint("turn_count >= 0", name="turn_count_range"),
)

turns = Table(
    "turns",
    metadata,
    _id(),
    Column("chat_id", Uuid, ForeignKey("chats.id", ondelete="CASCADE"), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("owner", Text, nullable=False, server_default=text("''")),
    Column("state", Text, nullable=False, server_default=text("'queued'")),
    # The fencing number of the lease: raised by every claim, rescue and cancel, named by every write.
    _count("epoch"),
    Column("worker_id", Uuid),
    Column("step", Integer, nullable=False, server_default=text("1")),
    _count("attempt"),
    # Attempts of this step that count against the retry budget; a heal or a hand back does not.
    _count("spent"),
    Column("healed", Boolean, nullable=False, server_default=text("false")),
    # The model's answer to this step is stored, and the tools that it called are being run.
    Column("runs_tools", Boolean, nullable=False, server_default=text("false")),
    # How many workers were lost while they ran it.
    _count("lost"),
    # Among the turns of its owner that stand back, the highest comes first.
    Column("priority", SmallInteger, nullable=False, server_default=text("0")),
    _at("available_at"),
    # When the broker was last told; the rescue loop tells it again when that is long ago. NULL in a turn that is
    # due: it stands back, for the broker holds enough turns of its owner.
    _at("rung_at"),
    _at("cancel_requested_at"),
    Column("provider", Text, nullable=False),
    Column("model", Text),
    Column("options", JSONB, nullable=False, server_default=text("'{}'")),
    Column("tools", JSONB, nullable=False, server_default=text("'[]'")),
    Column("background", Boolean),
    # Who may answer instead, in order, of those that have not been tried; NULL: as the provider is configured.
    Column("fallbacks", JSONB(none_as_null=True)),
    # Limits held for its owner when it was enqueued: what it uses is counted.
    Column("metered", Boolean, nullable=False, server_default=text("false")),
    # What it asked for at first, once it has fallen back: provider, model, options, background and fallbacks.
    Column("first_choice", JSONB(none_as_null=True)),
    # How far a background response has come that goes on at the provider; a final turn's is to be called off.
    Column("checkpoint", JSONB(none_as_null=True)),
    # The span of whoever enqueued it, as W3C's `traceparent`: a rescue goes on in the same trace.
    Column("trace_context", Text),
    Column("idempotency_key", Text),
    Column("request_digest", Text, nullable=False),
    Column("retry_of", Uuid, ForeignKey("turns.id", ondelete="SET NULL")),
    # The turn whose message was said instead of what this one stands for; those numbered from it on do not see it.
    Column("superseded_by", Uuid, ForeignKey("turns.id")),
    Column("error", JSONB(none_as_null=True)),
    Column("usage", JSONB(none_as_null=True)),
    _at("created_at", default=True),
    _at("started_at"),
    _at("finished_at"),
    UniqueConstraint("chat_id", "seq"),
    CheckConstraint(_one_of("state", TurnState), name="state_known"),
    CheckConstraint(f"({_FINAL}) = (finished_at IS NOT NULL)", name="final_is_finished"),
    CheckConstraint("(state = 'running') = (worker_id IS NOT NULL)", name="running_has_a_worker"),
    CheckConstraint(f"available_at IS NULL OR {_WAITING}", name="only_waiting_is_available"),
    CheckConstraint("state <> 'retrying' OR available_at IS NOT NULL", name="retrying_is_due_sometime"),
    CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="failed_has_an_error"),
    CheckConstraint(
        "seq > 0 AND epoch >= 0 AND step > 0 AND attempt >= 0 AND spent >= 0 AND lost >= 0", name="counts_range"
    ),
)

Index("ix_turns_one_runs", turns.c.chat_id, unique=True, postgresql_where=text("state = 'running'"))
Index("ix_turns_open", turns.c.chat_id, turns.c.seq, postgresql_where=text("finished_at IS NULL"))
Index("ix_turns_due", turns.c.available_at, postgresql_where=text("available_at IS NOT NULL"))
Index("ix_turns_waiting", turns.c.owner, turns.c.available_at, postgresql_where=text("available_at IS NOT NULL"))
Index(
    "ix_turns_standing_back",
    turns.c.owner,
    turns.c.priority.desc(),
    turns.c.available_at,
    postgresql_where=text("available_at IS NOT NULL AND rung_at IS NULL"),
)
Index("ix_turns_held", turns.c.worker_id, postgresql_where=text("state = 'running'"))
Index(
    "ix_turns_abandoned",
    turns.c.finished_at,
    postgresql_where=text("checkpoint IS NOT NULL AND finished_at IS NOT NULL"),
)
# Without these two, each turn of a chat that is erased would be looked for in the whole table.
Index("ix_turns_retry_of", turns.c.retry_of, postgresql_where=text("retry_of IS NOT NULL"))
Index("ix_turns_superseded_by", turns.c.superseded_by, postgresql_where=text("superseded_by IS NOT NULL"))
Index(
    "ix_turns_idempotency",
    turns.c.owner,
    turns.c.idempotency_key,
    unique=True,
    postgresql_where=text("idempotency_key IS NOT NULL"),
)

messages = Table(
    "messages",
    metadata,
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    # The user's message of a turn is 0; a step's messages follow.
    Column("position", Integer, primary_key=True),
    Column("chat_id", Uuid, ForeignKey("chats.id", ondelete="CASCADE"), nullable=False),
    Column("turn_seq", Integer, nullable=False),
    Column("role", Text, nullable=False),
    Column("parts", JSONB, nullable=False),
    Column("provider", Text),
    Column("model", Text),
    # Who sealed what only its writer can read: a fingerprint of provider, address and key.
    Column("credential", Text),
    Column("response_id", Text),
    # Changes with the content, whoever changes it: what an anchor stands for is compared by these.
    Column("digest", Text, Computed("md5(role || ' ' || parts::text)", persisted=True), nullable=False),
    _at("created_at", default=True),
    CheckConstraint("role IN ('assistant', 'user')", name="role_known"),
    CheckConstraint("position >= 0 AND turn_seq > 0", name="place_range"),
    Index("ix_messages_history", "chat_id", "turn_seq", "position"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("worker_id", Uuid, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text),
    # How it was asked, as its end tells; NULL while it runs, and where it was lost before that.
    Column("chained", Boolean),
    # It came back to a background response that an earlier attempt had asked for; NULL likewise.
    Column("resumed", Boolean),
    Column("outcome", Text, nullable=False, server_default=text("'running'")),
    Column("error", JSONB(none_as_null=True)),
    # What decided: status, machine code, request id, rule, evidence, hint. Never a body or a prompt.
    Column("facts", JSONB(none_as_null=True)),
    Column("delay_ms", BigInteger),
    Column("response_id", Text),
    Column("usage", JSONB(none_as_null=True)),
    _at("started_at", default=True),
    _at("first_event_at"),
    _at("finished_at"),
    CheckConstraint(_one_of("outcome", AttemptOutcome), name="outcome_known"),
    CheckConstraint("(outcome = 'running') = (finished_at IS NULL)", name="ended_is_finished"),
    CheckConstraint("step > 0 AND number > 0 AND epoch > 0 AND delay_ms >= 0", name="numbers_range"),
    Index("ix_attempts_age", "started_at"),
)

tool_runs = Table(
    "tool_runs",
    metadata,
    Column("turn_id", Uuid, ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("call_id", Text, primary_key=True),
    # The order in which the model asked, and in which the results are told.
    Column("number", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("idempotent", Boolean, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'started'")),
    # The lease under which it runs; a run of an earlier lease can write nothing any more.
    Column("epoch", Integer, nullable=False),
    Column("result", JSONB(none_as_null=True)),
    _at("started_at", default=True),
    _at("finished_at"),
    CheckConstraint(_one_of("state", ToolRunState), name="state_known"),
    CheckConstraint("(state = 'started') = (finished_at IS NULL)", name="ended_is_finished"),
    CheckConstraint("(state = 'started') = (result IS NULL)", name="ended_has_a_result"),
    CheckConstraint("step > 0 AND number > 0 AND epoch > 0", name="numbers_range"),
    Index("ix_tool_runs_age", "started_at"),
)

chain_health = Table(
    "chain_health",
    metadata,
    Column("credential", Text, primary_key=True),
    # Broken chains since the last one that held.
    Column("breaks", Integer, nullable=False),
    Column("provider", Text, nullable=False),
    _at("rests_until"),
    _at("broken_at", default=True),
    CheckConstraint("breaks >= 0", name="breaks_range"),
)

usage_limits = Table(
    "usage_limits",
    metadata,
    # `*`: all who have no row of their own for the period.
    Column("owner", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("max_turns", Integer),
    Column("max_tokens", BigInteger),
    CheckConstraint(_one_of("period", UsagePeriod), name="period_known"),
    CheckConstraint("max_turns >= 0 AND max_tokens >= 0", name="numbers_range"),
)

usage_periods = Table(
    "usage_periods",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    _at("starts_at", nullable=False, primary_key=True),
    _count("turns"),
    Column("input_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("output_tokens", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint(_one_of("period", UsagePeriod), name="period_known"),
    CheckConstraint("turns >= 0 AND input_tokens >= 0 AND output_tokens >= 0", name="counts_range"),
    Index("ix_usage_periods_age", "starts_at"),
)

# A row stands for a provider that an operator has switched off.
provider_switches = Table(
    "provider_switches",
    metadata,
    Column("provider", Text, primary_key=True),
    Column("reason", Text, nullable=False, server_default=text("''")),
    _at("disabled_at", default=True),
)

rejections = Table(
    "rejections",
    metadata,
    _id(),
    Column("reason", Text, nullable=False),
    _at("received_at", default=True),
    Index("ix_rejections_age", "received_at"),
)

# Background responses that a turn left behind when it fell back, and that are still to be called off.
left_responses = Table(
    "left_responses",
    metadata,
    # No foreign key: a response goes on when its chat is erased, and has to be called off all the same.
    Column("turn_id", Uuid, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    # Without the words that had been heard.
    Column("checkpoint", JSONB, nullable=False),
    # Whose usage its cost is added to; NULL where nobody counts.
    Column("owner", Text),
    _at("left_at", default=True),
    # The row stays until the turn ends, for only then can the cost be added to the turn's.
    _at("called_off_at"),
)

# What outlives the rows of an erased turn for a while, and is still to be got rid of: its live events, which its
# worker may be writing at this moment, and its background response.
erased_turns = Table(
    "erased_turns",
    metadata,
    _id(),
    # Without the words that had been heard.
    Column("checkpoint", JSONB(none_as_null=True)),
    # Whose usage the cost of the response is added to; NULL where nobody counts.
    Column("owner", Text),
    _at("erased_at", default=True),
)
