"""Tools that workers run, background responses, and the health of chains."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COUNTS = "seq > 0 AND epoch >= 0 AND step > 0 AND attempt >= 0 AND spent >= 0"


def upgrade() -> None:
    """Add what the three need; the ledger of tools has had no writer so far, and is made anew."""
    for table in ("chats", "turns"):
        op.add_column(table, sa.Column("tools", JSONB(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("turns", sa.Column("runs_tools", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("turns", sa.Column("background", sa.Boolean()))
    op.add_column("turns", sa.Column("checkpoint", JSONB()))
    op.add_column("turns", sa.Column("lost", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.execute(
        """
        UPDATE turns SET lost = counted.lost
        FROM (SELECT turn_id, count(*) AS lost FROM attempts WHERE outcome = 'lost' GROUP BY turn_id) AS counted
        WHERE turns.id = counted.turn_id AND turns.finished_at IS NULL
        """
    )
    _replace_counts_range(f"{_COUNTS} AND lost >= 0")
    op.create_index(
        "ix_turns_abandoned",
        "turns",
        ["finished_at"],
        postgresql_where=sa.text("checkpoint IS NOT NULL AND finished_at IS NOT NULL"),
    )
    op.add_column("messages", sa.Column("credential", sa.Text()))
    op.add_column("attempts", sa.Column("resumed", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.drop_table("tool_runs")
    _create_tool_runs()
    op.create_table(
        "chain_health",
        sa.Column("credential", sa.Text(), nullable=False),
        sa.Column("breaks", sa.Integer(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("rests_until", sa.DateTime(timezone=True)),
        sa.Column("broken_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("breaks >= 0", name=op.f("ck_chain_health_breaks_range")),
        sa.PrimaryKeyConstraint("credential", name=op.f("pk_chain_health")),
    )


def _replace_counts_range(condition: str) -> None:
    op.drop_constraint(op.f("ck_turns_counts_range"), "turns")
    op.create_check_constraint(op.f("ck_turns_counts_range"), "turns", condition)


def _create_tool_runs() -> None:
    op.create_table(
        "tool_runs",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("idempotent", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'started'"), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("result", JSONB()),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "state IN ('finished', 'interrupted', 'started')", name=op.f("ck_tool_runs_state_known")
        ),
        sa.CheckConstraint(
            "(state = 'started') = (finished_at IS NULL)", name=op.f("ck_tool_runs_ended_is_finished")
        ),
        sa.CheckConstraint("(state = 'started') = (result IS NULL)", name=op.f("ck_tool_runs_ended_has_a_result")),
        sa.CheckConstraint("step > 0 AND number > 0 AND epoch > 0", name=op.f("ck_tool_runs_numbers_range")),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_tool_runs_turn_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "step", "call_id", name=op.f("pk_tool_runs")),
    )


def downgrade() -> None:
    """Take it out again; what tools did and how far responses had come is forgotten."""
    op.drop_table("chain_health")
    op.drop_table("tool_runs")
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
            "state IN ('finished', 'interrupted', 'started')", name=op.f("ck_tool_runs_state_known")
        ),
        sa.CheckConstraint(
            "(state = 'started') = (finished_at IS NULL)", name=op.f("ck_tool_runs_ended_is_finished")
        ),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], name=op.f("fk_tool_runs_turn_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "call_id", name=op.f("pk_tool_runs")),
    )
    op.drop_column("attempts", "resumed")
    op.drop_column("messages", "credential")
    op.drop_index("ix_turns_abandoned", "turns")
    _replace_counts_range(_COUNTS)
    for column in ("lost", "checkpoint", "background", "runs_tools", "tools"):
        op.drop_column("turns", column)
    op.drop_column("chats", "tools")
