"""Following a turn with both clients: live, resumed, late, and without the stream."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import func
from sqlalchemy import text as text_of_sql

from turnkeeper.events import (
    Event,
    Transcript,
    TurnCommitted,
    TurnCompleted,
    TurnPart,
    TurnRetry,
    TurnStarted,
)
from turnkeeper.exceptions import DatabaseUnavailable, InvalidRequest, TurnRejected, UnknownTurn
from turnkeeper.follow import FIELD
from turnkeeper.keys import events_key
from turnkeeper.messages import Message, Text
from turnkeeper.states import TurnState
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import upkeep

if TYPE_CHECKING:
    from tests.integration.conftest import OpenKeeper, Stage

NOWHERE = "redis://127.0.0.1:1/0"
ANSWER = Message(role="assistant", parts=(Text(text="Hi"),))

Say = Callable[..., list[str]]


@pytest.fixture
def say(redis_server: Redis) -> Iterator[Say]:
    """Write events to a turn's stream as a worker does; return their cursors."""
    with redis.Redis.from_url(redis_server.url()) as client:

        def write(*events: Event) -> list[str]:
            cursors: list[Any] = [
                client.xadd(events_key(event.turn_id), {FIELD: event.model_dump_json(exclude={"id"})})
                for event in events
            ]
            return [cursor.decode() for cursor in cursors]

        yield write


def end(stage: "Stage", turn: UUID, *, epoch: int = 1) -> None:
    """Let the turn have ended under this epoch, as its worker stores before it says so."""
    stage.set(turn, state="completed", worker_id=None, available_at=None, finished_at=func.now(), epoch=epoch)


def part(turn: UUID, text: str, *, epoch: int = 1, attempt: int = 1) -> TurnPart:
    return TurnPart(turn_id=turn, epoch=epoch, attempt=attempt, text=text)


def retry(turn: UUID, *, epoch: int = 1, attempt: int = 1) -> TurnRetry:
    return TurnRetry(turn_id=turn, epoch=epoch, attempt=attempt, retrying_at=datetime.now(UTC))


def answer(turn: UUID, *, epoch: int = 1, attempt: int = 1) -> tuple[TurnCommitted, TurnCompleted]:
    return (
        TurnCommitted(turn_id=turn, epoch=epoch, attempt=attempt, messages=(ANSWER,)),
        TurnCompleted(turn_id=turn, epoch=epoch, attempt=attempt),
    )


def types(events: list[Event]) -> list[str]:
    return [event.type.removeprefix("turn.") for event in events]


def text(events: list[Event]) -> str:
    transcript = Transcript()
    transcript.feed(events)
    return transcript.text


class TestLive:
    def test_events_come_as_they_happen_until_the_final_one(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.RUNNING)
        say(TurnStarted(turn_id=turn, epoch=1, attempt=1, provider="openai"))
        events = iter(open_keeper().follow(turn))

        first = next(events)
        say(part(turn, "Hi"))
        second = next(events)
        end(stage, turn)
        say(*answer(turn), part(turn, "never heard"))
        rest = list(events)

        assert (first.type, second.type) == ("turn.started", "turn.part")
        assert types(rest) == ["committed", "completed"]

    def test_a_late_follower_is_spared_what_is_void(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.RUNNING)
        end(stage, turn, epoch=2)
        say(
            part(turn, "void"),
            retry(turn),
            part(turn, "Hi", epoch=2, attempt=2),
            *answer(turn, epoch=2, attempt=2),
        )

        events = list(open_keeper().follow(str(turn)))

        assert types(events) == ["retry", "committed", "completed"]
        assert text(events) == "Hi"

    def test_a_fenced_worker_is_not_heard(self, open_keeper: "OpenKeeper", stage: "Stage", say: Say) -> None:
        turn = stage.turn(TurnState.RUNNING)
        say(part(turn, "new", epoch=2), *answer(turn, epoch=1), part(turn, "er", epoch=2))
        events = iter(open_keeper().follow(turn))

        heard = [next(events), next(events)]

        assert text(heard) == "newer"

    def test_a_turn_whose_first_event_is_still_to_come_is_waited_for(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say, threads: ThreadPoolExecutor
    ) -> None:
        turn = stage.turn(TurnState.QUEUED)
        keeper = open_keeper()

        events = threads.submit(lambda: list(keeper.follow(turn)))
        end(stage, turn)
        say(*answer(turn))

        assert types(events.result(timeout=10)) == ["committed", "completed"]


class TestResuming:
    def test_a_follower_resumes_exactly_behind_its_cursor(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.RUNNING)
        cursors = say(
            part(turn, "a"), part(turn, "b"), part(turn, "c"), TurnCompleted(turn_id=turn, epoch=1, attempt=1)
        )
        end(stage, turn)

        for seen, cursor in enumerate(cursors[:-1], 1):
            events = list(open_keeper().follow(turn, after=cursor))

            assert [event.id for event in events] == cursors[seen:]

    def test_a_cursor_that_is_the_end_gets_the_end_again(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.COMPLETED)
        *_, last = say(*answer(turn))

        assert types(list(open_keeper().follow(turn, after=last))) == ["committed", "completed"]

    def test_the_last_words_of_a_worker_that_had_lost_the_turn_are_not_its_end(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        lost = stage.turn(TurnState.RUNNING)
        cursor, *_ = say(
            part(lost, "seen"),
            TurnCompleted(turn_id=lost, epoch=1, attempt=1),
            part(lost, "Hi", epoch=2, attempt=2),
        )
        stage.set(lost, epoch=2)
        events = iter(open_keeper().follow(lost, after=cursor))

        first = next(events)
        end(stage, lost, epoch=2)
        say(*answer(lost, epoch=2, attempt=2))

        assert (first.type, first.epoch) == ("turn.part", 2)
        assert types(list(events)) == ["committed", "completed"]

    def test_an_end_that_a_worker_would_have_liked_is_not_the_one_that_came_about(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.FAILED)
        cursor, *_ = say(part(turn, "seen"), TurnCompleted(turn_id=turn, epoch=0, attempt=1))

        events = list(open_keeper().follow(turn, after=cursor))

        assert types(events) == ["failed"]

    def test_without_the_database_the_stream_is_believed(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.RUNNING)
        say(part(turn, "H"))
        events = iter(open_keeper().follow(turn))
        first = next(events)
        stage.do(lambda connection: connection.execute(text_of_sql("ALTER TABLE turns RENAME TO hidden")))

        say(*answer(turn))

        assert text([first, *events]) == "Hi"

    def test_what_is_no_cursor_is_refused(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        with pytest.raises(InvalidRequest, match="'latest' is no cursor"):
            list(open_keeper().follow(stage.turn(TurnState.RUNNING), after="latest"))


class TestWithoutTheStream:
    @pytest.mark.parametrize("redis_url", [None, NOWHERE], ids=["the stream is gone", "redis is away"])
    @pytest.mark.parametrize(
        ("state", "told"),
        [
            pytest.param(TurnState.COMPLETED, ["committed", "completed"], id="completed"),
            pytest.param(TurnState.FAILED, ["failed"], id="failed"),
            pytest.param(TurnState.CANCELLED, ["cancelled"], id="cancelled"),
        ],
    )
    def test_the_end_is_told_from_the_database(
        self, open_keeper: "OpenKeeper", stage: "Stage", redis_url: str | None, state: TurnState, told: list[str]
    ) -> None:
        turn = stage.turn(state)

        events = list(open_keeper(redis_url=redis_url).follow(turn))

        assert types(events) == told
        assert all(event.epoch == stage.row(turn)["epoch"] for event in events)

    @pytest.mark.parametrize("redis_url", [None, NOWHERE], ids=["the stream is silent", "redis is away"])
    def test_a_turn_that_ends_without_a_word_is_noticed(
        self, open_keeper: "OpenKeeper", stage: "Stage", redis_url: str | None, threads: ThreadPoolExecutor
    ) -> None:
        running = stage.claim(stage.enqueue().id)
        keeper = open_keeper(redis_url=redis_url)

        events = threads.submit(lambda: list(keeper.follow(running.id)))
        stage.complete(running, "Hi")

        assert text(events.result(timeout=10)) == "Hi"

    def test_a_stream_that_lost_its_end_is_finished_from_the_database(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.COMPLETED)
        say(part(turn, "H"), part(turn, "i"))

        events = list(open_keeper().follow(turn))

        assert types(events) == ["part", "part", "committed", "completed"]
        assert text(events) == "Hi"

    def test_redis_may_go_away_in_the_middle(
        self, open_keeper: "OpenKeeper", stage: "Stage", tmp_path: Path
    ) -> None:
        running = stage.claim(stage.enqueue().id)
        with Redis(tmp_path / "redis", durable=False) as server:
            with redis.Redis.from_url(server.url()) as client:
                client.xadd(events_key(running.id), {FIELD: part(running.id, "H").model_dump_json()})
            events = iter(open_keeper(redis_url=server.url()).follow(running.id))
            first = next(events)
            server.kill()
            stage.complete(running, "Hi")

            rest = list(events)

        assert text([first, *rest]) == "Hi"


class TestUnknown:
    def test_a_turn_that_does_not_exist_is_told(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        rejected = uuid4()
        stage.do(upkeep.reject, rejected, "the text is empty")
        keeper = open_keeper()

        with pytest.raises(UnknownTurn):
            list(keeper.follow(uuid4()))
        with pytest.raises(TurnRejected, match="the text is empty"):
            list(keeper.follow(rejected))

    def test_a_database_that_is_away_is_named(self, open_keeper: "OpenKeeper") -> None:
        keeper = open_keeper(database_url="postgresql://127.0.0.1:1/x")

        with pytest.raises(DatabaseUnavailable, match=r"PostgreSQL at 127\.0\.0\.1:1/x cannot be used"):
            list(keeper.follow(uuid4()))

    def test_a_turn_that_is_erased_meanwhile_ends_the_following(
        self, open_keeper: "OpenKeeper", stage: "Stage", say: Say
    ) -> None:
        turn = stage.turn(TurnState.RUNNING)
        say(part(turn, "H"))
        keeper = open_keeper()
        events = iter(keeper.follow(turn))
        next(events)

        keeper.erase(stage.row(turn)["chat_id"])

        with pytest.raises(UnknownTurn):
            list(events)
