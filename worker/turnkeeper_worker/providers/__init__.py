"""The providers: one file per API, behind one small interface."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, assert_never

import httpx

from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.failures import Failure, Signal
from turnkeeper_worker.providers import anthropic_messages, openai_chat, openai_responses
from turnkeeper_worker.providers.fields import storable
from turnkeeper_worker.providers.http import (
    Timeouts,
    bearer,
    call_headers,
    endpoint,
    json_body,
    open_client,
    stream_events,
)
from turnkeeper_worker.providers.interface import (
    Answer,
    Call,
    CalledOff,
    Failed,
    Listener,
    Provider,
    Result,
    Running,
    ToolSpec,
)
from turnkeeper_worker.providers.stream import EventStream

__all__ = [
    "Answer",
    "Call",
    "CalledOff",
    "Failed",
    "Listener",
    "Provider",
    "Result",
    "Running",
    "ToolSpec",
    "open_providers",
    "storable",
    "unusable",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One wire format, set up for one provider."""

    path: str
    headers: Mapping[str, str]
    request_body: Callable[[Call], dict[str, Any]]
    open_stream: Callable[..., EventStream]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProvider:
    """A provider that is called over HTTP, whatever it speaks there."""

    name: str
    url: str
    api: Api
    client: httpx.AsyncClient
    timeouts: Timeouts

    async def call(self, call: Call, listener: Listener) -> Result:
        """Make one attempt; see `Provider.call`."""
        request = self.client.build_request(
            "POST",
            self.url,
            content=json_body(self.api.request_body(call)),
            headers=call_headers(call.request_id),
        )
        stream = self.api.open_stream(listener=listener, provider=self.name, is_chained=call.is_chained)
        return await stream_events(self.client, request, stream, self.timeouts)

    async def call_off(self, response_id: str) -> CalledOff:
        """Cancel a background response; see `Provider.call_off`."""
        del response_id
        return CalledOff(is_over=True)

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

    async def call_off(self, response_id: str) -> CalledOff:
        """Do nothing: what cannot be called has nothing running."""
        del response_id
        return CalledOff(is_over=True)

    async def close(self) -> None:
        """Nothing was opened."""


def open_providers(
    configured: Mapping[str, ProviderConfig], environment: Mapping[str, str]
) -> Mapping[str, Provider]:
    """Open every configured provider; its connections are made when they are needed."""
    return MappingProxyType({name: _open(name, config, environment) for name, config in configured.items()})


def unusable(name: str, reason: str) -> Provider:
    """Stand in for a provider that a turn cannot be sent to, and say why."""
    return Unusable(name, Signal.UNKNOWN_PROVIDER, reason)


def _open(name: str, config: ProviderConfig, environment: Mapping[str, str]) -> Provider:
    key = config.api_key(environment)
    if config.api_key_env is not None and key is None:
        return Unusable(name, Signal.MISSING_KEY, f"{config.api_key_env} is not set in the worker's environment.")
    if key is not None and not (key.isascii() and key.isprintable()):
        return Unusable(name, Signal.MISSING_KEY, f"{config.api_key_env} holds characters that no API key has.")
    api = _api(config, key)
    return HttpProvider(
        name=name,
        url=endpoint(config.base_url, api.path),
        api=api,
        client=open_client(api.headers, http2=config.http2),
        timeouts=Timeouts(
            startup=config.startup_timeout_seconds or None, silence=config.silence_timeout_seconds or None
        ),
    )


def _api(config: ProviderConfig, key: str | None) -> Api:
    match config.api:
        case "openai-responses":
            return Api(
                path=openai_responses.PATH,
                headers=bearer(key, config.base_url),
                request_body=partial(openai_responses.request_body, store=config.store),
                open_stream=partial(openai_responses.ResponsesStream, store=config.store),
            )
        case "openai-chat":
            return Api(
                path=openai_chat.PATH,
                headers=bearer(key, config.base_url),
                request_body=openai_chat.request_body,
                open_stream=openai_chat.ChatStream,
            )
        case "anthropic-messages":
            return Api(
                path=anthropic_messages.PATH,
                headers=anthropic_messages.headers(key),
                request_body=partial(anthropic_messages.request_body, max_output_tokens=config.max_output_tokens),
                open_stream=anthropic_messages.MessagesStream,
            )
        case other:
            assert_never(other)
