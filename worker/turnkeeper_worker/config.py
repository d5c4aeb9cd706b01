"""The worker's configuration: one frozen class, read once, handed down as plain values."""

import hashlib
import os
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from turnkeeper.errors import ErrorKind
from turnkeeper.exceptions import InvalidSettings
from turnkeeper.requests import Fallbacks
from turnkeeper.settings import Connections

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RetryPolicy(BaseModel):
    """When a failed attempt is followed by another, and how soon."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    backoff_base_seconds: Seconds = 1.0
    """The ceiling of the first backoff; it doubles with each attempt."""
    backoff_cap_seconds: Seconds = 60.0
    """No backoff is longer; a provider's hint may be."""
    max_attempts: PositiveInt = 12
    """Attempts per step, the first included; a heal does not count."""
    max_attempts_by_kind: dict[ErrorKind, PositiveInt] = Field(default_factory=dict)
    """Smaller budgets for single kinds, such as `{"timeout": 6}`; a larger one is capped by `max_attempts`."""
    turn_deadline_seconds: Seconds = 3600.0
    """No retry starts later than this after the turn first ran."""
    max_hint_seconds: Seconds = 900.0
    """A provider that asks for more ends the turn with a time to try after."""

    @property
    def backoff_base(self) -> timedelta:
        """The ceiling of the first backoff as a duration."""
        return timedelta(seconds=self.backoff_base_seconds)

    @property
    def backoff_cap(self) -> timedelta:
        """The highest ceiling as a duration."""
        return timedelta(seconds=self.backoff_cap_seconds)

    @property
    def turn_deadline(self) -> timedelta:
        """The deadline as a duration."""
        return timedelta(seconds=self.turn_deadline_seconds)

    @property
    def max_hint(self) -> timedelta:
        """The longest hint that is waited for."""
        return timedelta(seconds=self.max_hint_seconds)

    def attempts(self, kind: ErrorKind) -> int:
        """Return how many attempts a step has when it fails with *kind*."""
        return min(self.max_attempts, self.max_attempts_by_kind.get(kind, self.max_attempts))


ApiName = Literal["openai-responses", "openai-chat", "anthropic-messages"]

CONFIG_FILE = "turnkeeper.toml"

RESPONSE_KEPT_FOR = timedelta(days=30)
"""OpenAI's promise: https://platform.openai.com/docs/guides/your-data."""
THREAD_KEPT_FOR = timedelta(minutes=5)
"""Anthropic's promise is shorter by far; a thread that is gone all the same costs one refused request."""


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        # Looking at the port is what checks it.
        is_right = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError("it is no URL of an API; write https://host/v1")
    return url


class ModelConfig(BaseModel):
    """What differs for one model, as `[providers.NAME.models."MODEL"]` configures it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    startup_timeout_seconds: Seconds | None = None
    """How long a call may take until its first event; 0 waits for ever, None as long as the provider's."""
    silence_timeout_seconds: Seconds | None = None
    """How long a stream may pause between two events; 0 waits for ever, None as long as the provider's."""


class ProviderConfig(BaseModel):
    """One provider, as `[providers.NAME]` configures it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    api: ApiName = "openai-responses"
    """The wire format that the provider speaks; `openai-chat` is the one that most servers imitate."""
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s]+$"), AfterValidator(_http_url)]
    """Where its API begins, such as `https://api.openai.com/v1`."""
    api_key_env: str | None = None
    """The environment variable that holds the API key; without it no key is sent."""
    model: str | None = None
    """The model of turns and chats that name none."""
    store: bool = True
    """Whether the provider keeps responses, which chaining needs."""
    threads: bool = False
    """Continue Anthropic's message threads, kept there for minutes, instead of sending the history."""
    background: bool = False
    """Let responses go on when a worker dies, and come back to them; a turn may ask for something else."""
    queue_timeout_seconds: Seconds = 300.0
    """How long a background response may stay `queued` before it is called off; 0 waits for ever."""
    max_chain_breaks: PositiveInt = 3
    """So many broken chains, with none that held in between, and chaining rests for this key."""
    chain_rest_seconds: Seconds = 3600.0
    """How long it rests."""
    max_output_tokens: PositiveInt = 8192
    """The longest answer, where the API demands a limit (Anthropic) and the turn's options set none."""
    cooldown: bool = True
    """Whether workers rest together after a throttle, and keep to the pace that the provider tells."""
    http2: bool = False
    """Speak HTTP/2; the transport is slower, so only for providers that need it."""
    startup_timeout_seconds: Seconds = 60.0
    """How long a call may take until its first event; 0 waits for ever."""
    silence_timeout_seconds: Seconds = 600.0
    """How long a stream may pause between two events; 0 waits for ever."""
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    """What differs for single models."""
    fallbacks: Fallbacks = ()
    """Who answers, in this order, turns that name no fallbacks, such as `["anthropic", "openai/gpt-5-mini"]`."""
    retry: RetryPolicy | None = None
    """A retry policy of its own."""

    @property
    def keeps_responses_for(self) -> timedelta | None:
        """How long after a response a chat may continue from it; None: not at all."""
        if self.threads:
            return THREAD_KEPT_FOR
        return RESPONSE_KEPT_FOR if self.store and self.api == "openai-responses" else None

    @property
    def can_run_in_background(self) -> bool:
        """Whether a response can go on without us, and be found again."""
        return self.store and self.api == "openai-responses"

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> Self:
        if self.threads and self.api != "anthropic-messages":
            raise ValueError('threads are Anthropic\'s; set api = "anthropic-messages", or leave threads out')
        if self.background and not self.can_run_in_background:
            raise ValueError('background asks for api = "openai-responses" and store = true')
        return self

    def api_key(self, environment: Mapping[str, str]) -> str | None:
        """Return the key, or None where none is set."""
        # A file that a key was read from often ends with a line break, which no header can hold.
        return environment.get(self.api_key_env, "").strip() or None if self.api_key_env else None

    def credential(self, environment: Mapping[str, str]) -> str:
        """Name the key without telling it: anchors and encrypted reasoning are bound to it."""
        key = self.api_key(environment)
        return hashlib.sha256(key.encode()).hexdigest()[:12] if key else "none"


#: Configured by themselves when their key is in the environment.
BUILT_IN_PROVIDERS: Mapping[str, ProviderConfig] = {
    "openai": ProviderConfig(base_url="https://api.openai.com/v1", api_key_env="OPENAI_API_KEY"),
    "anthropic": ProviderConfig(
        api="anthropic-messages", base_url="https://api.anthropic.com/v1", api_key_env="ANTHROPIC_API_KEY"
    ),
}


class Settings(Connections):
    """Everything a worker can be told, by `TURNKEEPER_*` variables or by `turnkeeper.toml`; the former win."""

    model_config = SettingsConfigDict(extra="forbid")

    concurrency: PositiveInt = 200
    """How many turns one worker process holds in flight."""
    drain_seconds: Seconds = 20.0
    """How long running turns may go on after SIGTERM before they are handed back."""
    lease_ttl_seconds: PositiveFloat = 15.0
    """How long a worker's turns are its own after its last heartbeat."""
    beat_seconds: PositiveFloat = 2.5
    """How often a worker renews its lease; at most a third of the TTL."""
    rescue_seconds: PositiveFloat = 1.0
    """How often each worker looks for due, forgotten and orphaned turns."""
    broker_horizon_seconds: Seconds = 30.0
    """Countdowns up to this go to the broker as well; longer ones wait in PostgreSQL alone."""
    retention_days: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)] = 90.0
    """How many days the attempts and tool runs of ended turns are kept, and rejections; 0 keeps them for ever."""
    housekeeping_seconds: PositiveFloat = 30.0
    """How often each worker looks for what may be deleted, and for what should not be there."""
    max_steps: PositiveInt = 50
    """How many times a turn may call the model; the calls for tools of the last one are not run."""
    checkpoint_seconds: Seconds = 2.0
    """How often it is written down how far a background response has come."""
    coalesce_ms: Annotated[int, Field(ge=0, le=1000)] = 10
    """How long live events may be collected before they are written together."""
    events_ttl_seconds: PositiveInt = 3600
    """How long the live events of a turn are kept after the last one."""
    events_max: PositiveInt = 10_000
    """How many live events of one turn are kept."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""
    log_json: bool = False
    """Log one JSON object a line."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """The port on which this process shows its metrics to Prometheus; each needs one of its own, 0 is none."""
    metrics_address: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address of that port; `0.0.0.0` shows them to other hosts too."""
    retry: RetryPolicy = RetryPolicy()
    """The retry policy of providers that have none of their own."""
    providers: dict[str, ProviderConfig] = Field(default_factory=dict)
    """The providers by name."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let arguments win over the environment, and the environment over the file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, InitSettingsSource(settings_cls, _read_config_file())

    @model_validator(mode="after")
    def _beats_often_enough(self) -> Self:
        # The tolerance is for 0.1 and 0.3, which are no binary fractions.
        if self.beat_seconds * 3 > self.lease_ttl_seconds * (1 + 1e-9):
            raise ValueError(
                f"beat_seconds ({self.beat_seconds:g}) must be at most a third of "
                f"lease_ttl_seconds ({self.lease_ttl_seconds:g})"
            )
        return self

    @model_validator(mode="after")
    def _falls_back_on_what_there_is(self) -> Self:
        known = self.providers.keys() | BUILT_IN_PROVIDERS.keys()
        for name, config in self.providers.items():
            for one in config.fallbacks:
                if one.provider not in known:
                    raise ValueError(f"[providers.{name}] falls back on {one.provider}, which is no provider here")
        return self

    def all_providers(self, environment: Mapping[str, str]) -> dict[str, ProviderConfig]:
        """Return the configured providers, and the built-in ones whose key is in *environment*."""
        built_in = {name: one for name, one in BUILT_IN_PROVIDERS.items() if one.api_key(environment)}
        return built_in | self.providers

    def retry_policy(self, provider: ProviderConfig | None) -> RetryPolicy:
        """Return the policy that holds for a provider."""
        return (provider and provider.retry) or self.retry


def _read_config_file() -> dict[str, Any]:
    path = Path(os.environ.get("TURNKEEPER_CONFIG", CONFIG_FILE))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is no valid TOML: {error}") from None
