"""The settings that producers and workers share: what wins, what is refused, and that no secret is told."""

from typing import Any

import pytest
from pydantic import ValidationError

from turnkeeper.exceptions import InvalidSettings
from turnkeeper.settings import Connections, address_of

SECRET = "hunter2"


def refusal(**given: Any) -> str:
    with pytest.raises(InvalidSettings) as caught:
        Connections.load(**given)
    return str(caught.value)


class TestSources:
    def test_everything_has_a_default(self) -> None:
        settings = Connections.load()

        assert settings.database.render_as_string() == "postgresql+psycopg://localhost:5432/turnkeeper"
        assert settings.broker == "redis://localhost:6379/0"
        assert (settings.queue, settings.default_provider) == ("turnkeeper", None)

    def test_the_environment_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TURNKEEPER_QUEUE", "slow")
        monkeypatch.setenv("TURNKEEPER_BROKER_URL", "amqp://queue:5672//")

        settings = Connections.load()

        assert (settings.queue, settings.broker) == ("slow", "amqp://queue:5672//")

    def test_an_empty_variable_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TURNKEEPER_QUEUE", "")

        assert Connections.load().queue == "turnkeeper"

    def test_an_argument_wins_and_none_is_no_argument(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TURNKEEPER_QUEUE", "slow")

        assert Connections.load(queue="fast").queue == "fast"
        assert Connections.load(queue=None).queue == "slow"

    def test_the_broker_is_the_same_redis_unless_it_is_named(self) -> None:
        assert Connections.load(redis_url="redis://cache:6379/3").broker == "redis://cache:6379/3"

    def test_a_producer_does_not_mind_the_workers_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TURNKEEPER_CONCURRENCY", "many")

        assert Connections.load().queue == "turnkeeper"

    def test_settings_are_frozen(self) -> None:
        settings = Connections.load()

        with pytest.raises(ValidationError, match="frozen"):
            settings.queue = "other"  # type: ignore[misc]  # that is the point


class TestDatabaseUrl:
    @pytest.mark.parametrize(
        "url",
        [
            pytest.param("postgresql://u:p@db/x", id="the usual scheme"),
            pytest.param("postgres://u:p@db/x", id="the short scheme"),
            pytest.param("postgresql+asyncpg://u:p@db/x", id="another driver"),
        ],
    )
    def test_every_postgresql_url_gets_our_driver(self, url: str) -> None:
        database = Connections.load(database_url=url).database

        assert database.render_as_string(hide_password=False) == "postgresql+psycopg://u:p@db/x"

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            pytest.param(SECRET, "it is no URL", id="no URL"),
            pytest.param(f"postgresql://user:{SECRET}", "it is no URL", id="a password where the port belongs"),
            pytest.param(f"mysql://u:{SECRET}@db/x", "it names mysql, not PostgreSQL", id="another database"),
            pytest.param(f"postgresql://u:p@{SECRET}@db/x", "write it as %40", id="an @ in the password"),
        ],
    )
    def test_a_bad_one_is_explained_without_its_secrets(self, url: str, words: str) -> None:
        said = refusal(database_url=url)

        assert said.startswith("setting database_url (TURNKEEPER_DATABASE_URL) cannot be used: ")
        assert words in said
        assert SECRET not in said


class TestRedisUrl:
    @pytest.mark.parametrize(
        "url", ["redis://cache:6379/0", "rediss://:p@cache/1", "unix:///run/redis.sock", "redis://[::1]:6379/0"]
    )
    def test_redis_urls_are_taken(self, url: str) -> None:
        assert Connections.load(redis_url=url).redis_url.get_secret_value() == url

    @pytest.mark.parametrize(
        "url",
        [
            pytest.param(f"http://u:{SECRET}@cache", id="another scheme"),
            pytest.param(SECRET, id="no URL"),
            pytest.param(f"redis://u:{SECRET}", id="a password where the port belongs"),
            pytest.param("redis://cache:99999/0", id="a port that no port can be"),
        ],
    )
    def test_a_bad_one_is_explained_without_its_secrets(self, url: str) -> None:
        assert refusal(redis_url=url) == (
            "setting redis_url (TURNKEEPER_REDIS_URL) cannot be used: "
            "it is no Redis URL; write redis://host:6379/0"
        )


class TestBrokerUrl:
    @pytest.mark.parametrize(
        "url",
        [
            pytest.param("amqp://guest:guest@queue:5672//", id="RabbitMQ"),
            pytest.param("sentinel://a:26379;sentinel://b:26379", id="several addresses"),
            pytest.param("sqla+postgresql://db/x", id="a transport with a driver"),
            pytest.param("memory://", id="no address at all"),
        ],
    )
    def test_whatever_celery_can_speak_to_is_taken(self, url: str) -> None:
        assert Connections.load(broker_url=url).broker == url

    @pytest.mark.parametrize(
        "url",
        [
            pytest.param(SECRET, id="no URL"),
            pytest.param(f"kafkaesque://u:{SECRET}@queue", id="a transport that does not exist"),
            pytest.param(f"redis://u:{SECRET}", id="a password where the port belongs"),
        ],
    )
    def test_a_bad_one_is_refused_before_a_turn_is_stored(self, url: str) -> None:
        said = refusal(broker_url=url)

        assert said.startswith("setting broker_url (TURNKEEPER_BROKER_URL) cannot be used: it is no broker's URL")
        assert SECRET not in said


def test_no_secret_is_printed() -> None:
    settings = Connections.load(
        database_url=f"postgresql://u:{SECRET}@db/x",
        redis_url=f"redis://:{SECRET}@cache/0",
        broker_url=f"amqp://u:{SECRET}@queue//",
    )

    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.database}"
    assert SECRET not in settings.model_dump_json()


def test_several_mistakes_are_told_at_once() -> None:
    said = refusal(database_url="x", redis_url="y", queue="")

    assert said.count("cannot be used") == 3
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "address"),
    [
        pytest.param(f"redis://:{SECRET}@cache:6379/1", "cache:6379", id="without the password"),
        pytest.param(f"amqp://u:p@{SECRET}@queue:5672//x?y=z", "queue:5672", id="without an @ of the password"),
        pytest.param("redis://cache?password=hunter2", "cache", id="without the query"),
        pytest.param("memory://", "localhost", id="where there is none"),
    ],
)
def test_an_address_is_told_without_secrets(url: str, address: str) -> None:
    assert address_of(url) == address
