"""The wait that a failure asks for: headers, then fields of the body, then its sentences.

A hint is read wherever it stands; whether anybody waits is not decided here.  Garbage, NaN, negatives, zeros and
moments that have passed are no hint.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures.classified import Hint
from turnkeeper_worker.failures.evidence import Evidence
from turnkeeper_worker.failures.verdict import Verdict

LONGEST = timedelta(days=366)
"""A longer wait is a mistake of the sender."""

UNITS: dict[str, float] = {
    "ms": 0.001, "msec": 0.001, "millisecond": 0.001,
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3_600, "hr": 3_600, "hour": 3_600,
    "d": 86_400, "day": 86_400,
}  # fmt: skip
"""Seconds per unit, plurals left out."""

SECONDS_FIELDS = (
    "retry_after", "retryAfter", "retry_after_seconds", "retryAfterSeconds", "retry-after", "retryDelay",
    "retry_delay", "resets_in_seconds", "reset_after_seconds", "estimated_time",
)  # fmt: skip
MILLISECONDS_FIELDS = ("retry_after_ms", "retryAfterMs", "retry-after-ms")
MOMENT_FIELDS = ("resets_at", "reset_at", "resetsAt", "retry_at", "retryAt", "quotaResetTimeStamp")

_QUANTITIES = ("requests", "tokens", "input-tokens", "output-tokens", "project-tokens")
BUCKETS = (
    *((f"x-ratelimit-remaining-{q}", f"x-ratelimit-reset-{q}") for q in _QUANTITIES),
    *((f"anthropic-ratelimit-{q}-remaining", f"anthropic-ratelimit-{q}-reset") for q in _QUANTITIES),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
)
"""What remains of a bucket, and when it is full again, which counts only of a bucket that is empty."""
_USED_PERCENT = (
    ("x-codex-primary-used-percent", "x-codex-primary-reset-after-seconds"),
    ("x-codex-secondary-used-percent", "x-codex-secondary-reset-after-seconds"),
)
_UNIFIED = ("anthropic-ratelimit-unified-status", "anthropic-ratelimit-unified-reset")

THROTTLED = frozenset({413, 429, 498, 503, 529})
"""Statuses under which a bucket's reset is the reason; other answers carry the same headers for information."""
WAITABLE = frozenset({
    ErrorKind.RATE_LIMIT,
    ErrorKind.OVERLOADED,
    ErrorKind.USAGE_LIMIT,
    ErrorKind.TIMEOUT,
})  # fmt: skip
"""Kinds whose sentences name waits; "15 minutes to propagate" in a rejected setting is no hint."""

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,15})?|\.\d{1,15}")
_UNIT_NAMES = "|".join(sorted(UNITS, key=len, reverse=True))
_STEP = re.compile(
    rf"(?P<number>\d{{1,9}}(?:\.\d{{1,9}})?)\s{{0,2}}(?P<unit>{_UNIT_NAMES})s?(?![a-z])", re.IGNORECASE
)
_STEPS = rf"(?:{_STEP.pattern.replace('?P<number>', '?:').replace('?P<unit>', '?:')}(?:,|\s|and){{0,5}}){{1,5}}"
_DURATION = re.compile(_STEPS, re.IGNORECASE)
# "Retrying in 5 s" is another client's plan, not a provider's wish: `retry` must be the whole word.
_SPOKEN = re.compile(
    rf"""\b(?:try\ again|retry|available|wait|resets?|back|request\ again)
         (?:\ (?:again|your\ request|the\ request|it|this|request|at\ least|another))?
         [\ _-]?(?:in|after|within|for)?\b["']?[:=]?\s{{0,3}}["']?
         (?:about|approximately|around|another|at\ least|~)?\s{{0,2}}
         (?P<wait>{_STEPS})""",
    re.VERBOSE | re.IGNORECASE,
)
_MOMENT = re.compile(
    r"\b(?:again|access|resets?|available|until|retry)(?: (?:again|on|at|after|until)){0,2}[: ]{1,2}"
    r"(?P<moment>\d{4}-\d\d-\d\d"
    r"(?:(?:T| at | )\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?)?)",
    re.IGNORECASE,
)
_EPOCH_SECONDS, _EPOCH_MILLISECONDS, _LARGEST = 1e9, 1e12, 1e15
"""From here on a number is a moment and no wait (1e9 s are 31 years), is one in milliseconds, is nothing."""


def find_hint(evidence: Evidence, verdict: Verdict, *, now: datetime) -> Hint | None:
    """Return the first hint, in the order of how directly it speaks; None where nothing names a wait.

    Moments are measured from the response's own Date, and from *now* where it has none: clocks differ.
    """
    now = moment_of(evidence.headers.get("date", "")) or now
    for source, wait in _candidates(evidence, verdict, now):
        if wait is not None and timedelta(0) < wait <= LONGEST:
            return Hint(wait=wait, source=source)
    return None


def _candidates(evidence: Evidence, verdict: Verdict, now: datetime) -> Iterator[tuple[str, timedelta | None]]:
    yield from _asked_for(evidence.headers, now)
    for layer in reversed(evidence.layers):
        # Events carry the headers of the response that they stand for; OpenRouter nests them as well.
        nested = layer.fields.get("headers")
        if isinstance(nested, dict):
            yield from _asked_for({str(k).lower(): str(v) for k, v in nested.items()}, now)
            yield from _resets({str(k).lower(): str(v) for k, v in nested.items()}, now)
        yield from _fields(layer.fields, now)
    if evidence.status in THROTTLED or verdict.kind is ErrorKind.RATE_LIMIT:
        yield from _resets(evidence.headers, now)
    if verdict.kind in WAITABLE or evidence.decisive_status in THROTTLED:
        yield from _spoken(evidence.verbatim, now)


def _asked_for(headers: Mapping[str, str], now: datetime) -> Iterator[tuple[str, timedelta | None]]:
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        yield name, seconds(headers.get(name, ""), scale=0.001)
    retry_after = headers.get("retry-after", "")
    yield "retry-after", duration(retry_after) or _until(moment_of(retry_after), now)


def _resets(headers: Mapping[str, str], now: datetime) -> Iterator[tuple[str, timedelta | None]]:
    waits = [(reset, reset_after(headers[reset], now)) for reset in _empty_buckets(headers)]
    # Every empty bucket must fill before the next request fits, so the longest wait counts.
    yield from sorted(waits, key=lambda found: found[1] or timedelta(0), reverse=True)


def _empty_buckets(headers: Mapping[str, str]) -> Iterator[str]:
    for remaining, reset in BUCKETS:
        if reset in headers and headers.get(remaining) == "0":
            yield reset
    for used, reset in _USED_PERCENT:
        if reset in headers and headers.get(used, "").startswith("100"):
            yield reset
    if headers.get(_UNIFIED[0]) == "rejected" and _UNIFIED[1] in headers:
        yield _UNIFIED[1]
    if "x-ratelimit-reset" in headers and "x-ratelimit-remaining" not in headers:
        yield "x-ratelimit-reset"


def _fields(fields: Mapping[str, object], now: datetime) -> Iterator[tuple[str, timedelta | None]]:
    for name in MILLISECONDS_FIELDS:
        if name in fields:
            yield name, seconds(_text(fields[name]), scale=0.001)
    for name in SECONDS_FIELDS:
        if name in fields:
            source = "RetryInfo" if name == "retryDelay" else name
            yield source, duration(_text(fields[name]))
    for name in MOMENT_FIELDS:
        if name in fields:
            yield name, reset_after(_text(fields[name]), now)


def _spoken(text: str, now: datetime) -> Iterator[tuple[str, timedelta | None]]:
    if found := _SPOKEN.search(text):
        yield "text", duration(found["wait"])
    if found := _MOMENT.search(text):
        yield "text", _until(_iso_date(found["moment"]), now)


def number(text: str) -> float | None:
    """Read a plain decimal number; None for anything else, `nan`, `1_000` and negatives included.

    >>> number(" 1.5 "), number("nan")
    (1.5, None)
    """
    # Not `float()` at once: it also reads "inf", "1_000" and other scripts' digits.
    plain = text.strip()
    return float(plain) if plain.isascii() and _NUMBER.fullmatch(plain) else None


def seconds(text: str, *, scale: float = 1.0) -> timedelta | None:
    """Read a number of seconds, or of another unit that is *scale* seconds long.

    >>> seconds("1.5"), seconds("250", scale=0.001), seconds("1772366430")
    (datetime.timedelta(seconds=1, microseconds=500000), datetime.timedelta(microseconds=250000), None)
    """
    value = number(text)
    return timedelta(seconds=value * scale) if value is not None and value < _EPOCH_SECONDS else None


def duration(text: str) -> timedelta | None:
    """Read a number of seconds, or steps with units such as `7m12.5s` or `5 days 22 hours`.

    >>> duration("7m12s"), duration("120ms"), duration("soon")
    (datetime.timedelta(seconds=432), datetime.timedelta(microseconds=120000), None)
    """
    if (plain := seconds(text)) is not None:
        return plain
    if _DURATION.fullmatch(text.strip()) is None:
        return None
    steps = _STEP.finditer(text)
    return timedelta(seconds=sum(float(step["number"]) * UNITS[step["unit"].lower()] for step in steps))


def reset_after(text: str, now: datetime) -> timedelta | None:
    """Read when a bucket is full again: a wait, an epoch in seconds or milliseconds, or an RFC 3339 moment."""
    value = number(text)
    if value is None:
        return duration(text) or _until(_iso_date(text) or moment_of(text), now)
    if value < _EPOCH_SECONDS:
        return timedelta(seconds=value)
    moment = value / 1000 if value >= _EPOCH_MILLISECONDS else value
    return timedelta(seconds=moment - now.timestamp())


def _text(value: object) -> str:
    if isinstance(value, dict):
        # A protobuf duration: {"seconds": 26, "nanos": 0}.
        value = value.get("seconds")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, str):
        return value[:64]
    # No sensible wait or moment is longer; and to print an integer of 5,000 digits is an error.
    return str(value) if abs(value) < _LARGEST else ""


def moment_of(text: str) -> datetime | None:
    """Read the date of a header; None where it is none."""
    if not text:
        return None
    # A 20-digit year overflows, and a date that is no date fails in three more ways.
    try:
        moment = parsedate_to_datetime(text[:64])
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return _aware(moment)


def _iso_date(text: str) -> datetime | None:
    normal = text.strip()[:40].replace(" at ", "T").replace(" UTC", "Z")
    try:
        return _aware(datetime.fromisoformat(normal))
    except ValueError:
        return None


def _aware(moment: datetime) -> datetime:
    # The asctime form and "-0000" parse to naive values; RFC 9110 says that they are UTC.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _until(moment: datetime | None, now: datetime) -> timedelta | None:
    return moment - now if moment is not None else None
