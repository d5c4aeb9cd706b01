"""Messages that are edited, chats that are erased, and records that are deleted when they are old."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_AGES = {"attempts": "started_at", "tool_runs": "started_at", "rejections": "received_at"}


def upgrade() -> None:
    """Add what the three need."""
    op.add_column("turns", sa.Column("superseded_by", sa.Uuid()))
    op.create_foreign_key(op.f("fk_turns_superseded_by"), "turns", "turns", ["superseded_by"], ["id"])
    for column in ("retry_of", "superseded_by"):
        op.create_index(f"ix_turns_{column}", "turns", [column], postgresql_where=sa.text(f"{column} IS NOT NULL"))
    for table, column in _AGES.items():
        op.create_index(f"ix_{table}_age", table, [column])
    op.create_table(
        "erased_turns",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("checkpoint", JSONB()),
        sa.Column("erased_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erased_turns")),
    )


def downgrade() -> None:
    """Take it out again; what was edited is history again, beside what replaced it."""
    op.drop_table("erased_turns")
    for table in _AGES:
        op.drop_index(f"ix_{table}_age", table)
    for column in ("retry_of", "superseded_by"):
        op.drop_index(f"ix_turns_{column}", "turns")
    op.drop_constraint(op.f("fk_turns_superseded_by"), "turns")
    op.drop_column("turns", "superseded_by")
