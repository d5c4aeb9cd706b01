"""What is left of a failure once its wrappers are off: layers of error objects, outermost first.  No judgement."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from turnkeeper_worker.failures.facts import Failure

_SEPARATORS = str.maketrans("", "", "_-. ")
_SUFFIX = re.compile(r"(?<=[a-z0-9])(?:exception|error|fault)$")


def fold(code: str) -> str:
    """Return *code* in the one spelling that tables are looked up by.

    Vendors write one word many ways: `RATE_LIMIT_EXCEEDED`, `rateLimitExceeded`, `RateLimitExceededException`.

    >>> fold("overloaded_error"), fold("com.amazon.coral#ThrottlingException"), fold("error")
    ('overloaded', 'throttling', 'error')
    """
    return _SUFFIX.sub("", code.rpartition("#")[2].lower().translate(_SEPARATORS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One error object, or one text, of a failure that may wrap another."""

    sentence: str = ""
    """What it says to people; empty where it only points inwards."""
    codes: tuple[str, ...] = ()
    """Machine codes as written; the reason a stream stopped is written `finish:<reason>`."""
    status: int | None = None
    """An HTTP error status, from a field."""
    original_status: int | None = None
    """The status of whoever stands behind the one that answered; it outranks every other."""
    retryable: bool | None = None
    """The provider's own word on whether another attempt may succeed."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """The object itself, for hints and quota names."""
    curated: bool = True
    """False for the bare text of an exception: its wording is a library's, not the provider's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that rules, hints and detail look at."""

    failure: Failure
    headers: Mapping[str, str]
    """With lower-case names."""
    layers: tuple[Layer, ...]
    """Outermost first; the last one with a sentence is the provider's own."""
    codes: Mapping[str, str]
    """Folded code → as written, the innermost first."""
    types: tuple[str, ...]
    """Folded class names, each exception's own before its bases."""
    text: str
    """All sentences, innermost first, in lower case, without quotes and URLs: what phrases are looked for in."""
    starts: frozenset[str]
    """How the words of `text` begin."""
    verbatim: str
    """The same as it was written, for notations in which case, quotes or punctuation matter."""
    status: int | None
    """The HTTP error status to report; None where there was none or the failure rode inside a 200 stream."""
    decisive_status: int | None
    """The innermost status, which rules go by: a gateway's 500 around a provider's 400 is a 400."""
