"""Joining pieces before they are written: the order stays, and no text is lost."""

from datetime import UTC, datetime
from itertools import groupby
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.events import Event, TurnCompleted, TurnPart, TurnStarted
from turnkeeper_worker.live import merged

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def part(text: str, *, turn: int = 1, **rest: Any) -> TurnPart:
    return TurnPart.model_validate({"turn_id": UUID(int=turn), "epoch": 1, "at": NOW, "text": text} | rest)


def completed(turn: int = 1) -> TurnCompleted:
    return TurnCompleted(turn_id=UUID(int=turn), epoch=1, at=NOW)


def test_neighbouring_pieces_are_joined() -> None:
    assert merged([part("Hel"), part("lo"), completed()]) == [part("Hello"), completed()]


def test_pieces_of_different_turns_do_not_keep_each_other_apart() -> None:
    events = [part("a"), part("x", turn=2), part("b"), part("y", turn=2)]

    assert merged(events) == [part("ab"), part("xy", turn=2)]


def test_another_kind_stands_between_pieces() -> None:
    events = [part("a"), part("b", kind="reasoning"), part("c")]

    assert merged(events) == events


def test_pieces_of_different_tries_stay_apart() -> None:
    events = [part("a", attempt=1), part("b", attempt=2), part("c", attempt=2, epoch=2), part("d", step=2)]

    assert merged(events) == events


def test_a_repetition_is_no_mistake() -> None:
    assert merged([part("ha"), part("ha")]) == [part("haha")]


events_of_turns = st.lists(
    st.one_of(
        st.builds(
            part,
            st.text(max_size=3),
            turn=st.integers(1, 3),
            kind=st.sampled_from(["text", "reasoning"]),
            attempt=st.integers(1, 2),
        ),
        st.builds(completed, st.integers(1, 3)),
        st.builds(
            lambda turn: TurnStarted(turn_id=UUID(int=turn), epoch=1, at=NOW, provider="openai"), st.integers(1, 3)
        ),
    ),
    max_size=20,
)


def told(events: list[Event], turn: UUID) -> list[object]:
    """Return what a follower of *turn* hears: each run of pieces as one, everything else as it is."""

    def speaks(event: Event) -> object:
        return (event.kind, event.place) if isinstance(event, TurnPart) else event

    mine = [event for event in events if event.turn_id == turn]
    return [
        (key, "".join(event.text for event in run if isinstance(event, TurnPart)))
        for key, run in groupby(mine, key=speaks)
    ]


@given(events_of_turns)
def test_every_follower_hears_the_same_words_in_the_same_order(events: list[Event]) -> None:
    joined = merged(events)

    for turn in {event.turn_id for event in events}:
        assert told(joined, turn) == told(events, turn)


@given(events_of_turns)
def test_nothing_that_can_be_joined_is_left(events: list[Event]) -> None:
    joined = merged(events)

    assert len(joined) <= len(events)
    assert merged(joined) == joined
