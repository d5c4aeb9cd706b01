"""Create the tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "chats",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("instructions", sa.Text()),
        sa.Column("turn_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("anchor", JSONB()),
        sa.Column("last_error", sa.Text()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("turn_count >= 0", name=op.f("ck_chats_turn_count_range")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chats")),
    )
    op.create_table(
        "rejections",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejections")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "turns",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("chat_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("step", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("spent", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("healed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("available_at", sa.DateTime(timezone=True)),
        sa.Column("rung_at", sa.DateTime(timezone=True)),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True)),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("options", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("request_digest", sa.Text(), nullable=False),
        sa.Column("retry_of", sa.Uuid()),
        sa.Column("error", JSONB()),
        sa.Column("usage", JSONB()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name=op.f("ck_turns_failed_has_an_error")),
        sa.CheckConstraint(
            "(state = 'running') = (worker_id IS NOT NULL)", name=op.f("ck_turns_running_has_a_worker")
        ),
        sa.CheckConstraint(
            "(state IN ('cancelled', 'completed', 'failed')) = (finished_at IS NOT NULL)",
            name=op.f("ck_turns_final_is_finished"),
        ),
        sa.CheckConstraint(
            "available_at IS NULL OR state IN ('queued', 'retrying')",
            name=op.f("ck_turns_only_waiting_is_available"),
        ),
        sa.CheckConstraint(
            "state <> 'retrying' OR available_at IS NOT NULL", name=op.f("ck_turns_retrying_is_due_sometime")
        ),
        sa.CheckConstraint(
            "state IN ('cancelled', 'completed', 'failed', 'queued', 'retrying', 'running')",
            name=op.f("ck_turns_state_known"),
        ),
        sa.CheckConstraint(
            "seq > 0 AND epoch >= 0 AND step > 0 AND attempt >= 0 AND spent >= 0",
            name=op.f("ck_turns_counts_range"),
        ),
        sa.ForeignKeyConstraint(["chat_id"], ["chats.id"], name=op.f("fk_turns_chat_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["retry_of"], ["turns.id"], name=op.f("fk_turns_retry_of"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_turns")),
        sa.UniqueConstraint("chat_id", "seq", name=op.f("uq_turns_chat_id_seq")),
    )
    op.create_index(
        "ix_turns_due", "turns", ["available_at"], postgresql_where=sa.text("available_at IS NOT NULL")
    )
    op.create_index("ix_turns_held", "turns", ["worker_id"], postgresql_where=sa.text("state = 'running'"))
    op.create_index(
        "ix_turns_idempotency",
        "turns",
        ["owner", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "ix_turns_one_runs", "turns", ["chat_id"], unique=True, postgresql_where=sa.text("state = 'running'")
    )
    op.create_index("ix_turns_open", "turns", ["chat_id", "seq"], postgresql_where=sa.text("finished_at IS NULL"))
    op.create_table(
        "attempts",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("chained", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("error", JSONB()),
        sa.Column("facts", JSONB()),
        sa.Column("delay_ms", sa.BigInteger()),
        sa.Column("response_id", sa.Text()),
        sa.Column("usage", JSONB()),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("first_event_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "(outcome = 'running') = (finished_at IS NULL)", name=op.f("ck_attempts_ended_is_finished")
        ),
        sa.CheckConstraint(
            "outcome IN ('cancelled', 'completed', 'failed', 'handed_back', 'healed', "
            "'lost', 'retried', 'running')",
            name=op.f("ck_attempts_outcome_known"),
        ),
        sa.CheckConstraint(
            "step > 0 AND number > 0 AND epoch > 0 AND delay_ms >= 0", name=op.f("ck_attempts_numbers_range")
        ),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_attempts_turn_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "step", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "messages",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("chat_id", sa.Uuid(), nullable=False),
        sa.Column("turn_seq", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("parts", JSONB(), nullable=False),
        sa.Column("provider", sa.Text()),
        sa.Column("model", sa.Text()),
        sa.Column("response_id", sa.Text()),
        sa.Column(
            "digest",
            sa.Text(),
            sa.Computed("md5(role || ' ' || parts::text)", persisted=True),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('assistant', 'user')", name=op.f("ck_messages_role_known")),
        sa.CheckConstraint("position >= 0 AND turn_seq > 0", name=op.f("ck_messages_place_range")),
        sa.ForeignKeyConstraint(["chat_id"], ["chats.id"], name=op.f("fk_messages_chat_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_messages_turn_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "position", name=op.f("pk_messages")),
    )
    op.create_index("ix_messages_history", "messages", ["chat_id", "turn_seq", "position"], unique=False)
    op.create_table(
        "tool_runs",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("idempotent", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'started'"), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("result", JSONB()),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "(state = 'started') = (finished_at IS NULL)", name=op.f("ck_tool_runs_ended_is_finished")
        ),
        sa.CheckConstraint(
            "state IN ('finished', 'interrupted', 'started')", name=op.f("ck_tool_runs_state_known")
        ),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_tool_runs_turn_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "call_id", name=op.f("pk_tool_runs")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("tool_runs")
    op.drop_index("ix_messages_history", table_name="messages")
    op.drop_table("messages")
    op.drop_table("attempts")
    op.drop_index("ix_turns_open", table_name="turns", postgresql_where=sa.text("finished_at IS NULL"))
    op.drop_index("ix_turns_one_runs", table_name="turns", postgresql_where=sa.text("state = 'running'"))
    op.drop_index(
        "ix_turns_idempotency", table_name="turns", postgresql_where=sa.text("idempotency_key IS NOT NULL")
    )
    op.drop_index("ix_turns_held", table_name="turns", postgresql_where=sa.text("state = 'running'"))
    op.drop_index("ix_turns_due", table_name="turns", postgresql_where=sa.text("available_at IS NOT NULL"))
    op.drop_table("turns")
    op.drop_table("workers")
    op.drop_table("rejections")
    op.drop_table("chats")
