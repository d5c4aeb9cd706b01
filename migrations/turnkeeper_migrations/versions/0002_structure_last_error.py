"""Turn `chats.last_error` from text into a ChatError, in place."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make each text the message of a `generic` error; NULL stays NULL."""
    op.execute(
        """
        ALTER TABLE chats ALTER COLUMN last_error TYPE jsonb
        USING CASE WHEN last_error IS NOT NULL
                   THEN jsonb_build_object('message', last_error, 'kind', 'generic') END
        """
    )


def downgrade() -> None:
    """Keep the message alone; kind, status and detail are lost."""
    op.execute("ALTER TABLE chats ALTER COLUMN last_error TYPE text USING last_error ->> 'message'")
