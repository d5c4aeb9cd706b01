"""Providers that are switched off, models to fall back on, and limits of usage."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


_OUTCOMES = ("cancelled", "completed", "failed", "handed_back", "healed", "lost", "retried", "running")


def _one_of(*outcomes: str) -> str:
    return f"outcome IN ({', '.join(sorted(map(repr, outcomes)))})"


def upgrade() -> None:
    """Add what the three need."""
    op.add_column("workers", sa.Column("providers", JSONB(), server_default=sa.text("'[]'"), nullable=False))
    op.create_table(
        "provider_switches",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("provider", name=op.f("pk_provider_switches")),
    )
    op.add_column("chats", sa.Column("fallbacks", JSONB()))
    op.add_column("turns", sa.Column("fallbacks", JSONB()))
    op.add_column("turns", sa.Column("first_choice", JSONB()))
    op.drop_constraint(op.f("ck_attempts_outcome_known"), "attempts")
    op.create_check_constraint(op.f("ck_attempts_outcome_known"), "attempts", _one_of(*_OUTCOMES, "fell_back"))
    op.create_table(
        "left_responses",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("checkpoint", JSONB(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("left_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("called_off_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("turn_id", "step", "attempt", name=op.f("pk_left_responses")),
    )
    op.add_column("turns", sa.Column("metered", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("erased_turns", sa.Column("owner", sa.Text()))
    _create_limits()
    _create_counters()


def _create_limits() -> None:
    op.create_table(
        "usage_limits",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("max_turns", sa.Integer()),
        sa.Column("max_tokens", sa.BigInteger()),
        sa.PrimaryKeyConstraint("owner", "period", name=op.f("pk_usage_limits")),
        sa.CheckConstraint("period IN ('day', 'hour', 'month')", name=op.f("ck_usage_limits_period_known")),
        sa.CheckConstraint("max_turns >= 0 AND max_tokens >= 0", name=op.f("ck_usage_limits_numbers_range")),
    )


def _create_counters() -> None:
    op.create_table(
        "usage_periods",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("turns", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("owner", "period", "starts_at", name=op.f("pk_usage_periods")),
        sa.CheckConstraint("period IN ('day', 'hour', 'month')", name=op.f("ck_usage_periods_period_known")),
        sa.CheckConstraint(
            "turns >= 0 AND input_tokens >= 0 AND output_tokens >= 0", name=op.f("ck_usage_periods_counts_range")
        ),
    )
    op.create_index("ix_usage_periods_age", "usage_periods", ["starts_at"])


def downgrade() -> None:
    """Take it out again; what fell back was retried, in the words of that version."""
    op.drop_table("usage_periods")
    op.drop_table("usage_limits")
    op.drop_column("erased_turns", "owner")
    op.drop_column("turns", "metered")
    op.drop_table("left_responses")
    op.drop_constraint(op.f("ck_attempts_outcome_known"), "attempts")
    op.execute("UPDATE attempts SET outcome = 'retried' WHERE outcome = 'fell_back'")
    op.create_check_constraint(op.f("ck_attempts_outcome_known"), "attempts", _one_of(*_OUTCOMES))
    op.drop_column("turns", "first_choice")
    op.drop_column("turns", "fallbacks")
    op.drop_column("chats", "fallbacks")
    op.drop_table("provider_switches")
    op.drop_column("workers", "providers")
