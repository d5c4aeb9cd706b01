"""Owners in turn, and priorities within an owner."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_IS_WAITING = "available_at IS NOT NULL"
_STANDS_BACK = f"{_IS_WAITING} AND rung_at IS NULL"


def upgrade() -> None:
    """Add the priority, and the two orders in which waiting turns are looked for."""
    op.add_column("turns", sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.create_index("ix_turns_waiting", "turns", ["owner", "available_at"], postgresql_where=sa.text(_IS_WAITING))
    op.create_index(
        "ix_turns_standing_back",
        "turns",
        ["owner", sa.text("priority DESC"), "available_at"],
        postgresql_where=sa.text(_STANDS_BACK),
    )


def downgrade() -> None:
    """Take them out again."""
    op.drop_index("ix_turns_standing_back", "turns")
    op.drop_index("ix_turns_waiting", "turns")
    op.drop_column("turns", "priority")
