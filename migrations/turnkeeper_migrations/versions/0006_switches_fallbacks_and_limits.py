"""Providers that are switched off, models to fall back on, and limits of usage."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None


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


def downgrade() -> None:
    """Take it out again."""
    op.drop_table("provider_switches")
    op.drop_column("workers", "providers")
