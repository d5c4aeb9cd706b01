"""The endpoint of the Anthropic API that is simulated: `/v1/messages`."""

from turnkeeper_ops.simulator.anthropic_errors import MessagesError, check_headers, prompt_too_long
from turnkeeper_ops.simulator.anthropic_input import Parameters, decode, read_parameters
from turnkeeper_ops.simulator.anthropic_turns import check_text, check_turns
from turnkeeper_ops.simulator.anthropic_wire import MessagesWire, read_prompt
from turnkeeper_ops.simulator.channel import Request
from turnkeeper_ops.simulator.exchange import Exchange, make_id
from turnkeeper_ops.simulator.journal import Entry
from turnkeeper_ops.simulator.state import State
from turnkeeper_ops.simulator.turns import UnknownScript
from turnkeeper_ops.simulator.wire import Headers, Prompt


class MessagesExchange(Exchange):
    """`POST /v1/messages`."""

    api = "anthropic-messages"

    def __init__(self, state: State, entry: Entry) -> None:
        super().__init__(state, entry)
        self._request_id = make_id("req")
        self._parameters: Parameters

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
        return MessagesWire(
            parameters=self._parameters,
            prompt=prompt,
            message_id=self.entry.response_id,
            request_id=self._request_id,
            make_id=make_id,
        )

    def too_long(self, prompt: Prompt) -> MessagesError:
        """Say that the prompt does not fit."""
        message = prompt_too_long(prompt.input_tokens, self.state.settings.context_tokens)
        return MessagesError(message, request_id=self._request_id)

    def unknown_script(self, error: UnknownScript) -> MessagesError:
        """Say that there is no such script."""
        return MessagesError(f"messages: {error}", request_id=self._request_id)

    def _read(self, request: Request) -> Prompt:
        check_headers(request.headers, self.state.settings.api_key)
        given = decode(request.body)
        self._parameters = read_parameters(given)
        self.entry.model = self._parameters.model
        self.entry.stream = bool(self._parameters.stream)
        self.entry.input = tuple(given["messages"])
        for block in self._parameters.system or ():
            check_text(block, "system")
        check_turns(self._parameters.messages)
        return read_prompt(self._parameters)
