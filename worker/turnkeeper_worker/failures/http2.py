"""HTTP/2 resets: what RST_STREAM and GOAWAY mean, by error code and by who sent them (RFC 9113, section 7)."""

import re
from enum import IntEnum

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures.facts import Failure, Http2Reset, Signal
from turnkeeper_worker.failures.verdict import Verdict


class Http2Code(IntEnum):
    """The error codes of RFC 9113."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


BROKEN_PROTOCOL = frozenset({
    Http2Code.PROTOCOL_ERROR,
    Http2Code.FLOW_CONTROL_ERROR,
    Http2Code.FRAME_SIZE_ERROR,
    Http2Code.COMPRESSION_ERROR,
    Http2Code.INADEQUATE_SECURITY,
    Http2Code.HTTP_1_1_REQUIRED,
})  # fmt: skip
"""One side speaks HTTP/2 wrongly; the next request would meet the same fault, so a retry would loop."""

_GOAWAY = re.compile(r"\bgoaway\b|<ConnectionTerminated\b", re.IGNORECASE)
_NAMES = "|".join(code.name for code in Http2Code)
_NAMED_RESET = re.compile(
    rf"(?:(?:\bstream (?:error|was reset|ID)\b|\bconnection error\b|\bHTTP/?2\b|StreamReset|error_code)"
    rf"[^\n]{{0,80}}?\b(?:ErrorCodes\.)?|NGHTTP2_)(?P<name>{_NAMES})\b"
)
_RECEIVED = re.compile(rf"\b(?P<name>{_NAMES});\ received\ from\ peer", re.IGNORECASE)
_NUMBERED_RESET = re.compile(r"<StreamReset\b[^>]{0,80}?\berror_code:(?P<number>\d{1,10})\b")
_NUMBER = re.compile(r"[0-9]{1,10}")
_OURS = re.compile(r"remote_reset:\s?False|\blocal\b", re.IGNORECASE)
_THEIRS = re.compile(r"remote_reset:\s?True|received from peer", re.IGNORECASE)


def code_named(name: str) -> int | None:
    """Return the number of the error code *name*, None where there is no such code.

    >>> code_named("refused_stream"), code_named("9"), code_named("nonsense")
    (7, 9, None)
    """
    if _NUMBER.fullmatch(name):
        return int(name)
    return next((code.value for code in Http2Code if code.name == name.upper()), None)


def judge(failure: Failure, text: str) -> Verdict | None:
    """Judge a reset by its facts, else by *text*; None where neither speaks of one."""
    if failure.signal is Signal.HTTP2_GOAWAY or _GOAWAY.search(text):
        # Whatever the code: a new connection has none of the old one's state.
        return _passing("the connection was told to go away")
    reset = failure.h2 or _spoken(text)
    if reset is None:
        return None
    return _judge_reset(reset)


def _judge_reset(reset: Http2Reset) -> Verdict:
    seen = f"HTTP/2 error code {reset.code}, from the peer: {reset.from_peer}"
    if reset.from_peer is False:
        return Verdict(kind=ErrorKind.GENERIC, retryable=False, rule="own http2 reset", evidence=seen)
    if reset.code in BROKEN_PROTOCOL:
        return Verdict(kind=ErrorKind.GENERIC, retryable=False, rule="http2 protocol fault", evidence=seen)
    return _passing(seen)


def _spoken(text: str) -> Http2Reset | None:
    found = _NUMBERED_RESET.search(text) or _NAMED_RESET.search(text) or _RECEIVED.search(text)
    if found is None:
        return None
    # Who sent it decides only where the text says so; silence is not "ours".
    from_peer = True if _THEIRS.search(text) else (False if _OURS.search(text) else None)
    return Http2Reset(code=code_named(found[1]), from_peer=from_peer)


def _passing(seen: str) -> Verdict:
    return Verdict(kind=ErrorKind.TIMEOUT, retryable=True, rule="http2 reset", evidence=seen)
