"""The endpoint of the OpenAI API that everybody copied: `/v1/chat/completions`."""

import secrets
from typing import Any

from turnkeeper_ops.simulator.channel import Request
from turnkeeper_ops.simulator.chat_messages import check_messages
from turnkeeper_ops.simulator.chat_parameters import decode
from turnkeeper_ops.simulator.chat_wire import ChatWire, read_prompt
from turnkeeper_ops.simulator.exchange import Exchange, make_id
from turnkeeper_ops.simulator.journal import Entry
from turnkeeper_ops.simulator.limits import Level, openai_headers
from turnkeeper_ops.simulator.openai_errors import (
    ApiError,
    check_key,
    context_overflow,
    response_headers,
    too_many_requests,
)
from turnkeeper_ops.simulator.state import State
from turnkeeper_ops.simulator.turns import UnknownScript
from turnkeeper_ops.simulator.wire import Headers, Prompt


class ChatExchange(Exchange):
    """`POST /v1/chat/completions`."""

    api = "openai-chat"

    def __init__(self, state: State, entry: Entry) -> None:
        super().__init__(state, entry)
        self._parameters: dict[str, Any] = {}

    def headers(self) -> Headers:
        """Return the headers that OpenAI sends with everything."""
        return response_headers(make_id("req"))

    def read(self, request: Request) -> Prompt:
        """Check the request; the log shows its messages as its input."""
        self.key = check_key(request.headers.get("authorization"), self.state.accounts)
        self._parameters = decode(request.body)
        self.entry.model = self._parameters["model"]
        self.entry.stream = bool(self._parameters.get("stream"))
        self.entry.store = self._parameters.get("store")
        self.entry.input = tuple(self._parameters["messages"])
        check_messages(self.entry.input)
        return read_prompt(self.entry.input)

    def wire(self, prompt: Prompt) -> ChatWire:
        """Return the answering side, with a fresh id."""
        # These ids have a hyphen where all others have an underscore.
        self.entry.response_id = f"chatcmpl-{secrets.token_hex(12)}"
        return ChatWire(
            parameters=self._parameters,
            prompt=prompt,
            completion_id=self.entry.response_id,
            make_id=make_id,
            now=self.entry.arrived.wall.timestamp(),
        )

    def too_long(self, prompt: Prompt) -> ApiError:  # noqa: ARG002  # the API does not say how long
        """Say that the prompt does not fit."""
        return context_overflow("messages")

    def too_many(self) -> ApiError:
        """Say that the key has made too many requests."""
        return too_many_requests(self.entry.model)

    def tell(self, level: Level) -> Headers:
        """Tell what is left of the limit."""
        return openai_headers(level)

    def unknown_script(self, error: UnknownScript) -> ApiError:
        """Say that there is no such script."""
        return ApiError(str(error), param="messages", code="unknown_script")
