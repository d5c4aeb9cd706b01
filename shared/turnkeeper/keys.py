"""The names of things in Redis."""

from functools import lru_cache
from uuid import UUID

PREFIX = "turnkeeper:"

CANCEL_CHANNEL = f"{PREFIX}cancel"
"""Pub/sub channel: the ids of running turns whose cancellation was just requested."""

COOLDOWNS = f"{PREFIX}cooldowns"
"""Hash: the keys and models that workers keep count of; their own entries begin with this name."""


@lru_cache(maxsize=4096)
def events_key(turn_id: UUID) -> str:
    """Name the stream that holds the live events of a turn.

    >>> events_key(UUID(int=7))
    'turnkeeper:turn:00000000-0000-0000-0000-000000000007:events'
    """
    return f"{PREFIX}turn:{turn_id}:events"
