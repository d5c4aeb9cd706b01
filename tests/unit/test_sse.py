"""Server-sent events from bytes: wherever the network cuts them, the events are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper_worker.providers import sse
from turnkeeper_worker.providers.sse import EventTooLarge, SseDecoder

STREAM = (
    ": welcome\r\n"
    "event: response.created\r\n"
    'data: {"a": "é"}\r\n'
    "\r\n"
    "id: 7\n"
    "retry: 100\n"
    "data: one\n"
    "data:two\n"
    "data:  three\n"
    "\n"
    "event: ping\n"
    "\n"
    "data: [DONE]\n"
    "\n"
).encode()
EVENTS = ['{"a": "é"}'.encode(), b"one\ntwo\n three", b"[DONE]"]


def decoded(*chunks: bytes) -> list[bytes]:
    decoder = SseDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\n", [b"a"], id="one event"),
        pytest.param(b"data: a\n\ndata: b\n\n", [b"a", b"b"], id="two events"),
        pytest.param(b"data: a\r\n\r\n", [b"a"], id="lines that end in CRLF"),
        pytest.param(b"data: a\ndata: b\n\n", [b"a\nb"], id="data over several lines"),
        pytest.param(b"data:a\n\n", [b"a"], id="no space behind the colon"),
        pytest.param(b"data:  a\n\n", [b" a"], id="one space belongs to the format"),
        pytest.param(b": ping\n\ndata: a\n\n", [b"a"], id="comments say nothing"),
        pytest.param(b"event: x\nid: 1\n\n", [], id="an event without data is none"),
        pytest.param(b"data:\n\n", [], id="an event with empty data is none"),
        pytest.param(b"data: \n\ndata: a\n\n", [b"a"], id="empty data leaves nothing behind"),
        pytest.param(b"\n\n\ndata: a\n\n\n\n", [b"a"], id="blank lines in excess"),
        pytest.param(b"data: a\n", [], id="an event that was not ended is none"),
        pytest.param(b"data: a: b\n\n", [b"a: b"], id="a colon in the data"),
        pytest.param(b"database: a\n\n", [], id="another field that begins alike"),
        pytest.param(STREAM, EVENTS, id="everything together"),
    ],
)
def test_bytes_become_the_data_of_events(stream: bytes, events: list[bytes]) -> None:
    assert decoded(stream) == events


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_cut_at_any_place_changes_nothing(cut: int) -> None:
    assert decoded(STREAM[:cut], STREAM[cut:]) == EVENTS


def test_single_bytes_are_enough() -> None:
    assert decoded(*(STREAM[index : index + 1] for index in range(len(STREAM)))) == EVENTS


payloads = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)
ends = st.sampled_from([b"\n", b"\r\n"])
noise = st.sampled_from([b": ping", b"event: x", b"id: 7", b"retry: 1"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Build a stream, and the data that it carries."""
    stream, events = b"", []
    for lines in draw(st.lists(st.lists(payloads, min_size=1, max_size=3), max_size=5)):
        events.append("\n".join(lines).encode())
        for line in lines:
            for chatter in draw(st.lists(noise, max_size=2)):
                stream += chatter + draw(ends)
            stream += b"data: " + line.encode() + draw(ends)
        stream += draw(ends)
    return stream, events


@given(streams(), st.data())
def test_however_the_network_cuts_a_stream_its_events_come_out(
    built: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    stream, events = built
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert decoded(*chunks) == events


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(b"x" * 40, id="a line without an end"),
        pytest.param(b"data: " + b"x" * 30 + b"\n", id="lines without a blank one"),
    ],
)
def test_a_stream_that_would_fill_the_memory_is_refused(chunk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)

    with pytest.raises(EventTooLarge, match="larger than 100 bytes"):
        decoded(chunk, chunk, chunk)


def test_many_small_events_are_no_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)

    assert decoded(*[b"data: " + b"x" * 40 + b"\n\n"] * 10) == [b"x" * 40] * 10
