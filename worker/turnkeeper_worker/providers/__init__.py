"""The providers: one file per API, behind one small interface."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import httpx

from turnkeeper_worker.config import SUPPORTED_APIS, ProviderConfig
from turnkeeper_worker.failures import Failure, Signal
from turnkeeper_worker.providers import openai_responses
from turnkeeper_worker.providers.http import Timeouts, call_headers, json_body, open_client, stream_events
from turnkeeper_worker.providers.interface import Answer, Call, Failed, Listener, Provider, Result

__all__ = [
    "Answer",
    "Call",
    "Failed",
    "Listener",
    "Provider",
    "Result",
    "open_providers",
    "unknown_provider",
    "unnamed_model",
]


@dataclass(frozen=True, slots=True)
class OpenAIResponses:
    """A provider that speaks the OpenAI Responses API."""

    name: str
    store: bool
    client: httpx.AsyncClient
    timeouts: Timeouts

    async def call(self, call: Call, listener: Listener) -> Result:
        """Make one attempt; see `Provider.call`."""
        request = self.client.build_request(
            "POST",
            openai_responses.PATH,
            content=json_body(openai_responses.request_body(call, store=self.store)),
            headers=call_headers(call.request_id),
        )
        stream = openai_responses.ResponsesStream(
            listener=listener, provider=self.name, store=self.store, is_chained=call.is_chained
        )
        return await stream_events(self.client, request, stream, self.timeouts)

    async def close(self) -> None:
        """Give the connections back."""
        await self.client.aclose()


@dataclass(frozen=True, slots=True)
class Unusable:
    """A configured provider that cannot be called, and why."""

    name: str
    signal: Signal
    reason: str

    async def call(self, call: Call, listener: Listener) -> Result:
        """Fail with the reason, without a network."""
        del listener
        failure = Failure(
            provider=self.name, signal=self.signal, body={"message": self.reason}, chained=call.is_chained
        )
        return Failed(failure=failure)

    async def close(self) -> None:
        """Nothing was opened."""


def open_providers(
    configured: Mapping[str, ProviderConfig], environment: Mapping[str, str]
) -> Mapping[str, Provider]:
    """Open every configured provider; its connections are made when they are needed."""
    return MappingProxyType({name: _open(name, config, environment) for name, config in configured.items()})


def unknown_provider(name: str) -> Provider:
    """Stand in for a provider that this worker is not configured for."""
    reason = f"The worker has no provider {name}; add [providers.{name}] to its turnkeeper.toml."
    return Unusable(name, Signal.UNKNOWN_PROVIDER, reason)


def unnamed_model(name: str) -> Provider:
    """Stand in for a provider that is asked for no model in particular."""
    reason = f"No model is named; name one in the turn or the chat, or set model in [providers.{name}]."
    return Unusable(name, Signal.UNKNOWN_PROVIDER, reason)


def _open(name: str, config: ProviderConfig, environment: Mapping[str, str]) -> Provider:
    key = config.api_key(environment)
    if config.api_key_env is not None and key is None:
        return Unusable(name, Signal.MISSING_KEY, f"{config.api_key_env} is not set in the worker's environment.")
    if key is not None and not (key.isascii() and key.isprintable()):
        return Unusable(name, Signal.MISSING_KEY, f"{config.api_key_env} holds characters that no API key has.")
    if config.api not in SUPPORTED_APIS:
        return Unusable(name, Signal.UNKNOWN_PROVIDER, f"This version does not speak {config.api} yet.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeouts = Timeouts(
        startup=config.startup_timeout_seconds or None, silence=config.silence_timeout_seconds or None
    )
    client = open_client(config.base_url, headers, http2=config.http2)
    return OpenAIResponses(name, config.store, client, timeouts)
