"""The control API under `/simulator`: what tests and demos arrange, and what they look at afterwards.

It asks for no key; the simulator listens on the loopback interface unless it is told otherwise.
"""

import json
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from turnkeeper_ops.simulator.limits import Limit
from turnkeeper_ops.simulator.ready_made import ready_made_scripts
from turnkeeper_ops.simulator.scripts import Script, ScriptName
from turnkeeper_ops.simulator.state import State
from turnkeeper_ops.simulator.wire import PlainResponse, Refused

Query = Mapping[str, str]


class ControlError(Refused):
    """A request to the control API that cannot be done, in one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def plain(self) -> PlainResponse:
        """Return the response that says so."""
        return PlainResponse(status=self.status, body={"error": self.message}, headers={})


def health(state: State) -> PlainResponse:
    """Tell that the simulator is up, and what it holds."""
    return _ok(
        {
            "status": "ok",
            "requests": len(state.journal),
            "in_flight": state.journal.in_flight,
            "generations": state.journal.generations,
            "responses": sum(map(len, state.accounts.values())),
            "scripts": len(state.book.scripts),
            "started_at": state.started.wall.isoformat(),
        }
    )


def list_scripts(state: State) -> PlainResponse:
    """Return every script by name."""
    ready_made = ready_made_scripts()
    return _ok(
        {
            "scripts": {
                name: {"ready_made": ready_made.get(name) == script, **_script_as_json(script)}
                for name, script in sorted(state.book.scripts.items())
            }
        }
    )


def put_script(state: State, name: str, body: bytes) -> PlainResponse:
    """Add or replace a script.

    Raises:
        ControlError: 422, with the first thing that is wrong.
    """
    try:
        script = parse_script(name, json.loads(body))
    except ValueError as error:
        raise ControlError(422, f"script '{name}' is not valid: {sentence(error)}") from error
    state.book.put(name, script)
    return _ok({"name": name, "steps": len(script.steps)})


def delete_script(state: State, name: str) -> PlainResponse:
    """Remove a script; a ready-made one comes back with the next start."""
    if not state.book.remove(name):
        raise ControlError(404, f"there is no script '{name}'")
    return _ok({"name": name, "deleted": True})


def put_limit(state: State, body: bytes) -> PlainResponse:
    """Limit what each key may ask of each model, from now on and with full buckets.

    Raises:
        ControlError: 422, with the first thing that is wrong.
    """
    try:
        limit = Limit.model_validate(json.loads(body))
    except ValueError as error:
        raise ControlError(422, f"the limit is not valid: {sentence(error)}") from error
    state.limiter.set(limit)
    return _ok(limit.model_dump())


def delete_limit(state: State) -> PlainResponse:
    """Let every key ask as much as it likes."""
    was_limited = state.limiter.limit is not None
    state.limiter.set(None)
    return _ok({"deleted": was_limited})


def list_requests(state: State, query: Query) -> PlainResponse:
    """Return the log, oldest first; `turn` and `after` select, `items=0` leaves input and history out."""
    try:
        after = int(query.get("after", "0"))
    except ValueError as error:
        raise ControlError(422, f"'after' must be a number, not '{query['after']}'") from error
    entries = state.journal.select(turn=query.get("turn"), after=after)
    items = query.get("items") != "0"
    return _ok({"requests": [entry.as_json(items=items) for entry in entries]})


def clear_requests(state: State) -> PlainResponse:
    """Empty the log."""
    return _ok({"cleared": state.journal.clear()})


def clear_responses(state: State) -> PlainResponse:
    """Drop every stored response and every message of a thread, so that every chain is broken."""
    return _ok({"dropped": sum(account.clear() for account in state.accounts.values())})


def parse_script(name: str, given: object) -> Script:
    """Check a script's name and read its steps.

    Raises:
        ValueError: Something in it is wrong.
    """
    TypeAdapter(ScriptName).validate_python(name)
    return Script.model_validate(given)


def sentence(error: ValueError) -> str:
    """Say the first thing that is wrong, and where."""
    if not isinstance(error, ValidationError):
        return f"{error}"
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _script_as_json(script: Script) -> dict[str, object]:
    """Return the script as a person would have written it, without the defaults."""
    steps = [{"type": step.type, **step.model_dump(mode="json", exclude_defaults=True)} for step in script.steps]
    return {"about": script.about, "steps": steps, "repeat_last": script.repeat_last}


def _ok(body: object) -> PlainResponse:
    return PlainResponse(status=200, body=body, headers={})
