"""Providers that are switched off, models to fall back on, and limits of usage."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0004"
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
        sa.Column("left_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("called_off_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("turn_id", "step", "attempt", name=op.f("pk_left_responses")),
    )


def downgrade() -> None:
    """Take it out again; what fell back was retried, in the words of that version."""
    op.drop_table("left_responses")
    op.drop_constraint(op.f("ck_attempts_outcome_known"), "attempts")
    op.execute("UPDATE attempts SET outcome = 'retried' WHERE outcome = 'fell_back'")
    op.create_check_constraint(op.f("ck_attempts_outcome_known"), "attempts", _one_of(*_OUTCOMES))
    op.drop_column("turns", "first_choice")
    op.drop_column("turns", "fallbacks")
    op.drop_column("chats", "fallbacks")
    op.drop_table("provider_switches")
    op.drop_column("workers", "providers")
