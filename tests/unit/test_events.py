"""The rollback rule: whoever reads a turn, from wherever, sees the same words, and never a void one as true."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import ChatError
from turnkeeper.events import (
    Event,
    Fence,
    FinalEvent,
    Place,
    Transcript,
    TurnCancelled,
    TurnCommitted,
    TurnCompleted,
    TurnFailed,
    TurnPart,
    TurnRetry,
    TurnStarted,
    read_event,
    unvoided,
)
from turnkeeper.messages import Message, Refusal, Text

TURN = UUID(int=1)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
FIRST = Place(1, 1, 1)


def at(epoch: int = 1, step: int = 1, attempt: int = 1) -> dict[str, object]:
    return {"turn_id": TURN, "epoch": epoch, "step": step, "attempt": attempt, "at": NOW}


def started(**place: int) -> TurnStarted:
    return TurnStarted.model_validate(at(**place) | {"provider": "openai"})


def part(text: str, **place: int) -> TurnPart:
    return TurnPart.model_validate(at(**place) | {"text": text})


def retry(**place: int) -> TurnRetry:
    return TurnRetry.model_validate(at(**place) | {"retrying_at": NOW})


def said(text: str) -> Message:
    return Message(role="assistant", parts=(Text(text=text),))


def committed(text: str, *, position: int = 1, **place: int) -> TurnCommitted:
    return TurnCommitted.model_validate(at(**place) | {"position": position, "messages": (said(text),)})


def completed(**place: int) -> TurnCompleted:
    return TurnCompleted.model_validate(at(**place))


def failed(**place: int) -> TurnFailed:
    return TurnFailed.model_validate(at(**place) | {"error": ChatError(message="It failed.")})


def cancelled(*kept: Message, **place: int) -> TurnCancelled:
    return TurnCancelled.model_validate(at(**place) | {"messages": kept})


def seen(*events: Event) -> str:
    transcript = Transcript()
    transcript.feed(events)
    return transcript.text


class TestTranscript:
    @pytest.mark.parametrize(
        ("events", "text"),
        [
            pytest.param([], "", id="nothing was said"),
            pytest.param([part("Hel"), part("lo")], "Hello", id="parts add up"),
            pytest.param([part("Hel"), retry()], "", id="a retry voids"),
            pytest.param([part("Hel"), part("Hi", attempt=2)], "Hi", id="a higher attempt voids"),
            pytest.param([part("Hel", attempt=7), part("Hi", epoch=2)], "Hi", id="a higher epoch voids"),
            pytest.param([part("Hel"), started(attempt=2)], "", id="the next attempt's start voids"),
            pytest.param([part("Hel"), committed("Hello")], "Hello", id="a commit replaces"),
            pytest.param([part("Hel"), failed()], "", id="a failure voids"),
            pytest.param([part("Hel"), cancelled(said("Hel"))], "Hel", id="a cancel keeps what it says"),
            pytest.param([part("Hel"), cancelled()], "", id="a cancel keeps nothing else"),
            pytest.param([part("Hi"), part("Old", epoch=0)], "Hi", id="a fenced worker is not heard"),
            pytest.param([part("Hi"), committed("Hi"), retry(step=2)], "Hi", id="a retry spares earlier steps"),
            pytest.param(
                [committed("One "), part("two", step=2)], "One two", id="a later step stands behind the earlier"
            ),
            pytest.param(
                [committed("two", position=2, step=2), committed("One ")], "One two", id="places give the order"
            ),
        ],
    )
    def test_what_a_reader_sees(self, events: list[Event], text: str) -> None:
        assert seen(*events) == text

    def test_a_refusal_is_seen_as_it_comes(self) -> None:
        piece = TurnPart.model_validate(at() | {"kind": "refusal", "text": "I won't."})
        whole = TurnCommitted.model_validate(
            at() | {"messages": (Message(role="assistant", parts=(Refusal(text="I won't."),)),)}
        )

        assert seen(piece) == seen(piece, whole) == "I won't."

    @pytest.mark.parametrize("kind", ["reasoning", "tool_call"])
    def test_thoughts_and_calls_are_no_words(self, kind: str) -> None:
        assert seen(TurnPart.model_validate(at() | {"kind": kind, "text": "Hm"})) == ""

    def test_a_repeated_commit_changes_nothing(self) -> None:
        once = Transcript()
        once.feed([part("Hel"), committed("Hello")])

        twice = Transcript()
        twice.feed([part("Hel"), committed("Hello"), committed("Hello", epoch=2), committed("Hello", epoch=2)])

        assert (twice.messages, twice.text) == (once.messages, once.text)


class TestUnvoided:
    @pytest.mark.parametrize(
        ("backlog", "kept"),
        [
            pytest.param([part("a"), retry()], [retry()], id="a retry voids"),
            pytest.param([part("a"), committed("a")], [committed("a")], id="a commit makes parts superfluous"),
            pytest.param([part("a"), part("b", attempt=2)], [part("b", attempt=2)], id="a higher attempt voids"),
            pytest.param([part("a"), part("b", epoch=2)], [part("b", epoch=2)], id="a higher epoch voids"),
            pytest.param([part("a"), completed()], [part("a"), completed()], id="completion alone voids nothing"),
            pytest.param(
                [started(), part("a"), part("b")], [started(), part("a"), part("b")], id="what stands is kept"
            ),
            pytest.param([part("a"), failed()], [failed()], id="a failure voids"),
            pytest.param([part("a"), cancelled()], [cancelled()], id="a cancel voids"),
        ],
    )
    def test_what_a_late_follower_is_spared(self, backlog: list[Event], kept: list[Event]) -> None:
        assert unvoided(backlog) == kept


class TestFence:
    def test_the_newest_epoch_alone_is_admitted(self) -> None:
        fence = Fence()

        admitted = [epoch for epoch in (1, 1, 3, 2, 3, 1, 4) if fence.admits(part("x", epoch=epoch))]

        assert admitted == [1, 1, 3, 3, 4]


@dataclass
class Life:
    """The events of a turn as workers tell them, with the last words of those that lost it in between."""

    place: Place = FIRST
    position: int = 1
    events: list[Event] = field(default_factory=list)

    def now(self) -> dict[str, int]:
        return self.place._asdict()

    def live(self, what: str, text: str) -> None:
        epoch, step, attempt = self.place
        match what:
            case "part":
                self.events.append(part(text, **self.now()))
            case "started":
                self.events.append(started(**self.now()))
            case "retry":
                self.events.append(retry(**self.now()))
                self.place = Place(epoch + 1, step, attempt + 1)
            case "heal":
                self.events.append(retry(**self.now()))
                self.place = Place(epoch, step, attempt + 1)
            case "rescue":
                self.place = Place(epoch + 1, step, attempt)
                self.events.append(retry(**self.now()))
                self.place = Place(epoch + 2, step, attempt + 1)
            case "commit":
                self.events.append(committed(text, position=self.position, **self.now()))
                self.position += 1
                self.place = Place(epoch, step + 1, 1)
            case "stale":
                self.events.append(part(text, epoch=epoch - 1, step=step, attempt=attempt))
            case "stale end":
                self.events.append(failed(epoch=epoch - 1, step=step, attempt=attempt))

    def end(self, how: str) -> None:
        match how:
            case "completed":
                self.events += [committed("Done.", position=self.position, **self.now()), completed(**self.now())]
            case "failed":
                self.events.append(failed(**self.now()))
            case "cancelled":
                kept = TurnCancelled.model_validate(
                    at(**self.now()) | {"position": self.position, "messages": (said("kept"),)}
                )
                self.events.append(kept)


@st.composite
def lives(draw: st.DrawFn) -> list[Event]:
    life = Life()
    happenings = st.sampled_from(
        ["part", "part", "part", "started", "retry", "heal", "rescue", "commit", "stale", "stale end"]
    )
    for number, what in enumerate(draw(st.lists(happenings, max_size=25))):
        life.live(what, f"{number} ")
    life.end(draw(st.sampled_from(["completed", "failed", "cancelled", "goes on"])))
    return life.events


def admitted(events: list[Event]) -> list[Event]:
    fence = Fence()
    return [event for event in events if fence.admits(event)]


@given(events=lives(), data=st.data())
def test_however_a_backlog_is_cut_the_transcript_ends_equal(events: list[Event], data: st.DataObject) -> None:
    heard = admitted(events)
    cut = data.draw(st.integers(0, len(heard)))

    assert seen(*unvoided(heard[:cut]), *heard[cut:]) == seen(*heard)


@given(events=lives(), data=st.data())
def test_at_every_moment_a_late_follower_sees_what_the_others_see(
    events: list[Event], data: st.DataObject
) -> None:
    heard = admitted(events)
    now = data.draw(st.integers(0, len(heard)))

    assert seen(*unvoided(heard[:now])) == seen(*heard[:now])


@given(events=lives(), data=st.data())
def test_a_reader_who_resumes_sees_what_the_others_see(events: list[Event], data: st.DataObject) -> None:
    left = data.draw(st.integers(0, len(events)))
    back = data.draw(st.integers(left, len(events)))
    reader = Transcript()

    reader.feed(admitted(events[:left]))
    reader.feed(unvoided(admitted(events[left:back])))
    reader.feed(events[back:])

    assert reader.text == seen(*admitted(events))


@given(lives())
def test_the_words_of_a_fenced_worker_never_show(events: list[Event]) -> None:
    transcript = Transcript()
    newest = 0
    for event in events:
        transcript.feed([event])
        newest = max(newest, event.epoch)
        assert all(piece.epoch == newest for piece in transcript.provisional)


class TestDecoding:
    @given(lives())
    def test_an_event_comes_back_from_the_stream_with_its_cursor(self, events: list[Event]) -> None:
        for event in events:
            read = read_event("7-0", event.model_dump_json(exclude={"id"}))

            assert read == event.model_copy(update={"id": "7-0"})

    def test_a_field_of_a_newer_version_is_no_obstacle(self) -> None:
        content = part("Hello").model_dump_json().replace("{", '{"colour":"red",', 1)

        assert read_event("", content) == part("Hello")

    def test_three_events_end_a_turn(self) -> None:
        ends = [event for event in (completed(), failed(), cancelled(), retry(), committed("")) if is_final(event)]

        assert [event.type for event in ends] == ["turn.completed", "turn.failed", "turn.cancelled"]


def is_final(event: Event) -> bool:
    return isinstance(event, FinalEvent)
