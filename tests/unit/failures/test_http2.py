"""HTTP/2 resets, by code and by who sent them."""

from collections.abc import Callable

import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Classified, Http2Reset, Signal
from turnkeeper_worker.failures.http2 import BROKEN_PROTOCOL, Http2Code, code_named

Ask = Callable[..., Classified]


@pytest.mark.parametrize("code", Http2Code)
def test_a_reset_from_the_peer_passes_unless_the_protocol_broke(ask: Ask, code: Http2Code) -> None:
    error = ask(signal=Signal.HTTP2_STREAM_RESET, h2=Http2Reset(code=code, from_peer=True)).error

    if code in BROKEN_PROTOCOL:
        assert (error.kind, error.retryable) == (ErrorKind.GENERIC, False)
    else:
        assert (error.kind, error.retryable) == (ErrorKind.TIMEOUT, True)


@pytest.mark.parametrize("code", Http2Code)
def test_our_own_reset_is_final(ask: Ask, code: Http2Code) -> None:
    error = ask(signal=Signal.HTTP2_STREAM_RESET, h2=Http2Reset(code=code, from_peer=False)).error

    assert (error.kind, error.retryable) == (ErrorKind.GENERIC, False)


@pytest.mark.parametrize("code", [Http2Code.CANCEL, 99, None])
def test_an_unknown_sender_or_code_passes(ask: Ask, code: int | None) -> None:
    error = ask(signal=Signal.HTTP2_STREAM_RESET, h2=Http2Reset(code=code, from_peer=None)).error

    assert (error.kind, error.retryable) == (ErrorKind.TIMEOUT, True)


@pytest.mark.parametrize(
    ("text", "retryable"),
    [
        ("<StreamReset stream_id:67, error_code:2, remote_reset:True>", True),
        ("<StreamReset stream_id:401, error_code:ErrorCodes.REFUSED_STREAM, remote_reset:True>", True),
        ("<StreamReset stream_id:67, error_code:1, remote_reset:True>", False),
        ("<StreamReset stream_id:67, error_code:8, remote_reset:False>", False),
        ("stream error: stream ID 455; INTERNAL_ERROR; received from peer", True),
        ("stream error: stream ID 455; CANCEL; received from peer", True),
        ("stream error: stream ID 5; REFUSED_STREAM", True),
        ("stream error: stream ID 455; INTERNAL_ERROR; local transport reset", False),
        ("stream error: stream ID 503; PROTOCOL_ERROR; received from peer", False),
        ("stream error: stream ID 7; FLOW_CONTROL_ERROR; received from peer", False),
        ("refused_stream; received from peer", True),
        ("compression_error; received from peer", False),
        ("connection error: INTERNAL_ERROR", True),
        ("connection error: PROTOCOL_ERROR", False),
        ("HTTP/2 stream 0 was not closed cleanly: INTERNAL_ERROR (err 2)", True),
        ("Stream closed with error code NGHTTP2_INTERNAL_ERROR", True),
        ("NGHTTP2_REFUSED_STREAM", True),
        ("stream was reset: CANCEL", True),
        ("<ConnectionTerminated error_code:0, last_stream_id:2147483647, additional_data:None>", True),
        ("<ConnectionTerminated error_code:1, last_stream_id:107, additional_data:None>", True),
        ("http2: server sent GOAWAY and closed the connection", True),
    ],
)
def test_resets_in_text(ask: Ask, text: str, retryable: bool) -> None:
    error = ask(text=text, cls="httpx.RemoteProtocolError").error

    assert (error.kind, error.retryable) == (ErrorKind.TIMEOUT if retryable else ErrorKind.GENERIC, retryable)
    assert error.status_code is None


def test_going_away_passes_whatever_the_code(ask: Ask) -> None:
    error = ask(signal=Signal.HTTP2_GOAWAY, h2=Http2Reset(code=1, from_peer=True)).error

    assert (error.kind, error.retryable) == (ErrorKind.TIMEOUT, True)


def test_a_status_outranks_a_reset(ask: Ask) -> None:
    reset = Http2Reset(code=Http2Code.INTERNAL_ERROR, from_peer=True)

    assert ask(401, signal=Signal.HTTP2_STREAM_RESET, h2=reset).error.kind is ErrorKind.AUTH


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("NO_ERROR", 0),
        ("cancel", 8),
        ("13", 13),
        ("0", 0),
        ("", None),
        ("1234", 1234),
        ("12345678901", None),
        ("None", None),
        ("²", None),
    ],
)
def test_codes_have_names_and_numbers(name: str, number: int | None) -> None:
    assert code_named(name) == number
