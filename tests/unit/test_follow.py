"""Following: what is believed of a stream, and how a turn's end is told without one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.events import Event, Transcript, TurnCancelled, TurnCommitted, TurnCompleted, TurnFailed, TurnPart
from turnkeeper.exceptions import InvalidRequest
from turnkeeper.follow import FIELD, Entry, Follower, ending
from turnkeeper.messages import Message, Text
from turnkeeper.states import TurnState
from turnkeeper.views import TurnView

TURN = UUID(int=1)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
QUESTION = Message(role="user", parts=(Text(text="Hello"),))
ANSWER = Message(role="assistant", parts=(Text(text="Hi"),))


def part(text: str, **place: Any) -> TurnPart:
    return TurnPart.model_validate({"turn_id": TURN, "epoch": 1, "attempt": 1, "text": text} | place)


def completed(**place: Any) -> TurnCompleted:
    return TurnCompleted.model_validate({"turn_id": TURN, "epoch": 1, "attempt": 1} | place)


def entries(*events: Event, first: int = 1) -> list[Entry]:
    return [
        (f"{number}-0".encode(), {FIELD: event.model_dump_json(exclude={"id"}).encode()})
        for number, event in enumerate(events, first)
    ]


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, TurnPart)]


def turn(state: TurnState, *messages: Message, **rest: Any) -> TurnView:
    return TurnView.model_validate(
        {
            "id": TURN,
            "chat_id": UUID(int=2),
            "seq": 1,
            "state": state,
            "provider": "openai",
            "model": None,
            "epoch": 3,
            "step": 1,
            "attempt": 2,
            "available_at": None,
            "cancel_requested_at": None,
            "retry_of": None,
            "created_at": NOW,
            "started_at": NOW,
            "finished_at": NOW,
            "error": None,
            "usage": None,
            "tools": (),
            "attempts": (),
            "tool_runs": (),
            "messages": messages,
            "text": "",
        }
        | rest
    )


class TestFollower:
    def test_an_event_carries_the_cursor_to_resume_after(self) -> None:
        follower = Follower()

        events = follower.admit(entries(part("a"), part("b")))

        assert [event.id for event in events] == ["1-0", "2-0"]
        assert follower.cursor == "2-0"

    def test_it_is_over_with_the_final_event_and_says_nothing_after_it(self) -> None:
        follower = Follower()

        events = follower.admit(entries(part("a"), completed(), part("b"), completed()))

        assert [event.type for event in events] == ["turn.part", "turn.completed"]
        assert follower.is_over
        assert follower.admit(entries(part("c"))) == []

    def test_a_fenced_worker_is_not_heard(self) -> None:
        follower = Follower()

        events = follower.admit(entries(part("new", epoch=2), part("old"), completed()))

        assert texts(events) == ["new"]
        assert not follower.is_over

    def test_an_end_that_is_none_is_gone_on_from_right_behind_it(self) -> None:
        follower = Follower()
        stream = entries(part("stale"), completed(), part("new", epoch=2), completed(epoch=2))
        events = follower.admit(stream)

        assert texts(follower.confirm(events, stored=[])) == ["stale"]
        assert follower.cursor == "2-0"
        assert [event.type for event in follower.admit(stream[2:])] == ["turn.part", "turn.completed"]

    def test_what_redis_lost_on_the_way_is_told_before_the_end(self) -> None:
        follower = Follower()
        first = TurnCommitted(turn_id=TURN, epoch=1, position=1, messages=(ANSWER,))
        events = follower.admit(entries(completed()))

        told = follower.confirm(events, stored=[first, completed()])

        assert [event.type for event in told] == ["turn.committed", "turn.completed"]
        assert follower.is_over

    def test_what_was_told_as_committed_is_not_told_again(self) -> None:
        follower = Follower()
        first = TurnCommitted(turn_id=TURN, epoch=1, position=1, messages=(ANSWER,))
        events = follower.admit(entries(first, completed()))

        assert follower.confirm(events, stored=[first, completed()]) == events

    def test_a_cancel_is_told_with_all_that_is_kept(self) -> None:
        follower = Follower()
        events = follower.admit(entries(TurnCancelled(turn_id=TURN, epoch=1)))
        stored = TurnCancelled(turn_id=TURN, epoch=1, position=1, messages=(ANSWER,))

        (told,) = follower.confirm(events, stored=[stored])

        assert isinstance(told, TurnCancelled)
        assert (told.messages, told.id) == ((ANSWER,), "1-0")

    @pytest.mark.parametrize("cursor", ["0", "1-", "latest", "1-0 2-0", "1-0\n", "-" * 1000])
    def test_what_is_no_cursor_is_refused(self, cursor: str) -> None:
        with pytest.raises(InvalidRequest, match="is no cursor; resume after the `id` of an event"):
            Follower(cursor=cursor)

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param({}, id="an entry without the field"),
            pytest.param({FIELD: b"{"}, id="no JSON"),
            pytest.param({FIELD: b'{"type": "turn.sang", "epoch": 9}'}, id="an event of a newer version"),
            pytest.param({FIELD: b"\xff"}, id="no UTF-8"),
        ],
    )
    def test_what_it_cannot_read_is_passed_over(self, content: dict[bytes, bytes]) -> None:
        follower = Follower()

        events = follower.admit([(b"1-0", content), *entries(part("a"), first=2)])

        assert texts(events) == ["a"]
        assert follower.cursor == "2-0"


class TestEnding:
    @pytest.mark.parametrize("state", [TurnState.QUEUED, TurnState.RUNNING, TurnState.RETRYING])
    def test_a_turn_that_goes_on_has_none(self, state: TurnState) -> None:
        assert ending(turn(state, QUESTION)) == []

    def test_a_completed_turn_tells_its_messages_and_its_usage(self) -> None:
        committed, end = ending(turn(TurnState.COMPLETED, QUESTION, ANSWER, usage={"input_tokens": 1}))

        assert isinstance(committed, TurnCommitted)
        assert (committed.position, committed.messages) == (1, (ANSWER,))
        assert isinstance(end, TurnCompleted)
        assert end.usage == {"input_tokens": 1}

    def test_the_answer_to_another_turns_question_stands_at_its_own_place(self) -> None:
        committed, _ = ending(turn(TurnState.COMPLETED, ANSWER))

        assert isinstance(committed, TurnCommitted)
        assert committed.position == 0

    def test_a_failed_turn_tells_its_error(self) -> None:
        error = ChatError(kind=ErrorKind.AUTH, message="No.")

        (end,) = ending(turn(TurnState.FAILED, QUESTION, error=error))

        assert isinstance(end, TurnFailed)
        assert end.error == error

    def test_a_cancelled_turn_tells_what_is_kept(self) -> None:
        (end,) = ending(turn(TurnState.CANCELLED, QUESTION, ANSWER))

        assert isinstance(end, TurnCancelled)
        assert (end.position, end.messages) == (1, (ANSWER,))

    def test_it_repeats_what_a_follower_saw_without_doubling_it(self) -> None:
        transcript = Transcript()
        transcript.feed([part("H", epoch=3, attempt=2), part("i", epoch=3, attempt=2)])

        transcript.feed(ending(turn(TurnState.COMPLETED, QUESTION, ANSWER)))

        assert transcript.text == "Hi"
