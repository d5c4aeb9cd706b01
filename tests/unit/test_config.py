"""The worker's configuration: variables, `turnkeeper.toml`, providers, and what is said of mistakes in them."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from turnkeeper.errors import ErrorKind
from turnkeeper.exceptions import InvalidSettings
from turnkeeper_worker.config import ProviderConfig, RetryPolicy, Settings

SECRET = "sk-hunter2"
LOCAL = '[providers.local]\nbase_url = "http://localhost:8000/v1"\n'

WriteConfig = Callable[[str | bytes], Path]


@pytest.fixture
def write_config() -> WriteConfig:
    path = Path(os.environ["TURNKEEPER_CONFIG"])

    def write(content: str | bytes) -> Path:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(**given: Any) -> str:
    with pytest.raises(InvalidSettings) as caught:
        Settings.load(**given)
    return str(caught.value)


class TestSources:
    def test_no_file_is_no_mistake(self) -> None:
        assert Settings.load().concurrency == 200

    def test_the_file_is_read(self, write_config: WriteConfig) -> None:
        write_config(f"concurrency = 7\n[retry]\nmax_attempts = 3\n{LOCAL}")

        settings = Settings.load()

        assert (settings.concurrency, settings.retry.max_attempts) == (7, 3)
        assert settings.providers["local"].base_url == "http://localhost:8000/v1"

    def test_a_variable_wins_over_the_file_and_an_argument_over_both(
        self, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_config("concurrency = 7\ndrain_seconds = 7\nqueue = 'seven'")
        monkeypatch.setenv("TURNKEEPER_CONCURRENCY", "8")
        monkeypatch.setenv("TURNKEEPER_DRAIN_SECONDS", "8")

        settings = Settings.load(concurrency=9)

        assert (settings.concurrency, settings.drain_seconds, settings.queue) == (9, 8.0, "seven")

    def test_a_variable_may_change_one_field_of_a_group(
        self, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_config(f"[retry]\nmax_attempts = 3\nmax_hint_seconds = 5\n{LOCAL}")
        monkeypatch.setenv("TURNKEEPER_RETRY__MAX_ATTEMPTS", "4")
        monkeypatch.setenv("TURNKEEPER_PROVIDERS__LOCAL__STORE", "false")

        settings = Settings.load()

        assert (settings.retry.max_attempts, settings.retry.max_hint_seconds) == (4, 5.0)
        assert (settings.providers["local"].store, settings.providers["local"].model) == (False, None)

    def test_a_provider_may_come_from_variables_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TURNKEEPER_PROVIDERS__LOCAL__BASE_URL", "http://localhost:8000/v1")

        assert list(Settings.load().providers) == ["local"]

    @pytest.mark.parametrize("frozen", [Settings, RetryPolicy])
    def test_settings_are_frozen(self, frozen: type[Settings | RetryPolicy]) -> None:
        settings = Settings.load() if frozen is Settings else RetryPolicy()
        field = next(iter(type(settings).model_fields))

        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, field, 1)


class TestMistakes:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            pytest.param("concurrency =", "is no valid TOML: ", id="half a line"),
            pytest.param("a = 1\na = 2", "is no valid TOML: ", id="a key twice"),
            pytest.param(b"\xff", "is no valid TOML: ", id="no UTF-8"),
            pytest.param("colour = 1", "setting colour (TURNKEEPER_COLOUR) cannot be used: Extra", id="unknown"),
            pytest.param("concurrency = 0", "setting concurrency (TURNKEEPER_CONCURRENCY)", id="out of range"),
            pytest.param("drain_seconds = nan", "setting drain_seconds", id="not a number"),
            pytest.param("retention_days = -1", "setting retention_days", id="days before the first"),
            pytest.param("retention_days = 1e9", "setting retention_days", id="more days than there were"),
            pytest.param(
                "[retry]\nmax_attempts = 'x'", "setting retry.max_attempts (TURNKEEPER_RETRY__MAX_A", id="nested"
            ),
            pytest.param(
                "[retry.max_attempts_by_kind]\nbad_luck = 1", "max_attempts_by_kind.bad_luck", id="a kind"
            ),
            pytest.param("[providers.x]\nstore = true", "setting providers.x.base_url", id="no address"),
            pytest.param(
                "[providers.x]\nbase_url = 'http://h:99999/v1'", "it is no URL of an API", id="an impossible port"
            ),
            pytest.param("[providers.x]\nbase_url = 'http:///v1'", "it is no URL of an API", id="no host"),
            pytest.param("[providers.x]\nbase_url = 'localhost'", "setting providers.x.base_url", id="no scheme"),
            pytest.param(
                "beat_seconds = 6",
                "the settings cannot be used: beat_seconds (6) must be at most a",
                id="slow beat",
            ),
        ],
    )
    def test_a_mistake_is_one_line_that_says_where(
        self, write_config: WriteConfig, content: str | bytes, words: str
    ) -> None:
        write_config(content)

        said = refusal()

        assert words in said
        assert len(said.splitlines()) == 1

    def test_a_mistake_in_the_file_names_the_file(self, write_config: WriteConfig) -> None:
        path = write_config("=")

        assert refusal().startswith(f"{path} is no valid TOML")

    def test_a_file_that_cannot_be_read_is_named(self) -> None:
        Path(os.environ["TURNKEEPER_CONFIG"]).mkdir()

        assert refusal().endswith("turnkeeper.toml cannot be read: Is a directory")

    def test_a_variable_that_is_no_json_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TURNKEEPER_PROVIDERS", f'{{"x": {SECRET}')

        said = refusal()

        assert "providers" in said
        assert SECRET not in said

    @pytest.mark.parametrize("name", ["database_url", "redis_url", "broker_url"])
    def test_a_secret_in_the_file_is_not_repeated(self, write_config: WriteConfig, name: str) -> None:
        write_config(f"{name} = 'x://u:{SECRET}@h'")

        assert SECRET not in refusal()

    @pytest.mark.parametrize("ttl", [0.3, 0.6, 15.0])
    def test_a_beat_may_be_a_third_of_the_ttl(self, ttl: float) -> None:
        assert Settings.load(lease_ttl_seconds=ttl, beat_seconds=ttl / 3).lease_ttl_seconds == ttl

    def test_decimal_thirds_count_as_thirds(self) -> None:
        assert Settings.load(lease_ttl_seconds=0.3, beat_seconds=0.1).beat_seconds == 0.1


class TestProviders:
    def test_a_built_in_provider_is_there_when_its_key_is(self) -> None:
        settings = Settings.load()

        assert settings.all_providers({}) == {}
        assert list(settings.all_providers({"OPENAI_API_KEY": SECRET})) == ["openai"]
        assert list(settings.all_providers({"ANTHROPIC_API_KEY": SECRET})) == ["anthropic"]

    def test_an_empty_key_is_none(self) -> None:
        assert Settings.load().all_providers({"OPENAI_API_KEY": " "}) == {}

    def test_a_configured_provider_replaces_the_built_in_one(self) -> None:
        mine = ProviderConfig(base_url="http://gateway/v1")

        providers = Settings.load(providers={"openai": mine}).all_providers({"OPENAI_API_KEY": SECRET})

        assert providers == {"openai": mine}

    def test_a_provider_without_a_variable_has_no_key(self) -> None:
        assert ProviderConfig(base_url="http://localhost").api_key({"OPENAI_API_KEY": SECRET}) is None

    def test_the_line_break_after_a_key_is_no_part_of_it(self) -> None:
        config = ProviderConfig(base_url="http://localhost", api_key_env="KEY")

        assert config.api_key({"KEY": f"{SECRET}\n"}) == SECRET
        assert config.credential({"KEY": f"{SECRET}\n"}) == config.credential({"KEY": SECRET})

    def test_a_credential_names_a_key_without_telling_it(self) -> None:
        config = ProviderConfig(base_url="http://localhost", api_key_env="KEY")

        assert config.credential({}) == "none"
        assert config.credential({"KEY": SECRET}) != config.credential({"KEY": f"{SECRET}3"})
        assert SECRET not in config.credential({"KEY": SECRET})

    def test_a_provider_may_have_a_retry_policy_of_its_own(self) -> None:
        own = RetryPolicy(max_attempts=1)
        settings = Settings.load(retry=RetryPolicy(max_attempts=5))

        assert settings.retry_policy(ProviderConfig(base_url="http://localhost", retry=own)) == own
        assert settings.retry_policy(ProviderConfig(base_url="http://localhost")).max_attempts == 5
        assert settings.retry_policy(None).max_attempts == 5


class TestRetryPolicy:
    def test_a_kind_may_have_a_smaller_budget_but_no_larger_one(self) -> None:
        policy = RetryPolicy(max_attempts=5, max_attempts_by_kind={ErrorKind.TIMEOUT: 2, ErrorKind.OVERLOADED: 9})

        assert policy.attempts(ErrorKind.TIMEOUT) == 2
        assert policy.attempts(ErrorKind.OVERLOADED) == 5
        assert policy.attempts(ErrorKind.RATE_LIMIT) == 5

    def test_seconds_become_durations(self) -> None:
        policy = RetryPolicy(
            backoff_base_seconds=0.5, backoff_cap_seconds=60, turn_deadline_seconds=3600, max_hint_seconds=900
        )

        assert policy.backoff_base == timedelta(milliseconds=500)
        assert policy.backoff_cap == timedelta(minutes=1)
        assert policy.turn_deadline == timedelta(hours=1)
        assert policy.max_hint == timedelta(minutes=15)
