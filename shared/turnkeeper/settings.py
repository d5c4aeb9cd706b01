"""Where things are: the settings that producers and workers share, read from `TURNKEEPER_*`."""

from collections.abc import Callable
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from turnkeeper.exceptions import InvalidSettings

ENV_PREFIX = "TURNKEEPER_"


def _database_url(url: SecretStr) -> SecretStr:
    try:
        parsed = make_url(url.get_secret_value())
    except (ArgumentError, ValueError):
        # A ValueError is about the port, and would repeat a password that stands in its place.
        raise ValueError("it is no URL; write postgresql://user:password@host:5432/database") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError(
            f"it names {parsed.get_backend_name()}, not PostgreSQL; "
            "write postgresql://user:password@host:5432/database"
        )
    if "@" in (parsed.host or ""):
        raise ValueError("its password holds an @; write it as %40")
    return url


def _redis_url(url: SecretStr) -> SecretStr:
    if _scheme(url.get_secret_value()) not in {"redis", "rediss", "unix"}:
        raise ValueError("it is no Redis URL; write redis://host:6379/0")
    return url


def _broker_url(url: SecretStr) -> SecretStr:
    from kombu.transport import TRANSPORT_ALIASES  # noqa: PLC0415 - slow, and most settings name no broker

    # Celery takes several addresses, and transports with drivers such as `sqla+postgresql`.
    schemes = (_scheme(one).partition("+")[0] for one in url.get_secret_value().split(";"))
    if not all(scheme in TRANSPORT_ALIASES for scheme in schemes):
        raise ValueError("it is no broker's URL; write redis://host:6379/0 or amqp://user:password@host:5672//")
    return url


def _scheme(url: str) -> str:
    """Return the scheme, or nothing where the address cannot be used."""
    try:
        parts = urlsplit(url)
        # Looking at the port is what checks it; the error would repeat a password that stands in its place.
        _ = parts.port
    except ValueError:
        return ""
    return parts.scheme


class Connections(BaseSettings):
    """What it takes to enqueue a turn and to follow it."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = SecretStr(
        "postgresql://localhost:5432/turnkeeper"
    )
    """PostgreSQL, which owns the truth."""
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = SecretStr("redis://localhost:6379/0")
    """Redis, which carries the live events."""
    broker_url: Annotated[SecretStr, AfterValidator(_broker_url)] | None = None
    """The Celery broker; the same Redis when it is not set."""
    queue: Annotated[str, Field(min_length=1)] = "turnkeeper"
    """The Celery queue that carries turns."""
    default_provider: str | None = None
    """The provider of new chats that name none."""

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment; *overrides* win where they are not None.  Raises InvalidSettings."""
        given = {name: value for name, value in overrides.items() if value is not None}
        return reading_settings(lambda: cls(**given))

    @property
    def database(self) -> URL:
        """The database URL for SQLAlchemy, with the psycopg driver."""
        return make_url(self.database_url.get_secret_value()).set(drivername="postgresql+psycopg")

    @property
    def broker(self) -> str:
        """The broker's URL; it may hold a password."""
        return (self.broker_url or self.redis_url).get_secret_value()


T = TypeVar("T")


def reading_settings(read: Callable[[], T]) -> T:
    """Call *read*, and turn what pydantic says into one line.  Raises InvalidSettings."""
    try:
        return read()
    except ValidationError as error:
        raise InvalidSettings("; ".join(_explain(one["loc"], one["msg"]) for one in error.errors()[:3])) from None
    except ValueError as error:
        raise InvalidSettings(f"the settings cannot be read: {error}") from None


def _explain(location: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(step) for step in location)
    what = message.removeprefix("Value error, ")
    if not name:
        return f"the settings cannot be used: {what}"
    variable = ENV_PREFIX + name.replace(".", "__").upper()
    return f"setting {name} ({variable}) cannot be used: {what}"


def address_of(url: str) -> str:
    """Name a server without its user, password and query.

    >>> address_of("redis://:secret@cache:6379/1")
    'cache:6379'
    """
    rest = url.partition("://")[2].partition("?")[0].rpartition("@")[2]
    return rest.partition("/")[0] or "localhost"
