"""Everything this package raises.

TurnkeeperError
├── InvalidRequest         the request cannot be a turn
│   └── InvalidSettings    the environment or `turnkeeper.toml` cannot be used
├── UnknownChat
├── UnknownTurn
├── UnknownProvider        no worker is configured for it
├── TurnRejected           `submit_turn` stored it as rejected
├── NotRetryable           the turn cannot be tried again
├── NotEditable            another message stands in the turn's place already
├── ChatBusy               `on_busy=reject` met an unfinished turn
├── UsageLimitExceeded     the owner's limit for this period is reached
├── IdempotencyConflict    the key was used for another request
├── DatabaseUnavailable    nothing was stored
└── BrokerUnavailable      the turn is stored, and starts by itself later

Each is constructed from its facts and words itself, so that it survives pickling.
"""

from datetime import UTC, datetime
from uuid import UUID


class TurnkeeperError(Exception):
    """A failure that the caller can read in one line and act on."""


class InvalidRequest(TurnkeeperError):
    """The request cannot be a turn."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class InvalidSettings(InvalidRequest):
    """The environment or `turnkeeper.toml` cannot be used."""


class UnknownChat(TurnkeeperError):
    """No chat has this id."""

    def __init__(self, chat_id: UUID) -> None:
        super().__init__(chat_id)
        self.chat_id = chat_id

    def __str__(self) -> str:
        return f"no chat has the id {self.chat_id}; leave the chat out to start a new one"


class UnknownTurn(TurnkeeperError):
    """No turn has this id."""

    def __init__(self, turn_id: UUID) -> None:
        super().__init__(turn_id)
        self.turn_id = turn_id

    def __str__(self) -> str:
        return f"no turn has the id {self.turn_id}; `enqueue` prints the id to use"


class UnknownProvider(TurnkeeperError):
    """No worker is configured for a provider of this name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name = name
        self.known = known

    def __str__(self) -> str:
        there = ", ".join(self.known) or "none, for no worker has run lately"
        return f"no provider is called {self.name[:100]!r}; there are: {there}"


class TurnRejected(TurnkeeperError):
    """The request that came by `turnkeeper.submit_turn` was stored as rejected."""

    def __init__(self, turn_id: UUID, reason: str) -> None:
        super().__init__(turn_id, reason)
        self.turn_id = turn_id
        self.reason = reason

    def __str__(self) -> str:
        return f"turn {self.turn_id} was rejected: {self.reason}"


class NotRetryable(TurnkeeperError):
    """The turn cannot be tried again."""

    def __init__(self, turn_id: UUID, why: str) -> None:
        super().__init__(turn_id, why)
        self.turn_id = turn_id
        self.why = why

    def __str__(self) -> str:
        return f"turn {self.turn_id} cannot be retried: {self.why}"


class NotEditable(TurnkeeperError):
    """Another message stands in the turn's place already."""

    def __init__(self, turn_id: UUID, superseded_by: UUID) -> None:
        super().__init__(turn_id, superseded_by)
        self.turn_id = turn_id
        self.superseded_by = superseded_by

    def __str__(self) -> str:
        return f"turn {self.turn_id} cannot be edited: edit turn {self.superseded_by}, which stands in its place"


class ChatBusy(TurnkeeperError):
    """The chat has an unfinished turn and the request said `on_busy=reject`."""

    def __init__(self, chat_id: UUID) -> None:
        super().__init__(chat_id)
        self.chat_id = chat_id

    def __str__(self) -> str:
        return f"chat {self.chat_id} has an unfinished turn; wait for it, or use on_busy=queue or interrupt"


class UsageLimitExceeded(TurnkeeperError):
    """The owner's limit for this period is reached."""

    def __init__(
        self, spent: int, limit: int, resets_at: datetime, what: str = "tokens", period: str = "day"
    ) -> None:
        super().__init__(spent, limit, resets_at, what, period)
        self.spent = spent
        self.limit = limit
        self.resets_at = resets_at
        self.what = what
        self.period = period

    def __str__(self) -> str:
        return (
            f"{self.spent:,} of {self.limit:,} {self.what} of this {self.period} are used; "
            f"try after {self.resets_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        )


class IdempotencyConflict(TurnkeeperError):
    """The idempotency key belongs to a turn with another request."""

    def __init__(self, key: str, turn_id: UUID) -> None:
        super().__init__(key, turn_id)
        self.key = key
        self.turn_id = turn_id

    def __str__(self) -> str:
        return f"idempotency key {self.key!r} was used for another request, turn {self.turn_id}; use a new key"


class DatabaseUnavailable(TurnkeeperError):
    """PostgreSQL cannot be reached or cannot be used; nothing was stored."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"PostgreSQL at {self.address} cannot be used: {self.reason}; "
            "nothing was changed; check TURNKEEPER_DATABASE_URL"
        )


class BrokerUnavailable(TurnkeeperError):
    """The broker cannot be reached; what was stored runs when it is back."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"the broker at {self.address} cannot be reached: {self.reason}; check TURNKEEPER_BROKER_URL"
