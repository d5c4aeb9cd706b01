"""The trace that a turn belongs to."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; the turns that are there belong to no trace."""
    op.add_column("turns", sa.Column("trace_context", sa.Text()))


def downgrade() -> None:
    """Take it out again."""
    op.drop_column("turns", "trace_context")
