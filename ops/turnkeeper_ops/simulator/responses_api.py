"""The endpoints of the OpenAI API: `/v1/responses` and `/v1/models`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from turnkeeper_ops.simulator.actions import Action, Scene, perform
from turnkeeper_ops.simulator.channel import Channel, Request
from turnkeeper_ops.simulator.encoding import EVENT_STREAM
from turnkeeper_ops.simulator.exchange import Exchange, make_id
from turnkeeper_ops.simulator.generations import GeneratingStep, Generation, spared
from turnkeeper_ops.simulator.journal import Entry, Fetch
from turnkeeper_ops.simulator.openai_errors import ApiError, check_key, context_overflow, response_headers
from turnkeeper_ops.simulator.responses_items import as_items
from turnkeeper_ops.simulator.responses_parameters import decode
from turnkeeper_ops.simulator.responses_wire import ResponsesRequest, ResponsesWire, read_prompt, read_request
from turnkeeper_ops.simulator.scripts import AnswerStep, EmptyStep, ErrorEventStep, LostAnchorStep, Step
from turnkeeper_ops.simulator.state import State
from turnkeeper_ops.simulator.turns import UnknownScript
from turnkeeper_ops.simulator.wire import Headers, PlainResponse, Prompt

Query: TypeAlias = Mapping[str, str]

MODELS = ("simulated-large", "simulated-small")


def retrieve(state: State, response_id: str) -> PlainResponse:
    """Answer `GET /v1/responses/{id}`."""
    generation, stored = state.generations.get(response_id), state.vault.get(response_id)
    if generation is not None:
        generation.entry.fetches.append(Fetch("retrieve", state.clock()))
        return PlainResponse(status=200, body=generation.response(), headers={})
    if stored is None:
        raise _response_not_found(response_id)
    return PlainResponse(status=200, body=stored.body, headers={})


def cancel(state: State, response_id: str) -> PlainResponse:
    """Answer `POST /v1/responses/{id}/cancel`; to cancel what has ended changes nothing."""
    generation = state.generations.get(response_id)
    if generation is not None:
        generation.entry.fetches.append(Fetch("cancel", state.clock()))
        generation.cancel()
        return PlainResponse(status=200, body=generation.response(), headers={})
    if state.vault.get(response_id) is None:
        raise _response_not_found(response_id)
    raise ApiError("Only responses created with `background: true` can be cancelled.")


def delete(state: State, response_id: str) -> PlainResponse:
    """Answer `DELETE /v1/responses/{id}`."""
    dropped = state.generations.drop(response_id)
    if not (state.vault.delete(response_id) or dropped):
        raise _response_not_found(response_id)
    body = {"id": response_id, "object": "response.deleted", "deleted": True}
    return PlainResponse(status=200, body=body, headers={})


def models(state: State) -> PlainResponse:
    """Answer `GET /v1/models`."""
    created = int(state.started.wall.timestamp())
    listed = [{"id": m, "object": "model", "created": created, "owned_by": "turnkeeper"} for m in MODELS]
    return PlainResponse(status=200, body={"object": "list", "data": listed}, headers={})


async def resume(state: State, response_id: str, query: Query, connection: Channel) -> None:
    """Answer `GET /v1/responses/{id}?stream=true`: the events behind `starting_after`, as they come.

    Raises:
        ApiError: There is nothing to stream, or not any more.
    """
    generation, after = _resumable(state, response_id), _starting_after(query)
    generation.entry.fetches.append(Fetch("resume", state.clock(), after))
    connection.begin(200, [*response_headers(make_id("req")).items(), ("Content-Type", EVENT_STREAM)])
    await connection.flush()
    async for event in generation.follow(after):
        connection.write(event)
        await connection.flush()
    await connection.finish()


class ResponsesExchange(Exchange):
    """`POST /v1/responses`."""

    api = "openai-responses"

    def __init__(self, state: State, entry: Entry) -> None:
        super().__init__(state, entry)
        self._read: ResponsesRequest
        self._wire: ResponsesWire
        self._generation: Generation | None = None

    def headers(self) -> Headers:
        """Return the headers that OpenAI sends with everything."""
        return response_headers(make_id("req"))

    def read(self, request: Request) -> Prompt:
        """Check the request and resolve what it refers to."""
        check_key(request.headers.get("authorization"), self.state.settings.api_key)
        parameters = decode(request.body)
        self._note_parameters(parameters)
        self._read = read_request(parameters, self.state.vault)
        self.entry.input, self.entry.previous = self._read.input, self._read.previous
        return read_prompt(self._read)

    def wire(self, prompt: Prompt) -> ResponsesWire:
        """Return the answering side, with a fresh id."""
        self.entry.response_id = make_id("resp")
        self._wire = ResponsesWire(
            request=self._read,
            prompt=prompt,
            response_id=self.entry.response_id,
            make_id=make_id,
            now=self.entry.arrived.wall.timestamp(),
        )
        return self._wire

    def too_long(self, prompt: Prompt) -> ApiError:  # noqa: ARG002  # the API does not say how long
        """Say that the prompt does not fit."""
        return context_overflow("input")

    def unknown_script(self, error: UnknownScript) -> ApiError:
        """Say that there is no such script."""
        return ApiError(str(error), param="input", code="unknown_script")

    def begin(self, step: Step, scene: Scene) -> Iterator[Action]:
        """Lose what is to be lost, and return what is done for *step*."""
        if isinstance(step, LostAnchorStep) and self._read.previous is not None:
            for lost in self.state.vault.drop_conversation(self._read.previous.id):
                self.state.generations.drop(lost)
        if self._read.background and isinstance(step, GeneratingStep):
            return self._begin_background(step, scene)
        return super().begin(step, scene)

    def commit(self) -> None:
        """Store the response."""
        if self._generation is not None:
            self._generation.commit()
        else:
            self._store(self._wire)

    async def pause(self, seconds: float) -> bool:
        """Wait; return True where the response was cancelled meanwhile."""
        if self._generation is None:
            return await super().pause(seconds)
        return await self._generation.called_off(seconds)

    def _begin_background(self, step: GeneratingStep, scene: Scene) -> Iterator[Action]:
        """Start the generation, and return what *step* does to the connection."""
        wire, spared_step = self._wire.as_stream(), spared(step)
        self._generation = Generation(
            id=wire.response_id,
            entry=self.entry,
            streamed=self._read.stream,
            resumable=isinstance(step, EmptyStep) or step.resumable,
            body=wire.snapshot,
            outcome=lambda: wire.failed(step) if isinstance(step, ErrorEventStep) else wire.final,
            store=lambda: self._store(wire),
        )
        self.state.generations.add(self._generation)
        streaming = replace(scene, wire=wire)
        self._generation.start(perform(spared_step, streaming))
        if self._read.stream:
            return perform(step, streaming)
        return self._acknowledge(step, scene)

    def _acknowledge(self, step: GeneratingStep, scene: Scene) -> Iterator[Action]:
        """Answer at once that the response is queued, with the connection's faults and no others."""
        strikes = AnswerStep() if spared(step) == step else step
        return perform(strikes, scene)

    def _store(self, wire: ResponsesWire) -> None:
        stored = wire.stored()
        if stored is not None:
            self.state.vault.add(stored)

    def _note_parameters(self, parameters: dict[str, Any]) -> None:
        # Before the input is resolved: a refused request is logged with what it asked for.
        self.entry.model = parameters["model"]
        self.entry.stream = bool(parameters.get("stream"))
        self.entry.store = parameters.get("store")
        self.entry.previous_response_id = parameters.get("previous_response_id")
        self.entry.input = as_items(parameters["input"])


def _resumable(state: State, response_id: str) -> Generation:
    generation = state.generations.get(response_id)
    if generation is None and state.vault.get(response_id) is None:
        raise _response_not_found(response_id)
    if generation is None or not generation.streamed:
        raise ApiError("Only responses created with `background: true` and `stream: true` can be streamed.")
    if not generation.resumable:
        raise ApiError("This response can no longer be streamed because it is more than 5 minutes old")
    return generation


def _starting_after(query: Query) -> int:
    """Return the number that the client has seen last; -1: it has seen nothing."""
    given = query.get("starting_after", "-1")
    try:
        return int(given)
    except ValueError as error:
        message = f"Invalid type for 'starting_after': expected an integer, but got '{given}' instead."
        raise ApiError(message, param="starting_after", code="invalid_type") from error


def _response_not_found(response_id: str) -> ApiError:
    return ApiError(f"Response with id '{response_id}' not found.", status=404)
