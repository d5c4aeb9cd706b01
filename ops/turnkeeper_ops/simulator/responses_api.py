"""The endpoints of the OpenAI API: `/v1/responses` and `/v1/models`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, TypeAlias

from turnkeeper_ops.simulator.actions import Action, Scene, perform
from turnkeeper_ops.simulator.channel import Channel, Request
from turnkeeper_ops.simulator.encoding import EVENT_STREAM
from turnkeeper_ops.simulator.exchange import Exchange, make_id
from turnkeeper_ops.simulator.generations import GeneratingStep, Generation, spared
from turnkeeper_ops.simulator.journal import Entry, Fetch
from turnkeeper_ops.simulator.limits import Level, openai_headers
from turnkeeper_ops.simulator.openai_errors import (
    SERVER_ERROR,
    ApiError,
    check_key,
    context_overflow,
    response_headers,
    too_many_requests,
)
from turnkeeper_ops.simulator.responses_items import as_items
from turnkeeper_ops.simulator.responses_parameters import decode
from turnkeeper_ops.simulator.responses_wire import ResponsesRequest, ResponsesWire, read_prompt, read_request
from turnkeeper_ops.simulator.scripts import (
    AnswerStep,
    EmptyStep,
    ErrorEventStep,
    LostAnchorStep,
    Retrieval,
    Spelling,
    Step,
)
from turnkeeper_ops.simulator.state import Account, State
from turnkeeper_ops.simulator.turns import UnknownScript
from turnkeeper_ops.simulator.wire import Headers, PlainResponse, Prompt

Query: TypeAlias = Mapping[str, str]

MODELS = ("simulated-large", "simulated-small")


def retrieve(state: State, account: Account, response_id: str) -> PlainResponse:
    """Answer `GET /v1/responses/{id}`."""
    generation, stored = account.generations.get(response_id), account.vault.get(response_id)
    if generation is not None:
        _ask(generation, Fetch("retrieve", state.clock()))
        return PlainResponse(status=200, body=generation.response(), headers={})
    if stored is None:
        raise _response_not_found(response_id)
    return PlainResponse(status=200, body=stored.body, headers={})


def cancel(state: State, account: Account, response_id: str) -> PlainResponse:
    """Answer `POST /v1/responses/{id}/cancel`; to cancel what has ended changes nothing."""
    generation = account.generations.get(response_id)
    if generation is not None:
        status = 404 if generation.retrieval is Retrieval.GONE else 200
        _answer_fetch(generation, Fetch("cancel", state.clock(), status=status))
        generation.cancel()
        return PlainResponse(status=200, body=generation.response(), headers={})
    if account.vault.get(response_id) is None:
        raise _response_not_found(response_id)
    raise ApiError("Only responses created with `background: true` can be cancelled.")


def delete(account: Account, response_id: str) -> PlainResponse:
    """Answer `DELETE /v1/responses/{id}`."""
    dropped = account.generations.drop(response_id)
    if not (account.vault.delete(response_id) or dropped):
        raise _response_not_found(response_id)
    body = {"id": response_id, "object": "response.deleted", "deleted": True}
    return PlainResponse(status=200, body=body, headers={})


def models(state: State) -> PlainResponse:
    """Answer `GET /v1/models`."""
    created = int(state.started.wall.timestamp())
    listed = [{"id": m, "object": "model", "created": created, "owned_by": "turnkeeper"} for m in MODELS]
    return PlainResponse(status=200, body={"object": "list", "data": listed}, headers={})


async def resume(state: State, account: Account, response_id: str, query: Query, connection: Channel) -> None:
    """Answer `GET /v1/responses/{id}?stream=true`: the events behind `starting_after`, as they come.

    Raises:
        ApiError: There is nothing to stream, or not any more.
    """
    generation, after = _resumable(account, response_id), _starting_after(query)
    _ask(generation, Fetch("resume", state.clock(), after))
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
        self._account: Account
        self._read: ResponsesRequest
        self._wire: ResponsesWire
        self._generation: Generation | None = None

    def headers(self) -> Headers:
        """Return the headers that OpenAI sends with everything."""
        return response_headers(make_id("req"))

    def read(self, request: Request) -> Prompt:
        """Check the request and resolve what it refers to."""
        self.key = check_key(request.headers.get("authorization"), self.state.accounts)
        self._account = self.state.accounts[self.key]
        parameters = decode(request.body)
        self._note_parameters(parameters)
        self._read = read_request(parameters, self._account.vault, self._account.seal)
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
            seal=self._account.seal,
            now=self.entry.arrived.wall.timestamp(),
        )
        return self._wire

    def too_long(self, prompt: Prompt) -> ApiError:  # noqa: ARG002  # the API does not say how long
        """Say that the prompt does not fit."""
        return context_overflow("input")

    def too_many(self) -> ApiError:
        """Say that the key has made too many requests."""
        return too_many_requests(self.entry.model)

    def tell(self, level: Level) -> Headers:
        """Tell what is left of the limit."""
        return openai_headers(level)

    def unknown_script(self, error: UnknownScript) -> ApiError:
        """Say that there is no such script."""
        return ApiError(str(error), param="input", code="unknown_script")

    def begin(self, step: Step, scene: Scene) -> Iterator[Action]:
        """Lose what is to be lost, and return what is done for *step*."""
        if isinstance(step, LostAnchorStep) and step.spelling is not Spelling.INVALID_ENCRYPTED_CONTENT:
            self._lose_conversation()
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

    def _lose_conversation(self) -> None:
        if self._read.previous is not None:
            for lost in self._account.vault.drop_conversation(self._read.previous.id):
                self._account.generations.drop(lost)

    def _begin_background(self, step: GeneratingStep, scene: Scene) -> Iterator[Action]:
        """Start the generation, and return what *step* does to the connection."""
        wire, spared_step = self._wire.as_stream(), spared(step)
        self._generation = Generation(
            id=wire.response_id,
            entry=self.entry,
            streamed=self._read.stream,
            resumable=isinstance(step, EmptyStep) or step.resumable,
            retrieval=Retrieval.OK if isinstance(step, EmptyStep) else step.retrieval,
            body=wire.snapshot,
            cancelled=wire.cancelled,
            outcome=lambda: wire.failed(step) if isinstance(step, ErrorEventStep) else wire.final,
            store=lambda: self._store(wire),
        )
        self._account.generations.add(self._generation)
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
            self._account.vault.add(stored)

    def _note_parameters(self, parameters: dict[str, Any]) -> None:
        # Before the input is resolved: a refused request is logged with what it asked for.
        self.entry.model = parameters["model"]
        self.entry.stream = bool(parameters.get("stream"))
        self.entry.store = parameters.get("store")
        self.entry.previous_response_id = parameters.get("previous_response_id")
        self.entry.input = as_items(parameters["input"])


def _resumable(account: Account, response_id: str) -> Generation:
    generation = account.generations.get(response_id)
    if generation is None and account.vault.get(response_id) is None:
        raise _response_not_found(response_id)
    if generation is None or not generation.streamed:
        raise ApiError("Only responses created with `background: true` and `stream: true` can be streamed.")
    if not generation.resumable:
        raise ApiError("This response can no longer be streamed because it is more than 5 minutes old")
    return generation


def _ask(generation: Generation, fetch: Fetch) -> None:
    """Note that somebody asks for the response; fail as the script wants it to."""
    _answer_fetch(generation, replace(fetch, status=generation.ask()))


def _answer_fetch(generation: Generation, fetch: Fetch) -> None:
    generation.entry.fetches.append(fetch)
    if fetch.status == HTTPStatus.NOT_FOUND:
        raise _response_not_found(generation.id)
    if fetch.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ApiError(SERVER_ERROR, status=fetch.status, kind="server_error", code="server_error")


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
