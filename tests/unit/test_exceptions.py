"""Everything that is raised survives Celery's pickling and says in one line what to do."""

import inspect
import pickle
from datetime import UTC, datetime
from uuid import UUID

import pytest

from turnkeeper import exceptions
from turnkeeper.exceptions import (
    BrokerUnavailable,
    ChatBusy,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidRequest,
    InvalidSettings,
    NotEditable,
    NotRetryable,
    TurnkeeperError,
    TurnRejected,
    UnknownChat,
    UnknownProvider,
    UnknownTurn,
    UsageLimitExceeded,
)
from turnkeeper_worker.store import LeaseLost
from turnkeeper_worker.tasks import TurnFailed

TURN = UUID(int=7)
ID = "00000000-0000-0000-0000-000000000007"

EXAMPLES = [
    (InvalidRequest("the text is empty; say something"), "the text is empty; say something"),
    (InvalidSettings("x is no number"), "x is no number"),
    (UnknownChat(TURN), f"no chat has the id {ID}; leave the chat out to start a new one"),
    (UnknownTurn(TURN), f"no turn has the id {ID}; `enqueue` prints the id to use"),
    (
        UnknownProvider("opnai", ("anthropic", "openai")),
        "no provider is called 'opnai'; there are: anthropic, openai",
    ),
    (TurnRejected(TURN, "it is empty"), f"turn {ID} was rejected: it is empty"),
    (NotRetryable(TURN, "it is completed"), f"turn {ID} cannot be retried: it is completed"),
    (
        NotEditable(TURN, UUID(int=8)),
        f"turn {ID} cannot be edited: edit turn {UUID(int=8)}, which stands in its place",
    ),
    (
        ChatBusy(TURN),
        f"chat {ID} has an unfinished turn; wait for it, or use on_busy=queue or interrupt",
    ),
    (
        UsageLimitExceeded(1200, 1000, datetime(2026, 3, 2, tzinfo=UTC)),
        "1,200 of 1,000 tokens of this day are used; try after 2026-03-02 00:00 UTC",
    ),
    (
        IdempotencyConflict("k", TURN),
        f"idempotency key 'k' was used for another request, turn {ID}; use a new key",
    ),
    (
        DatabaseUnavailable("db:5432/x", "connection refused"),
        (
            "PostgreSQL at db:5432/x cannot be used: connection refused; nothing was changed; "
            "check TURNKEEPER_DATABASE_URL"
        ),
    ),
    (
        BrokerUnavailable("cache:6379", "connection refused"),
        "the broker at cache:6379 cannot be reached: connection refused; check TURNKEEPER_BROKER_URL",
    ),
    (LeaseLost(TURN, 3), f"the lease of turn {ID} with epoch 3 is gone; this attempt is void"),
    (TurnFailed("auth", "No."), "auth: No."),
]
by_name = pytest.mark.parametrize(
    ("error", "words"), [pytest.param(error, words, id=type(error).__name__) for error, words in EXAMPLES]
)


@by_name
def test_it_says_what_which_and_what_to_do(error: Exception, words: str) -> None:
    assert str(error) == words


@by_name
def test_it_survives_pickling(error: Exception, words: str) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == words


def test_every_exception_has_an_example_here_and_a_place_in_the_drawn_tree() -> None:
    defined = {
        one
        for _, one in inspect.getmembers(exceptions, inspect.isclass)
        if one.__module__ == exceptions.__name__ and one is not TurnkeeperError
    }

    assert defined <= {type(error) for error, _ in EXAMPLES}
    assert all(issubclass(one, TurnkeeperError) for one in defined)
    assert all(f" {one.__name__} " in (exceptions.__doc__ or "").replace("\n", " ") for one in defined)
