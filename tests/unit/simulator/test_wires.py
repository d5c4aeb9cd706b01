"""The same scripts strike every API: each fault leaves in each wire format what it is meant to leave."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from turnkeeper_ops.simulator.actions import (
    Action,
    Commit,
    Cut,
    Ending,
    Finish,
    Head,
    Reset,
    Scene,
    Send,
    Wait,
    perform,
)
from turnkeeper_ops.simulator.anthropic_input import read_parameters
from turnkeeper_ops.simulator.anthropic_wire import MessagesWire
from turnkeeper_ops.simulator.anthropic_wire import read_prompt as read_messages
from turnkeeper_ops.simulator.chat_wire import ChatWire
from turnkeeper_ops.simulator.chat_wire import read_prompt as read_chat
from turnkeeper_ops.simulator.ready_made import ready_made_scripts
from turnkeeper_ops.simulator.responses_parameters import decode
from turnkeeper_ops.simulator.responses_wire import ResponsesWire, read_request
from turnkeeper_ops.simulator.responses_wire import read_prompt as read_responses
from turnkeeper_ops.simulator.scripts import (
    AnswerStep,
    Complaint,
    CutStep,
    DripStep,
    EmptyStep,
    EndStep,
    ErrorEventStep,
    ErrorShape,
    FunctionCall,
    HtmlStep,
    IncompleteStep,
    LostAnchorStep,
    MalformedStep,
    Missing,
    ResetStep,
    Spelling,
    StallStep,
    StatusStep,
    Step,
)
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.vault import Vault
from turnkeeper_ops.simulator.wire import Prompt, Wire

SEAL = Seal("sk-1")
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
SAID = [{"role": "user", "content": "Hello"}]

MakeScene = Callable[[bool], Scene]


def make_id() -> Callable[[str], str]:
    numbers = count(1)
    return lambda prefix: f"{prefix}_{next(numbers)}"


def scene(wire: Wire, prompt: Prompt) -> Scene:
    return Scene(wire=wire, prompt=prompt, now=NOW, chunk_delay_ms=0)


def responses(stream: bool) -> Scene:
    request = read_request(
        decode(json.dumps({"model": "m", "input": "Hello", "stream": stream}).encode()), Vault(), SEAL
    )
    prompt = read_responses(request)
    wire = ResponsesWire(
        request=request, prompt=prompt, response_id="resp_1", make_id=make_id(), seal=SEAL, now=NOW.timestamp()
    )
    return scene(wire, prompt)


def chat(stream: bool) -> Scene:
    prompt = read_chat(SAID)
    parameters = {"model": "m", "messages": SAID, "stream": stream}
    wire = ChatWire(
        parameters=parameters,
        prompt=prompt,
        completion_id="chatcmpl-1",
        make_id=make_id(),
        now=NOW.timestamp(),
    )
    return scene(wire, prompt)


def messages(stream: bool) -> Scene:
    parameters = read_parameters({"model": "m", "max_tokens": 9, "messages": SAID, "stream": stream})
    prompt = read_messages(parameters)
    wire = MessagesWire(
        parameters=parameters,
        prompt=prompt,
        message_id="msg_1",
        request_id="req_1",
        make_id=make_id(),
        seal=SEAL,
    )
    return scene(wire, prompt)


@pytest.fixture(params=[responses, chat, messages], ids=["responses", "chat", "messages"])
def make(request: pytest.FixtureRequest) -> MakeScene:
    made: MakeScene = request.param
    return made


def performed(step: Step, make: MakeScene, *, stream: bool = True) -> list[Action]:
    return list(perform(step, make(stream)))


def body(actions: list[Action]) -> bytes:
    return b"".join(action.data for action in actions if isinstance(action, Send))


def terminal(make: MakeScene) -> bytes:
    """Return the end of a proper stream."""
    whole = performed(AnswerStep(text="abcd", chunk_chars=1), make)
    return next(action.data for action in reversed(whole) if isinstance(action, Send))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_proper_answer_is_stored_before_its_end_is_sent(make: MakeScene, stream: bool) -> None:
    actions = performed(AnswerStep(text="abcd", chunk_chars=1), make, stream=stream)

    assert [type(action) for action in actions[-3:]] == [Commit, Send, Finish]
    assert sum(action.chunks for action in actions if isinstance(action, Send)) == 4


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("step", "ending"),
    [
        pytest.param(CutStep(text="abcd", chunk_chars=1), Cut(), id="cut"),
        pytest.param(ResetStep(text="abcd", chunk_chars=1), Reset(), id="reset"),
        pytest.param(EndStep(text="abcd", chunk_chars=1), Finish("ended_early"), id="end"),
        pytest.param(EndStep(text="abcd", chunk_chars=1, at=2), Finish("ended_early"), id="end in mid-answer"),
    ],
)
def test_what_breaks_off_has_no_end_and_is_not_stored(
    make: MakeScene, step: Step, ending: Action, stream: bool
) -> None:
    whole = body(performed(AnswerStep(text="abcd", chunk_chars=1), make, stream=stream))

    actions = performed(step, make, stream=stream)

    assert actions[-1] == ending
    assert Commit() not in actions
    assert whole.startswith(body(actions))
    assert body(actions) != whole


def test_a_stall_and_a_drip_lose_nothing(make: MakeScene) -> None:
    whole = body(performed(AnswerStep(text="Größe"), make))

    stalled = performed(StallStep(text="Größe", at=1, seconds=7), make)

    assert body(stalled) == whole == body(performed(DripStep(text="Größe", bytes_per_write=3), make))
    assert Wait(7) in stalled


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_malformed_frame_cannot_be_decoded(make: MakeScene, stream: bool) -> None:
    torn = body(performed(MalformedStep(text="abcd", chunk_chars=1, at=2), make, stream=stream))

    whole = body(performed(AnswerStep(text="abcd", chunk_chars=1), make, stream=stream))
    frame = make(stream).wire.torn_frame()
    assert torn.replace(frame, b"") == whole
    with pytest.raises(json.JSONDecodeError):
        json.loads(frame.partition(b"data: ")[2])


@pytest.mark.parametrize("shape", list(ErrorShape))
def test_an_error_comes_in_place_of_the_end(make: MakeScene, shape: ErrorShape) -> None:
    actions = performed(ErrorEventStep(text="abcd", chunk_chars=1, at=2, shape=shape, message="Slow down"), make)

    assert sum(action.chunks for action in actions if isinstance(action, Send)) == 2
    assert b"Slow down" in body(actions)
    assert terminal(make) not in body(actions)
    assert actions[-1] == Finish("error_event")


@pytest.mark.parametrize("shape", list(ErrorShape))
def test_without_a_stream_an_error_is_one_json_body(make: MakeScene, shape: ErrorShape) -> None:
    actions = performed(ErrorEventStep(shape=shape, message="Slow down"), make, stream=False)

    assert json.loads(body(actions))["error"]["message"] == "Slow down"


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 418, 429, 500, 502, 503, 504, 529])
def test_every_status_has_something_to_say(make: MakeScene, status: int) -> None:
    actions = performed(StatusStep(status=status), make)

    assert isinstance(actions[0], Head)
    assert (actions[0].status, bool(body(actions))) == (status, True)
    hint = {name.lower(): value for name, value in actions[0].headers.items()}.get("retry-after")
    assert hint == ("1" if status == 429 else None)


@pytest.mark.parametrize("complaint", list(Complaint))
def test_a_complaint_differs_from_what_its_status_usually_means(make: MakeScene, complaint: Complaint) -> None:
    usual, complained = (
        body(performed(StatusStep(status=429, complaint=each), make)) for each in (None, complaint)
    )

    assert json.loads(usual) != json.loads(complained)


@pytest.mark.parametrize("missing", list(Missing))
def test_half_an_end_is_less_than_the_end(make: MakeScene, missing: Missing) -> None:
    actions = performed(EndStep(text="abcd", chunk_chars=1, missing=missing), make)

    assert not body(actions).endswith(terminal(make))
    assert Commit() not in actions


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_call_may_be_cut_in_the_middle_of_its_arguments(make: MakeScene, stream: bool) -> None:
    call = FunctionCall(name="f", arguments={"city": "Oslo"})

    actions = performed(IncompleteStep(calls=(call,), chunk_chars=5, at=1), make, stream=stream)

    assert (b"cit" in body(actions), b"Oslo" in body(actions)) == (True, False)
    assert actions[-1] == Finish("incomplete")


def test_nothing_and_a_web_page_come_under_200(make: MakeScene) -> None:
    empty, page = performed(EmptyStep(), make), performed(HtmlStep(), make)

    assert (empty[-1], body(empty) != b"") == (Finish("completed"), True)
    assert page[0] == Head(200, {"Content-Type": "text/html"})


def test_an_anchor_is_lost_to_those_who_ask_for_it(make: MakeScene) -> None:
    plain, inside = performed(LostAnchorStep(), make), performed(LostAnchorStep(in_stream=True), make)

    assert isinstance(plain[0], Head)
    assert plain[0].status in {400, 404}
    assert inside[0] == performed(AnswerStep(), make)[0]
    assert plain[-1] == inside[-1] == Finish("lost_anchor")


@pytest.mark.parametrize("name", sorted(ready_made_scripts()))
def test_every_ready_made_script_can_be_performed(make: MakeScene, name: str) -> None:
    for step in ready_made_scripts()[name].steps:
        for stream in (True, False):
            ending: Any = performed(step, make, stream=stream)[-1]
            assert isinstance(ending, Ending)


def test_a_novel_answer_ends_like_any_other(make: MakeScene) -> None:
    novel = performed(AnswerStep(text="abcd", chunk_chars=1, novel=True), make)

    assert [type(action) for action in novel[-3:]] == [Commit, Send, Finish]
    assert sum(action.chunks for action in novel if isinstance(action, Send)) == 4
    assert b"novel" in body(novel)


def test_a_novel_answer_that_comes_whole_has_new_fields(make: MakeScene) -> None:
    novel, plain = (
        json.loads(body(performed(AnswerStep(novel=each), make, stream=False))) for each in (True, False)
    )

    assert set(novel) - set(plain) == {"novel"}
    assert set(novel["usage"]) - set(plain["usage"]) == {"novel_tokens", "novel_tokens_details"}


def test_reasoning_that_is_not_shown_is_not_sent(make: MakeScene) -> None:
    for stream in (True, False):
        assert b"Hm" not in body(performed(AnswerStep(reasoning="Hm", redacted=True), make, stream=stream))


@pytest.mark.parametrize("spelling", list(Spelling))
def test_an_anchor_is_lost_in_every_spelling(make: MakeScene, spelling: Spelling) -> None:
    actions = performed(LostAnchorStep(spelling=spelling), make)

    assert isinstance(actions[0], Head)
    assert actions[0].status in {400, 404}
    assert json.loads(body(actions))


@pytest.mark.parametrize("spelling", [each for each in Spelling if each.value.startswith("thread_")])
def test_a_code_of_threads_is_told_inside_the_stream_too(spelling: Spelling) -> None:
    plain, inside = (
        body(performed(LostAnchorStep(spelling=spelling, in_stream=each), messages)) for each in (False, True)
    )

    told = json.loads(inside.decode().rpartition("data: ")[2])
    assert told == json.loads(plain)
    assert told["error"]["details"] == {"error_code": spelling.value}
