"""Whether a turn may continue from an anchor, or must replay its history.  Pure.

An anchor is the id of a stored, completed response. It stands for the history up to and including the turn
that produced it; with it, only what came after has to be sent. Whatever makes that doubtful means full replay:
a doubt costs tokens, a wrong anchor costs the answer.
"""

from dataclasses import dataclass
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError


class Credential(BaseModel):
    """Where responses are stored: an anchor means nothing anywhere else."""

    model_config = ConfigDict(frozen=True)

    provider: str
    base_url: str
    key: str
    """A fingerprint of the API key."""
    model: str | None


class Anchor(BaseModel):
    """A stored response that a chat may continue from."""

    model_config = ConfigDict(frozen=True)

    response_id: str
    credential: Credential
    through: int
    """The seq of the turn that produced it."""
    digest: str
    """A fingerprint of the history it stands for."""


@dataclass(frozen=True, slots=True)
class Chained:
    """Send what is new, and the anchor."""

    anchor: Anchor


@dataclass(frozen=True, slots=True)
class FullReplay:
    """Send the whole history."""

    why: str


Plan: TypeAlias = Chained | FullReplay


def read_anchor(stored: object) -> Anchor | None:
    """Read an anchor back; what cannot be read is no anchor."""
    try:
        return Anchor.model_validate(stored)
    except ValidationError:
        return None


def plan(anchor: Anchor | None, *, credential: Credential, stores: bool, digest: str, has_news: bool) -> Plan:
    """Choose between the anchor and the whole history.

    Args:
        anchor: What the chat would continue from.
        credential: Where the next call goes.
        stores: Whether the API keeps responses there.
        digest: The fingerprint, now, of the history that the anchor stands for.
        has_news: Whether anything was said since.
    """
    if anchor is None:
        return FullReplay("no anchor")
    if not stores:
        return FullReplay("the provider keeps no responses")
    if anchor.credential != credential:
        return FullReplay("another provider, key, address or model")
    if anchor.digest != digest:
        return FullReplay("the history was edited")
    if not has_news:
        return FullReplay("nothing new to send")
    return Chained(anchor)
