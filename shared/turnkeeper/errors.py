"""What people and programs are told when a turn fails: the kinds, the ChatError, and all of its copy."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class ErrorKind(StrEnum):
    """What went wrong, in the one word that decides how it is handled and shown."""

    OVERLOADED = "overloaded"
    RATE_LIMIT = "rate_limit"
    TIMEOUT = "timeout"
    STARTUP_TIMEOUT = "startup_timeout"
    STREAM_SILENCE_TIMEOUT = "stream_silence_timeout"
    AUTH = "auth"
    CONFIG = "config"
    CONTEXT_OVERFLOW = "context_overflow"
    USAGE_LIMIT = "usage_limit"
    MISSING_KEY = "missing_key"
    PROVIDER_DISABLED = "provider_disabled"
    CONTENT_FILTER = "content_filter"
    GENERIC = "generic"


class ChatError(BaseModel):
    """A failure as it is shown, streamed and stored; the same words in all three places."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ErrorKind = ErrorKind.GENERIC
    message: str
    """One sentence for people, from the copy in this module."""
    provider: str | None = None
    """The provider's configured name; None where the failure has no provider."""
    retryable: bool = False
    status_code: int | None = None
    """The HTTP status; None where the failure rode inside a 200 stream or never met HTTP."""
    detail: str | None = None
    """The provider's own sentence: at most 500 characters, secrets masked."""


def read_stored(stored: Any) -> ChatError | None:
    """Read a stored error back; what cannot be read becomes `generic`, never an exception."""
    raise NotImplementedError
