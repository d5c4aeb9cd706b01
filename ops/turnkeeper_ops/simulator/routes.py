"""Which request goes where."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from turnkeeper_ops.simulator import control, responses_api
from turnkeeper_ops.simulator.actions import Finish, Head, Send, respond
from turnkeeper_ops.simulator.anthropic_api import MessagesExchange
from turnkeeper_ops.simulator.channel import Channel, Request
from turnkeeper_ops.simulator.chat_api import ChatExchange
from turnkeeper_ops.simulator.control import ControlError
from turnkeeper_ops.simulator.exchange import Exchange, answer, make_id
from turnkeeper_ops.simulator.openai_errors import ApiError, check_key, response_headers
from turnkeeper_ops.simulator.responses_api import ResponsesExchange
from turnkeeper_ops.simulator.state import Account, State
from turnkeeper_ops.simulator.wire import PlainResponse, Refused

_EXCHANGES: Mapping[tuple[str, ...], type[Exchange]] = {
    ("v1", "chat", "completions"): ChatExchange,
    ("v1", "messages"): MessagesExchange,
    ("v1", "responses"): ResponsesExchange,
}
"""What is posted to the model."""


async def handle(state: State, request: Request, connection: Channel) -> None:
    """Answer one request."""
    url = urlsplit(request.target)
    path = tuple(unquote(part) for part in url.path.strip("/").split("/"))
    if request.method == "POST" and path in _EXCHANGES:
        await answer(_EXCHANGES[path], state, request, connection)
        return
    query = dict(parse_qsl(url.query))
    try:
        if path[0] == "simulator":
            plain = _control(state, request, path[1:], query)
        elif _is_resume(request, path, query):
            await responses_api.resume(state, _account(state, request), path[2], query, connection)
            return
        else:
            plain = _openai(state, request, path)
    except Refused as refused:
        plain = refused.plain()
    await _send(plain, connection)


def _is_resume(request: Request, path: tuple[str, ...], query: Mapping[str, str]) -> bool:
    """Tell whether a response is asked for as a stream."""
    one_response = path[:2] == ("v1", "responses") and len(path) == len(("v1", "responses", "id"))
    return request.method == "GET" and one_response and query.get("stream") == "true"


def _control(  # noqa: PLR0911  # a table of routes
    state: State, request: Request, path: tuple[str, ...], query: dict[str, str]
) -> PlainResponse:
    match request.method, path:
        case "GET", ("health",):
            return control.health(state)
        case "GET", ("scripts",):
            return control.list_scripts(state)
        case "PUT", ("scripts", name):
            return control.put_script(state, name, request.body)
        case "DELETE", ("scripts", name):
            return control.delete_script(state, name)
        case "PUT", ("limit",):
            return control.put_limit(state, request.body)
        case "DELETE", ("limit",):
            return control.delete_limit(state)
        case "GET", ("requests",):
            return control.list_requests(state, query)
        case "DELETE", ("requests",):
            return control.clear_requests(state)
        case "DELETE", ("responses",):
            return control.clear_responses(state)
        case _:
            raise ControlError(404, f"there is no {request.method} {request.target}")


def _openai(state: State, request: Request, path: tuple[str, ...]) -> PlainResponse:
    account = _account(state, request)
    match request.method, path:
        case "GET", ("v1", "models"):
            return responses_api.models(state)
        case "GET", ("v1", "responses", response_id):
            return responses_api.retrieve(state, account, response_id)
        case "POST", ("v1", "responses", response_id, "cancel"):
            return responses_api.cancel(state, account, response_id)
        case "DELETE", ("v1", "responses", response_id):
            return responses_api.delete(account, response_id)
        case _:
            raise ApiError(f"Invalid URL ({request.method} {request.target})", status=404)


def _account(state: State, request: Request) -> Account:
    return state.accounts[check_key(request.headers.get("authorization"), state.accounts)]


async def _send(plain: PlainResponse, connection: Channel) -> None:
    for action in respond(plain, outcome="completed"):
        match action:
            case Head(status, headers):
                connection.begin(status, [*response_headers(make_id("req")).items(), *headers.items()])
            case Send(data):
                connection.write(data)
            case Finish():
                await connection.finish()
