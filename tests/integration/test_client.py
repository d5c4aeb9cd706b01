"""Both clients against real servers: what is stored, what is told, and what happens when a server is away."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import create_engine, text

from turnkeeper import Turnkeeper
from turnkeeper.events import Event, TurnCancelled, read_event
from turnkeeper.exceptions import (
    DatabaseUnavailable,
    InvalidRequest,
    NotRetryable,
    TurnRejected,
    UnknownChat,
    UnknownTurn,
)
from turnkeeper.follow import FIELD
from turnkeeper.keys import CANCEL_CHANNEL, events_key
from turnkeeper.states import TurnState
from turnkeeper.turns import find_state
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import upkeep

if TYPE_CHECKING:
    from tests.integration.conftest import OpenKeeper, Stage

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def cache(redis_server: Redis) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_server.url()) as client:
        yield client


@pytest.fixture
def cancels(cache: "redis.Redis") -> Iterator[Callable[[], UUID]]:
    """Hear which running turns are asked to stop."""
    with cache.pubsub() as channel:  # type: ignore[no-untyped-call]  # redis-py is half typed
        channel.subscribe(CANCEL_CHANNEL)
        assert channel.get_message(timeout=5) is not None

        def next_one() -> UUID:
            message = channel.get_message(timeout=5)
            assert message is not None
            return UUID(message["data"].decode())

        yield next_one


def published(cache: "redis.Redis", turn_id: UUID) -> list[Event]:
    entries: Any = cache.xrange(events_key(turn_id))
    return [read_event(cursor.decode(), content[FIELD]) for cursor, content in entries]


def rings(cache: "redis.Redis", keeper: Any) -> int:
    """Return how many messages wait for the workers."""
    settings = getattr(keeper, "keeper", keeper).settings
    waiting: Any = cache.llen(f"turnkeeper:celery:{settings.queue}")
    return int(waiting)


class TestEnqueue:
    def test_a_turn_is_stored_and_the_workers_are_told(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis"
    ) -> None:
        keeper = open_keeper()

        enqueued = keeper.enqueue(None, "Hello", model="m")

        turn = stage.row(enqueued.id)
        assert (enqueued.is_new, enqueued.is_due, enqueued.is_rung) == (True, True, True)
        assert (turn["provider"], turn["model"]) == ("openai", "m")
        assert rings(cache, keeper) == 1

    def test_a_chat_may_be_named_by_the_text_of_its_id(self, open_keeper: "OpenKeeper") -> None:
        keeper = open_keeper()
        chat = keeper.enqueue(None, "Hello").chat_id

        assert keeper.enqueue(str(chat), "And?").chat_id == chat

    def test_a_turn_that_must_wait_rings_nobody(self, open_keeper: "OpenKeeper", cache: "redis.Redis") -> None:
        keeper = open_keeper()
        first = keeper.enqueue(None, "Hello")

        second = keeper.enqueue(first.chat_id, "And?")

        assert not second.is_due
        assert rings(cache, keeper) == 1

    def test_without_a_broker_the_turn_is_stored_and_the_client_says_so(
        self, open_keeper: "OpenKeeper", stage: "Stage"
    ) -> None:
        keeper = open_keeper(broker_url=NOWHERE)

        enqueued = keeper.enqueue(None, "Hello")

        assert (enqueued.is_new, enqueued.is_due, enqueued.is_rung) == (True, True, False)
        assert stage.state(enqueued.id) == "queued"
        assert [due.id for due in stage.do(upkeep.take_due, forgotten_after=timedelta(hours=1))] == [enqueued.id]

    def test_without_a_database_nothing_is_stored_and_the_server_is_named(
        self, open_keeper: "OpenKeeper", cache: "redis.Redis"
    ) -> None:
        keeper = open_keeper(database_url="postgresql://u:hunter2@127.0.0.1:1/x")

        with pytest.raises(DatabaseUnavailable) as caught:
            keeper.enqueue(None, "Hello")

        assert str(caught.value).startswith("PostgreSQL at 127.0.0.1:1/x cannot be used: connection")
        assert "hunter2" not in str(caught.value)
        assert rings(cache, keeper) == 0

    def test_without_tables_the_remedy_is_named(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        stage.do(lambda connection: connection.execute(text("DROP TABLE messages")))

        with pytest.raises(DatabaseUnavailable, match="its tables are missing or old, run `turnkeeper migrate`"):
            open_keeper().enqueue(None, "Hello")

    @pytest.mark.parametrize("chat", ["x", ""])
    def test_what_is_no_request_is_refused(self, open_keeper: "OpenKeeper", chat: str) -> None:
        with pytest.raises(InvalidRequest, match="chat_id: Input should be a valid UUID"):
            open_keeper().enqueue(chat, "Hello")

    def test_an_interrupt_tells_the_followers_and_the_workers(
        self,
        open_keeper: "OpenKeeper",
        stage: "Stage",
        cache: "redis.Redis",
        cancels: Callable[[], UUID],
    ) -> None:
        keeper = open_keeper()
        first = keeper.enqueue(None, "Hello")
        stage.claim(first.id)
        second = keeper.enqueue(first.chat_id, "And?")

        keeper.enqueue(first.chat_id, "Stop!", on_busy="interrupt")

        assert cancels() == first.id
        assert [event.type for event in published(cache, second.id)] == ["turn.cancelled"]


class TestOwnTransaction:
    def test_a_turn_joins_the_producers_transaction(self, database_url: Any, stage: "Stage") -> None:
        engine = create_engine(database_url)
        with Turnkeeper(broker_url=NOWHERE, default_provider="openai") as keeper, engine.connect() as connection:
            enqueued = keeper.enqueue(None, "Hello", connection=connection)
            assert not enqueued.is_rung
            with pytest.raises(UnknownTurn):
                stage.do(find_state, enqueued.id)
            connection.commit()
        engine.dispose()

        assert stage.state(enqueued.id) == "queued"


class TestCancel:
    def test_a_waiting_turn_ends_and_its_followers_are_told(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis"
    ) -> None:
        turn_id = stage.turn(TurnState.RETRYING)

        cancelled = open_keeper().cancel(turn_id)

        (event,) = published(cache, turn_id)
        assert isinstance(event, TurnCancelled)
        assert event.epoch == cancelled.epoch == stage.row(turn_id)["epoch"]

    def test_the_event_does_not_stay_for_ever(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis"
    ) -> None:
        turn_id = stage.turn(TurnState.QUEUED)

        open_keeper().cancel(str(turn_id))

        assert 0 < cache.ttl(events_key(turn_id)) <= 3600

    def test_the_worker_of_a_running_turn_is_told(
        self, open_keeper: "OpenKeeper", stage: "Stage", cancels: Callable[[], UUID]
    ) -> None:
        turn_id = stage.turn(TurnState.RUNNING)

        cancelled = open_keeper().cancel(turn_id)

        assert not cancelled.changed
        assert cancels() == turn_id

    def test_the_next_turn_is_rung_for(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis"
    ) -> None:
        keeper = open_keeper()
        first = stage.enqueue()
        second = stage.enqueue(chat_id=first.chat_id)

        assert keeper.cancel(first.id).woken == second.id

        assert rings(cache, keeper) == 1

    def test_without_redis_and_broker_a_turn_is_cancelled_all_the_same(
        self, open_keeper: "OpenKeeper", stage: "Stage"
    ) -> None:
        turn_id = stage.turn(TurnState.QUEUED)
        stage.enqueue(chat_id=stage.row(turn_id)["chat_id"])

        cancelled = open_keeper(redis_url=NOWHERE).cancel(turn_id)

        assert cancelled.changed
        assert stage.state(turn_id) == "cancelled"


class TestRetry:
    @pytest.mark.parametrize("state", [TurnState.RETRYING, TurnState.FAILED])
    def test_the_workers_are_told(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis", state: TurnState
    ) -> None:
        keeper = open_keeper()

        assert keeper.retry(stage.turn(state)).is_rung

        assert rings(cache, keeper) == 1

    def test_without_a_broker_the_client_says_so(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        keeper = open_keeper(broker_url=NOWHERE)

        retried = keeper.retry(stage.turn(TurnState.FAILED))

        assert not retried.is_rung
        assert stage.row(retried.id)["rung_at"] is None

    def test_what_cannot_be_retried_is_refused(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        with pytest.raises(NotRetryable):
            open_keeper().retry(stage.turn(TurnState.COMPLETED))


class TestShow:
    def test_everything_about_a_turn_is_told(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.retry(running, seconds=0)
        stage.complete(stage.claim(running.id), "Hi")

        view = open_keeper().show(running.id)

        assert (view.state, view.text, view.usage) == (TurnState.COMPLETED, "Hi", {"input_tokens": 3})
        assert [(one.number, one.outcome, one.kind) for one in view.attempts] == [
            (1, "retried", "overloaded"),
            (2, "completed", None),
        ]
        assert [message.text for message in view.messages] == ["Hello", "Hi"]

    def test_a_failed_turn_tells_its_error(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        view = open_keeper().show(stage.turn(TurnState.FAILED))

        assert view.error is not None
        assert view.error.message == "OpenAI is short of capacity."
        assert view.text == ""

    @pytest.mark.parametrize("method", ["show", "cancel", "retry"])
    def test_an_unknown_turn_is_told(self, open_keeper: "OpenKeeper", stage: "Stage", method: str) -> None:
        rejected = uuid4()
        stage.do(upkeep.reject, rejected, "the text is empty")
        call = getattr(open_keeper(), method)

        with pytest.raises(UnknownTurn):
            call(uuid4())
        with pytest.raises(TurnRejected, match="the text is empty"):
            call(str(rejected))
        with pytest.raises(InvalidRequest, match="'x' is no id"):
            call("x")


class TestErase:
    def test_an_unknown_chat_is_told(self, open_keeper: "OpenKeeper") -> None:
        with pytest.raises(UnknownChat):
            open_keeper().erase(uuid4())
