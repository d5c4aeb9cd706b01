"""Attempts are entered by the claim, before anybody knows how they will be asked."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let an attempt say at its end whether it was chained or resumed."""
    op.alter_column("attempts", "chained", nullable=True)
    op.alter_column("attempts", "resumed", nullable=True, server_default=None)


def downgrade() -> None:
    """Take what nobody knows for no."""
    op.execute("UPDATE attempts SET chained = coalesce(chained, false), resumed = coalesce(resumed, false)")
    op.alter_column("attempts", "chained", nullable=False)
    op.alter_column("attempts", "resumed", nullable=False, server_default=sa.text("false"))
