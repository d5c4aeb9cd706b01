"""How far a background response had come when it was last written down, for a worker's successor.  Pure."""

from datetime import datetime
from itertools import groupby

from pydantic import BaseModel, ConfigDict, ValidationError

from turnkeeper.events import PartKind
from turnkeeper_worker.chain import Credential

Piece = tuple[PartKind, str]
"""A piece of the answer, as followers are told of it."""


class Checkpoint(BaseModel):
    """A background response, and what had been heard of it."""

    model_config = ConfigDict(frozen=True)

    response_id: str
    credential: Credential
    """Where it runs; nobody else can come back to it."""
    began_at: datetime
    cursor: int
    """The sequence number of the last event that was heard."""
    pieces: tuple[Piece, ...] = ()
    """What had been said up to there; a successor says it again before it goes on."""


def read_checkpoint(stored: object) -> Checkpoint | None:
    """Read a checkpoint back; what cannot be read is none."""
    try:
        return Checkpoint.model_validate(stored)
    except ValidationError:
        return None


def joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Join neighbouring pieces of the same kind.

    >>> joined([("text", "Hel"), ("text", "lo"), ("reasoning", "…")])
    (('text', 'Hello'), ('reasoning', '…'))
    """
    return tuple(
        (kind, "".join(text for _, text in run)) for kind, run in groupby(pieces, key=lambda piece: piece[0])
    )
