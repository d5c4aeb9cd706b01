"""What the rules concluded from a failure: the ChatError, and what only the worker needs to know."""

from dataclasses import dataclass
from datetime import timedelta

from turnkeeper.errors import ChatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """The wait that a provider asked for."""

    wait: timedelta
    source: str
    """Where it was found, such as `retry-after-ms` or `RetryInfo`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """A ChatError with the worker's share of the verdict."""

    error: ChatError
    """In terminal copy; `retry_copy` words the same error for a countdown."""
    hint: Hint | None = None
    chain_broken: bool = False
    """The request was chained, and what it referred to is gone."""
    code: str | None = None
    """The provider's machine code, where it sent one."""
    request_id: str | None = None
    """The provider's id of the request, to quote to its support."""
    rule: str = "unknown"
    """The name of the rule that decided."""
    evidence: str = ""
    """What the rule saw, secrets masked."""
