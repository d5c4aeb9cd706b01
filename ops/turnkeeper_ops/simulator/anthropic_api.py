"""The endpoint of the Anthropic API that is simulated: `/v1/messages`."""

from collections.abc import Iterator, Mapping
from typing import Any

from turnkeeper_ops.simulator.actions import Action, Scene
from turnkeeper_ops.simulator.anthropic_errors import (
    MessagesError,
    check_headers,
    prompt_too_long,
    too_many_requests,
)
from turnkeeper_ops.simulator.anthropic_input import Parameters, decode, read_parameters
from turnkeeper_ops.simulator.anthropic_threads import Kept, Thread, Use, allows_threads, pinned, read_thread
from turnkeeper_ops.simulator.anthropic_turns import check_text, check_turns, merge
from turnkeeper_ops.simulator.anthropic_wire import MessagesWire, read_prompt
from turnkeeper_ops.simulator.channel import Request
from turnkeeper_ops.simulator.exchange import Exchange, make_id
from turnkeeper_ops.simulator.journal import Entry
from turnkeeper_ops.simulator.limits import Level, anthropic_headers
from turnkeeper_ops.simulator.scripts import LostAnchorStep, Step
from turnkeeper_ops.simulator.state import Account, State
from turnkeeper_ops.simulator.turns import UnknownScript
from turnkeeper_ops.simulator.vault import StoredResponse
from turnkeeper_ops.simulator.wire import Headers, Prompt


class MessagesExchange(Exchange):
    """`POST /v1/messages`."""

    api = "anthropic-messages"

    def __init__(self, state: State, entry: Entry) -> None:
        super().__init__(state, entry)
        self._request_id = make_id("req")
        self._account: Account
        self._parameters: Parameters
        self._wire: MessagesWire
        self._thread: Thread | None = None
        self._pinned: Mapping[str, Any] = {}
        self._previous: Kept | None = None
        """What the request continues from; held while it does."""

    def headers(self) -> Headers:
        """Return the headers that Anthropic sends with everything."""
        return {"request-id": self._request_id, "anthropic-organization-id": "org-simulator"}

    def read(self, request: Request) -> Prompt:
        """Check the request; the log shows its messages as its input."""
        try:
            return self._read(request)
        except MessagesError as refused:
            refused.request_id = self._request_id
            raise

    def wire(self, prompt: Prompt) -> MessagesWire:
        """Return the answering side, with a fresh id."""
        self.entry.response_id = make_id("msg")
        self._wire = MessagesWire(
            parameters=self._parameters,
            prompt=prompt,
            message_id=self.entry.response_id,
            request_id=self._request_id,
            make_id=make_id,
            seal=self._account.seal,
        )
        return self._wire

    def too_long(self, prompt: Prompt) -> MessagesError:
        """Say that the prompt does not fit."""
        message = prompt_too_long(prompt.input_tokens, self.state.settings.context_tokens)
        return MessagesError(message, request_id=self._request_id)

    def too_many(self) -> MessagesError:
        """Say that the key has made too many requests."""
        return too_many_requests(self._request_id)

    def tell(self, level: Level) -> Headers:
        """Tell what is left of the limit."""
        return anthropic_headers(level, self.entry.arrived.wall)

    def unknown_script(self, error: UnknownScript) -> MessagesError:
        """Say that there is no such script."""
        return MessagesError(f"messages: {error}", request_id=self._request_id)

    def begin(self, step: Step, scene: Scene) -> Iterator[Action]:
        """Lose what is to be lost, and return what is done for *step*."""
        if isinstance(step, LostAnchorStep) and self._previous is not None:
            self._previous.use = Use.NOT_YET
            self._account.threads.lose(self._previous, step.spelling)
        return super().begin(step, scene)

    def commit(self) -> None:
        """Keep the message for those who continue it: in its thread, or because it was paused."""
        if self._wire.paused:
            self._account.pauses.add([*self._begun(), *self._wire.content])
        if self._thread is not None:
            self._account.threads.keep(self._kept())
        if self._previous is not None:
            self._previous.use = Use.CONTINUED

    def release(self) -> None:
        """Let another request continue from the message, where this one has not."""
        if self._previous is not None and self._previous.use is Use.IN_FLIGHT:
            self._previous.use = Use.NOT_YET

    def _read(self, request: Request) -> Prompt:
        self.key = check_headers(request.headers, self.state.accounts)
        self._account = self.state.accounts[self.key]
        given = decode(request.body)
        whole = self._complete(given, request.headers.get("anthropic-beta", ""))
        self._parameters = read_parameters(whole)
        self.entry.model = self._parameters.model
        self.entry.stream = bool(self._parameters.stream)
        self.entry.input = tuple(given["messages"])
        for block in self._parameters.system or ():
            check_text(block, "system")
        check_turns(self._parameters.messages, self._account.seal, self._account.pauses)
        self._hold()
        return read_prompt(self._parameters, chained=self._previous is not None)

    def _complete(self, given: dict[str, Any], betas: str) -> dict[str, Any]:
        """Return the request as it would be without its thread; without one it stays as it is."""
        self._thread = read_thread(given, betas)
        if self._thread is None:
            return given if given.get("thread") or not allows_threads(betas) else _without_thread(given)
        self.entry.store, self.entry.previous_response_id = True, self._thread.previous
        whole = _without_thread(given)
        if self._thread.previous is not None:
            self._previous = self._account.threads.find(self._thread.previous, self.entry.arrived.monotonic)
            self.entry.previous = self._previous.stored
            whole = self._previous.complete(whole)
        self._pinned = pinned(whole)
        return whole

    def _hold(self) -> None:
        """Keep others from continuing the same message meanwhile."""
        if self._previous is not None:
            self._previous.use = Use.IN_FLIGHT

    def _begun(self) -> list[dict[str, Any]]:
        """Return what the model had said before, where the request goes on with a paused answer."""
        last = merge(self._parameters.messages)[-1]
        return last.said if last.role == "assistant" else []

    def _kept(self) -> Kept:
        previous = None if self._previous is None else self._previous.stored
        message_id = self._wire.message_id
        stored = StoredResponse(
            id=message_id,
            previous=previous,
            conversation=message_id if previous is None else previous.conversation,
            input=self.entry.input,
            # An answer that says nothing is no message.
            output=({"role": "assistant", "content": self._wire.content},) if self._wire.content else (),
            chars=0,
            body={},
        )
        now = self.state.clock().monotonic
        return Kept(stored=stored, pinned=self._pinned, paused=self._wire.paused, used=now)


def _without_thread(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "thread"}
