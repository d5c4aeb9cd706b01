"""The providers: one file per API, behind one small interface."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Any, assert_never

import httpx

from turnkeeper_worker.config import ModelConfig, ProviderConfig
from turnkeeper_worker.failures import Failure, Signal
from turnkeeper_worker.providers import anthropic_messages, openai_chat, openai_responses
from turnkeeper_worker.providers.background import Background, Patience, Responses
from turnkeeper_worker.providers.fields import storable
from turnkeeper_worker.providers.http import (
    Client,
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
from turnkeeper_worker.providers.openai_responses import BackgroundStream
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
    keeps: Callable[[Mapping[str, Any]], bool]
    """Tells whether a request's body asks the provider to keep the response."""
    open_stream: Callable[..., EventStream]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProvider:
    """A provider that is called over HTTP, whatever it speaks there."""

    name: str
    url: httpx.URL
    api: Api
    client: Client
    timeouts: Callable[[str], Timeouts]
    """The watchdogs of a model."""
    responses: Responses | None = None
    """The responses that go on without us; None where there are none."""
    patience: Patience = field(default_factory=Patience)
    """For those."""

    async def call(self, call: Call, listener: Listener) -> Result:
        """Make one attempt; see `Provider.call`."""
        if self.responses is not None and (call.background or call.running):
            return await self._call_in_background(call, listener, self.responses)
        body = self.api.request_body(call)
        stream = self.api.open_stream(
            listener=listener, provider=self.name, is_chained=call.is_chained, is_kept=self.api.keeps(body)
        )
        return await stream_events(self.client, self._request(call, body), stream, self.timeouts(call.model))

    async def call_off(self, response_id: str) -> CalledOff:
        """Cancel a background response; see `Provider.call_off`."""
        return await self.responses.call_off(response_id) if self.responses else CalledOff(is_over=True)

    async def close(self) -> None:
        """Give the connections back."""
        await self.client.close()

    async def _call_in_background(self, call: Call, listener: Listener, responses: Responses) -> Result:
        background = Background(
            responses=responses,
            call=call,
            listener=listener,
            stream=BackgroundStream(listener=listener, provider=self.name, is_chained=call.is_chained),
            timeouts=self.timeouts(call.model),
            patience=self.patience,
        )
        if call.running is not None:
            return await background.come_back(call.running)
        return await background.create(self._request(call, self.api.request_body(call)))

    def _request(self, call: Call, body: Mapping[str, Any]) -> httpx.Request:
        return self.client.request("POST", self.url, call_headers(call.request_id), json_body(body))


@dataclass(frozen=True, slots=True)
class Unusable:
    """A provider that cannot be called, and why."""

    name: str | None
    """None where the reason is no provider's."""
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


def unusable(name: str | None, signal: Signal, reason: str) -> Provider:
    """Stand in for a provider that a turn cannot be sent to, and say why."""
    return Unusable(name, signal, reason)


def _open(name: str, config: ProviderConfig, environment: Mapping[str, str]) -> Provider:
    key = config.api_key(environment)
    if config.api_key_env is not None and key is None:
        return Unusable(name, Signal.MISSING_KEY, f"{config.api_key_env} is not set in the worker's environment.")
    if key is not None and not (key.isascii() and key.isprintable()):
        return Unusable(name, Signal.MISSING_KEY, f"{config.api_key_env} holds characters that no API key has.")
    api = _api(config, key)
    client = open_client(api.headers, config.base_url, http2=config.http2)
    url = endpoint(config.base_url, api.path)
    return HttpProvider(
        name=name,
        url=httpx.URL(url),
        api=api,
        client=client,
        timeouts=partial(_timeouts, config),
        responses=Responses(client=client, provider=name, url=url) if config.can_run_in_background else None,
        patience=Patience(queue=config.queue_timeout_seconds or inf),
    )


def _timeouts(config: ProviderConfig, model: str) -> Timeouts:
    """Return the watchdogs of a model: its own, or else the provider's; 0 is none."""
    own = config.models.get(model) or ModelConfig()
    startup, silence = own.startup_timeout_seconds, own.silence_timeout_seconds
    return Timeouts(
        startup=(config.startup_timeout_seconds if startup is None else startup) or None,
        silence=(config.silence_timeout_seconds if silence is None else silence) or None,
    )


def _api(config: ProviderConfig, key: str | None) -> Api:
    match config.api:
        case "openai-responses":
            return Api(
                path=openai_responses.PATH,
                headers=bearer(key, config.base_url),
                request_body=partial(openai_responses.request_body, store=config.store),
                keeps=lambda body: bool(body["store"]),
                open_stream=openai_responses.ResponsesStream,
            )
        case "openai-chat":
            return Api(
                path=openai_chat.PATH,
                headers=bearer(key, config.base_url),
                request_body=openai_chat.request_body,
                keeps=lambda _body: False,
                open_stream=openai_chat.ChatStream,
            )
        case "anthropic-messages":
            return Api(
                path=anthropic_messages.PATH,
                headers=anthropic_messages.headers(key, threads=config.threads),
                request_body=partial(
                    anthropic_messages.request_body,
                    max_output_tokens=config.max_output_tokens,
                    threads=config.threads,
                ),
                keeps=lambda body: "thread" in body,
                open_stream=anthropic_messages.MessagesStream,
            )
        case other:
            assert_never(other)
