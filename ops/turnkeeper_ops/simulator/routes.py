"""Which request goes where."""

from urllib.parse import parse_qsl, unquote, urlsplit

from turnkeeper_ops.simulator import control, responses_api
from turnkeeper_ops.simulator.actions import Finish, Head, Send, respond
from turnkeeper_ops.simulator.connection import Connection, Request
from turnkeeper_ops.simulator.control import ControlError
from turnkeeper_ops.simulator.openai_errors import ApiError, check_key
from turnkeeper_ops.simulator.state import State
from turnkeeper_ops.simulator.wire import PlainResponse


async def handle(state: State, request: Request, connection: Connection) -> None:
    """Answer one request."""
    url = urlsplit(request.target)
    path = tuple(unquote(part) for part in url.path.strip("/").split("/"))
    if (request.method, path) == ("POST", ("v1", "responses")):
        await responses_api.create(state, request, connection)
        return
    try:
        if path[0] == "simulator":
            plain = _control(state, request, path[1:], dict(parse_qsl(url.query)))
        else:
            plain = _openai(state, request, path)
    except (ApiError, ControlError) as error:
        plain = error.plain()
    await _send(plain, connection)


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
        case "GET", ("requests",):
            return control.list_requests(state, query)
        case "DELETE", ("requests",):
            return control.clear_requests(state)
        case "DELETE", ("responses",):
            return control.clear_responses(state)
        case _:
            raise ControlError(404, f"there is no {request.method} {request.target}")


def _openai(state: State, request: Request, path: tuple[str, ...]) -> PlainResponse:
    check_key(request.headers.get("authorization"), state.settings.api_key)
    match request.method, path:
        case "GET", ("v1", "models"):
            return responses_api.models(state)
        case "GET", ("v1", "responses", response_id):
            return responses_api.retrieve(state, response_id)
        case "DELETE", ("v1", "responses", response_id):
            return responses_api.delete(state, response_id)
        case _:
            raise ApiError(f"Invalid URL ({request.method} {request.target})", status=404)


async def _send(plain: PlainResponse, connection: Connection) -> None:
    for action in respond(plain, outcome="completed"):
        match action:
            case Head(status, headers):
                connection.begin(status, [*responses_api.response_headers().items(), *headers.items()])
            case Send(data):
                connection.write(data)
            case Finish():
                await connection.finish()
