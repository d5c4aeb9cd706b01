"""Whether a step may continue from an anchor, or must replay its history.  Pure.

An anchor is the id of a stored, completed response. It stands for the history up to and including the message
that the response gave; with it, only what came after has to be sent. Whatever makes that doubtful means full
replay: a doubt costs tokens, a wrong anchor costs the answer.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from turnkeeper.messages import Message, ToolResult


class Credential(BaseModel):
    """Where responses are stored: an anchor means nothing anywhere else."""

    model_config = ConfigDict(frozen=True)

    provider: str
    base_url: str
    key: str
    """A fingerprint of the API key."""
    model: str | None

    @property
    def seal(self) -> str:
        """Name whoever can read what this provider seals, whatever the model: encrypted reasoning, for one."""
        return hashlib.sha256(f"{self.provider} {self.base_url} {self.key}".encode()).hexdigest()[:16]


class Anchor(BaseModel):
    """A stored response that a chat may continue from."""

    model_config = ConfigDict(frozen=True)

    response_id: str
    credential: Credential
    seq: int
    """The turn that produced it, by its number in the chat."""
    position: int
    """The message of that turn up to which it stands for the history."""
    digest: str
    """A fingerprint of the history it stands for."""
    terms: str = ""
    """A fingerprint of what it keeps besides the history, and would not hear of again."""
    calls: tuple[str, ...] = ()
    """The tool calls that it ended with, and that wait for their results."""
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """How chains have held lately, for one credential."""

    breaks: int = 0
    """Since the last one that held."""
    is_resting: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What is so when a step is planned."""

    credential: Credential
    """Where the next call goes."""
    kept_for: timedelta | None
    """How long responses are kept there; None where they are not kept at all."""
    terms: str
    """What a chained call would silently inherit, as it is now."""
    health: Health
    """How chains have held there."""
    digest: str
    """The fingerprint of the history that the anchor stands for, as it is now."""
    news: Sequence[Message]
    """What was said since."""
    now: datetime


def plan(anchor: Anchor | None, present: Present) -> Plan:
    """Choose between the anchor and the whole history."""
    if anchor is None:
        return FullReplay("no anchor")
    objection = next(_objections(anchor, present), None)
    return Chained(anchor) if objection is None else FullReplay(objection)


def _objections(anchor: Anchor, present: Present) -> Iterator[str]:
    if present.kept_for is None:
        yield "the provider keeps no responses"
    elif present.now - anchor.made_at > present.kept_for:
        yield "the anchor is too old"
    if anchor.credential != present.credential:
        yield "another provider, key, address or model"
    if anchor.terms != present.terms:
        yield "other instructions, options or tools"
    if present.health.is_resting:
        yield "chains broke too often"
    if anchor.digest != present.digest:
        yield "the history was edited"
    if not present.news:
        yield "nothing new to send"
    if not _answered(present.news).issuperset(anchor.calls):
        yield "a tool call has no result"


def _answered(news: Iterable[Message]) -> set[str]:
    """Return the ids of the calls that are answered before the model speaks again."""
    heard = takewhile(lambda message: message.role == "user", news)
    return {part.call_id for message in heard for part in message.parts if isinstance(part, ToolResult)}
