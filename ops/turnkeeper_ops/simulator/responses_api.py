"""The endpoints of the OpenAI API that are simulated: `/v1/responses` and `/v1/models`."""

import secrets
from collections.abc import Iterator
from typing import Any

from turnkeeper_ops.simulator.actions import Action, Scene, perform, respond
from turnkeeper_ops.simulator.connection import Connection, Request
from turnkeeper_ops.simulator.journal import Entry
from turnkeeper_ops.simulator.openai_errors import CONTEXT_OVERFLOW, ApiError, check_key
from turnkeeper_ops.simulator.play import Stage
from turnkeeper_ops.simulator.responses_items import as_items
from turnkeeper_ops.simulator.responses_parameters import decode
from turnkeeper_ops.simulator.responses_wire import ResponsesRequest, ResponsesWire, read_prompt, read_request
from turnkeeper_ops.simulator.scripts import LostAnchorStep, Step
from turnkeeper_ops.simulator.state import State
from turnkeeper_ops.simulator.turns import UnknownScript, sender_of
from turnkeeper_ops.simulator.wire import PlainResponse, Prompt

API = "openai-responses"
MODELS = ("simulated-large", "simulated-small")


async def create(state: State, request: Request, connection: Connection) -> None:
    """Answer `POST /v1/responses`, and log it."""
    entry = state.journal.open(
        api=API, sender=sender_of(request.headers), arrived=state.clock(), body_bytes=len(request.body)
    )
    answer = _Answer(state, entry)
    stage = Stage(
        connection=connection,
        entry=entry,
        clock=state.clock,
        headers=response_headers(),
        commit=answer.commit,
    )
    await stage.play(answer.actions(request))


def retrieve(state: State, response_id: str) -> PlainResponse:
    """Answer `GET /v1/responses/{id}`."""
    stored = state.vault.get(response_id)
    if stored is None:
        raise _response_not_found(response_id)
    return PlainResponse(status=200, body=stored.body, headers={})


def delete(state: State, response_id: str) -> PlainResponse:
    """Answer `DELETE /v1/responses/{id}`."""
    if not state.vault.delete(response_id):
        raise _response_not_found(response_id)
    body = {"id": response_id, "object": "response.deleted", "deleted": True}
    return PlainResponse(status=200, body=body, headers={})


def models(state: State) -> PlainResponse:
    """Answer `GET /v1/models`."""
    created = int(state.started.wall.timestamp())
    listed = [{"id": m, "object": "model", "created": created, "owned_by": "turnkeeper"} for m in MODELS]
    return PlainResponse(status=200, body={"object": "list", "data": listed}, headers={})


def response_headers() -> dict[str, str]:
    """Return the headers that OpenAI sends with everything."""
    return {
        "x-request-id": make_id("req"),
        "openai-version": "2020-10-01",
        "openai-organization": "org-simulator",
    }


def make_id(prefix: str) -> str:
    """Return a fresh id, such as `msg_…`."""
    return f"{prefix}_{secrets.token_hex(24)}"


class _Answer:
    """How one request is answered: checked, matched with its step, and stored when it completes."""

    def __init__(self, state: State, entry: Entry) -> None:
        self._state = state
        self._entry = entry
        self._wire: ResponsesWire | None = None

    def actions(self, request: Request) -> Iterator[Action]:
        """Return what is to be done; a request that the API would not take is refused."""
        try:
            check_key(request.headers.get("authorization"), self._state.settings.api_key)
            return self._perform(self._read(request))
        except ApiError as error:
            self._entry.detail = str(error)
            return respond(error.plain(), outcome="refused")

    def commit(self) -> None:
        """Store the response."""
        stored = self._wire.stored() if self._wire else None
        if stored is not None:
            self._state.vault.add(stored)

    def _read(self, request: Request) -> ResponsesRequest:
        parameters = decode(request.body)
        self._note_parameters(parameters)
        read = read_request(parameters, self._state.vault)
        self._entry.input, self._entry.previous = read.input, read.previous
        return read

    def _note_parameters(self, parameters: dict[str, Any]) -> None:
        # Before the input is resolved: a refused request is logged with what it asked for.
        self._entry.model = parameters["model"]
        self._entry.stream = bool(parameters.get("stream"))
        self._entry.store = parameters.get("store")
        self._entry.previous_response_id = parameters.get("previous_response_id")
        self._entry.input = as_items(parameters["input"])

    def _perform(self, read: ResponsesRequest) -> Iterator[Action]:
        prompt = read_prompt(read)
        self._check_length(prompt)
        step = self._next_step(prompt, read)
        self._wire = self._answering_side(read, prompt)
        scene = Scene(
            wire=self._wire,
            prompt=prompt,
            now=self._entry.arrived.wall,
            chunk_delay_ms=self._state.settings.chunk_delay_ms,
        )
        return perform(step, scene)

    def _check_length(self, prompt: Prompt) -> None:
        if prompt.input_tokens > self._state.settings.context_tokens:
            raise ApiError(CONTEXT_OVERFLOW, param="input", code="context_length_exceeded")

    def _answering_side(self, read: ResponsesRequest, prompt: Prompt) -> ResponsesWire:
        self._entry.response_id = make_id("resp")
        return ResponsesWire(
            request=read,
            prompt=prompt,
            response_id=self._entry.response_id,
            make_id=make_id,
            now=self._entry.arrived.wall.timestamp(),
        )

    def _next_step(self, prompt: Prompt, read: ResponsesRequest) -> Step:
        try:
            applied = self._state.book.next_step(self._entry.sender, prompt)
        except UnknownScript as error:
            raise ApiError(str(error), param="input", code="unknown_script") from error
        self._entry.applied = applied
        if isinstance(applied.step, LostAnchorStep) and read.previous is not None:
            self._state.vault.drop_conversation(read.previous.id)
        return applied.step


def _response_not_found(response_id: str) -> ApiError:
    return ApiError(f"Response with id '{response_id}' not found.", status=404)
