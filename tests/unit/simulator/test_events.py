"""The event series of an answer, and what each step makes of it."""

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
    Finish,
    Head,
    Reset,
    Scene,
    Send,
    Wait,
    perform,
)
from turnkeeper_ops.simulator.responses_parameters import decode
from turnkeeper_ops.simulator.responses_wire import ResponsesWire, read_prompt, read_request
from turnkeeper_ops.simulator.scripts import (
    AnswerStep,
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
    Moment,
    ResetStep,
    Spelling,
    StallStep,
    StatusStep,
    Step,
)
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.vault import Vault

SEAL = Seal("sk-1")
NOW = datetime(2026, 7, 1, 12, 0, 0, 400_000, tzinfo=UTC)


def counted_ids() -> Callable[[str], str]:
    numbers = count(1)
    return lambda prefix: f"{prefix}_{next(numbers)}"


def scene(*, stream: bool = True, **parameters: Any) -> Scene:
    body = json.dumps({"model": "m", "input": "Hello", "stream": stream, **parameters}).encode()
    request = read_request(decode(body), Vault(), SEAL)
    prompt = read_prompt(request)
    wire = ResponsesWire(
        request=request,
        prompt=prompt,
        response_id="resp_1",
        make_id=counted_ids(),
        seal=SEAL,
        now=NOW.timestamp(),
    )
    return Scene(wire=wire, prompt=prompt, now=NOW, chunk_delay_ms=20)


def performed(step: Step, **parameters: Any) -> list[Action]:
    return list(perform(step, scene(**parameters)))


def body(actions: list[Action]) -> bytes:
    return b"".join(action.data for action in actions if isinstance(action, Send))


def events(actions: list[Action]) -> list[dict[str, Any]]:
    frames = body(actions).decode().split("\n\n")
    assert frames.pop() == ""
    decoded = [json.loads(frame.partition("\ndata: ")[2]) for frame in frames]
    assert [f"event: {event['type']}" for event in decoded] == [frame.partition("\n")[0] for frame in frames]
    return decoded


def names(actions: list[Action]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events(actions)]


def deltas(actions: list[Action]) -> int:
    return sum(name.endswith(".delta") for name in names(actions))


OPENING = ["created", "in_progress"]
MESSAGE = ["output_item.added", "content_part.added"]
MESSAGE_END = ["output_text.done", "content_part.done", "output_item.done"]


def test_a_text_answer_is_the_full_series() -> None:
    answer = performed(AnswerStep(text="Hello there", chunk_chars=6))

    assert names(answer) == [
        *OPENING,
        *MESSAGE,
        "output_text.delta",
        "output_text.delta",
        *MESSAGE_END,
        "completed",
    ]
    assert [event["sequence_number"] for event in events(answer)] == list(range(10))
    assert (answer[0], answer[-1]) == (
        Head(200, {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}),
        Finish("completed"),
    )


def test_the_deltas_add_up_to_what_the_done_events_and_the_response_say() -> None:
    series = events(performed(AnswerStep(text='Größe: "5 µm"\n…', chunk_chars=3)))

    text = "".join(event["delta"] for event in series if event["type"].endswith("text.delta"))
    assert text == 'Größe: "5 µm"\n…'
    assert [event["text"] for event in series if event["type"].endswith("text.done")] == [text]
    assert series[-1]["response"]["output"][0]["content"][0]["text"] == text


def test_reasoning_search_and_calls_stand_in_the_order_in_which_they_are_replayed() -> None:
    step = AnswerStep(
        text="Hi", reasoning="Hm", search="rivers", calls=(FunctionCall(name="f", arguments={"a": 1}),)
    )

    series = events(performed(step))

    output = series[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "web_search_call", "message", "function_call"]
    assert [event["output_index"] for event in series if event["type"].endswith("item.done")] == [0, 1, 2, 3]
    assert output[3]["arguments"] == '{"a": 1}'


def test_a_search_brings_its_reasoning_along() -> None:
    output = events(performed(AnswerStep(search="rivers")))[-1]["response"]["output"]

    assert [item["type"] for item in output] == ["reasoning", "web_search_call", "message"]


def test_calls_alone_make_no_message() -> None:
    output = events(performed(AnswerStep(calls=(FunctionCall(name="f", call_id="call_9"),))))[-1]["response"][
        "output"
    ]

    assert [(item["type"], item["call_id"]) for item in output] == [("function_call", "call_9")]


@pytest.mark.parametrize(("include", "encrypted"), [(["reasoning.encrypted_content"], True), ([], False)])
def test_encrypted_reasoning_is_sent_to_those_who_ask(include: list[str], encrypted: bool) -> None:
    output = events(performed(AnswerStep(reasoning="Hm"), include=include))[-1]["response"]["output"]

    assert ("encrypted_content" in output[0]) is encrypted


def test_usage_is_counted_from_the_text() -> None:
    usage = events(performed(AnswerStep(text="x" * 8, reasoning="y" * 4), input="z" * 40))[-1]["response"]["usage"]

    assert usage["input_tokens"] == 10
    assert usage["output_tokens"] == 3
    assert usage["output_tokens_details"] == {"reasoning_tokens": 1}
    assert usage["total_tokens"] == 13


def test_the_response_is_stored_before_its_terminal_event_is_sent() -> None:
    answer = performed(AnswerStep())

    assert isinstance(answer[-3], Commit)
    assert b"response.completed" in body(answer[-2:])


def test_chunks_are_paced() -> None:
    step = AnswerStep(text="abcd", chunk_chars=1, first_delay_ms=500, chunk_delay_ms=100)

    waits = [action.seconds for action in performed(step) if isinstance(action, Wait)]

    assert waits == [0.5, 0.1, 0.1, 0.1]


def test_chunks_keep_the_servers_pace_where_the_step_sets_none() -> None:
    waits = [
        action.seconds for action in performed(AnswerStep(text="ab", chunk_chars=1)) if isinstance(action, Wait)
    ]

    assert waits == [0.02]


@pytest.mark.parametrize(
    ("at", "sent"),
    [
        pytest.param("before_first_event", [], id="before the first event"),
        pytest.param(0, [*OPENING, *MESSAGE], id="before the first chunk"),
        pytest.param(2, [*OPENING, *MESSAGE, *["output_text.delta"] * 2], id="after two chunks"),
        pytest.param(
            99, [*OPENING, *MESSAGE, *["output_text.delta"] * 4, *MESSAGE_END], id="after more than there are"
        ),
        pytest.param(
            "before_terminal", [*OPENING, *MESSAGE, *["output_text.delta"] * 4, *MESSAGE_END], id="at the end"
        ),
    ],
)
@pytest.mark.parametrize(
    ("kind", "ending"),
    [(CutStep, Cut()), (ResetStep, Reset()), (EndStep, Finish("ended_early"))],
    ids=["cut", "reset", "end"],
)
def test_an_answer_is_broken_off_at_any_moment(
    kind: Callable[..., Step], ending: Action, at: str | int, sent: list[str]
) -> None:
    actions = performed(kind(text="abcd", chunk_chars=1, at=at))

    assert (names(actions) if sent else body(actions)) == (sent or b"")
    assert actions[-1] == ending
    assert Commit() not in actions


@pytest.mark.parametrize("kind", [CutStep, ResetStep])
def test_a_connection_may_break_before_any_header(kind: Callable[..., Step]) -> None:
    assert len(performed(kind(at="before_headers"))) == 1


@pytest.mark.parametrize(
    ("at", "before"),
    [
        pytest.param("before_headers", [], id="before the headers"),
        pytest.param("before_first_event", [Head], id="before the first event"),
        pytest.param(0, [Head, *[Send] * 4], id="before the first chunk"),
        pytest.param(1, [Head, *[Send] * 5], id="in mid-answer"),
    ],
)
def test_a_stall_is_followed_by_the_rest_of_the_answer(at: Moment, before: list[type]) -> None:
    step = StallStep(text="ab", chunk_chars=1, chunk_delay_ms=0, at=at, seconds=7)

    actions = performed(step)

    place = actions.index(Wait(7.0))
    assert [type(action) for action in actions[:place]] == before
    assert names(actions) == names(performed(AnswerStep(text="ab", chunk_chars=1)))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        pytest.param(ErrorShape.NESTED, ["error"], id="nested"),
        pytest.param(ErrorShape.FLAT, ["error"], id="flat"),
        pytest.param(ErrorShape.RESPONSE_FAILED, ["failed"], id="failed"),
        pytest.param(ErrorShape.ERROR_THEN_FAILED, ["error", "failed"], id="both"),
    ],
)
def test_an_error_ends_the_stream_in_the_shape_asked_for(shape: ErrorShape, expected: list[str]) -> None:
    actions = performed(ErrorEventStep(at=2, shape=shape, code="rate_limit_exceeded", message="Slow down"))

    assert names(actions)[-len(expected) :] == expected
    assert deltas(actions) == 2
    assert [event["sequence_number"] for event in events(actions)] == list(range(len(events(actions))))
    assert b"Slow down" in body(actions)
    assert b"rate_limit_exceeded" in body(actions)


def test_a_nested_error_is_not_flat() -> None:
    nested, flat = (events(performed(ErrorEventStep(shape=shape)))[-1] for shape in ("nested", "flat"))

    assert nested["error"]["code"] == flat["code"] == "server_error"
    assert "error" not in flat


@pytest.mark.parametrize(("kept", "output"), [(2, 1), (0, 0)], ids=["some text", "nothing visible"])
def test_an_incomplete_answer_keeps_its_first_chunks_and_says_why(kept: int, output: int) -> None:
    actions = performed(IncompleteStep(text="abcd", chunk_chars=1, at=kept, reason="content_filter"))

    response = events(actions)[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "content_filter"},
    )
    assert (deltas(actions), len(response["output"])) == (kept, output)
    assert Commit() in actions


def test_an_empty_answer_completes_without_output() -> None:
    actions = performed(EmptyStep())

    assert names(actions) == [*OPENING, "completed"]
    assert events(actions)[-1]["response"]["output"] == []


def test_a_malformed_frame_stands_between_proper_ones() -> None:
    actions = performed(MalformedStep(text="abcd", chunk_chars=1, at=2, frame="data: {oops\n\n"))

    assert b"data: {oops\n\nevent: response.output_text.delta" in body(actions)
    assert actions[-1] == Finish("malformed")


def test_a_drip_tears_frames_and_loses_nothing() -> None:
    drip = performed(DripStep(text="Größe", bytes_per_write=3))

    assert max(len(action.data) for action in drip if isinstance(action, Send)) == 3
    assert body(drip) == body(performed(AnswerStep(text="Größe")))
    assert sum(action.chunks for action in drip if isinstance(action, Send)) == 1


def test_html_comes_under_200() -> None:
    actions = performed(HtmlStep(title="Hotel Wi-Fi"))

    assert actions[0] == Head(200, {"Content-Type": "text/html"})
    assert b"<title>Hotel Wi-Fi</title>" in body(actions)


@pytest.mark.parametrize(
    ("step", "headers"),
    [
        pytest.param(StatusStep(status=429), {"Retry-After": "1"}, id="as the provider would"),
        pytest.param(StatusStep(status=429, headers={}), {}, id="none"),
        pytest.param(
            StatusStep(status=503, headers={"retry-after-ms": "1500"}), {"retry-after-ms": "1500"}, id="given"
        ),
        pytest.param(
            StatusStep(status=503, retry_after_date_seconds=2),
            {"Retry-After": "Wed, 01 Jul 2026 12:00:03 GMT"},
            id="a date, never early",
        ),
    ],
)
def test_a_status_comes_with_its_headers(step: StatusStep, headers: dict[str, str]) -> None:
    head = performed(step)[0]

    assert head == Head(step.status, {"Content-Type": "application/json", **headers})


@pytest.mark.parametrize(
    ("given", "content_type", "sent"),
    [
        pytest.param({"a": 1}, "application/json", b'{"a": 1}', id="an object is JSON"),
        pytest.param("<p>", "text/html", b"<p>", id="a string stands as it is"),
        pytest.param(None, "application/json", b"server_is_overloaded", id="none is the provider's"),
    ],
)
def test_a_status_comes_with_its_body(given: object, content_type: str, sent: bytes) -> None:
    actions = performed(StatusStep(status=503, body=given))

    assert actions[0] == Head(503, {"Content-Type": content_type})
    assert sent in body(actions)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 418, 422, 429, 500, 502, 503, 504, 529])
def test_every_status_has_something_to_say(status: int) -> None:
    assert body(performed(StatusStep(status=status)))


@pytest.mark.parametrize("spelling", list(Spelling))
def test_a_lost_anchor_has_a_status_and_a_body_in_every_spelling(spelling: Spelling) -> None:
    actions = performed(LostAnchorStep(spelling=spelling, even_unchained=True))

    head = actions[0]
    assert isinstance(head, Head)
    assert head.status in {400, 404}
    assert json.loads(body(actions))


def test_a_lost_anchor_may_come_under_another_status_or_inside_the_stream() -> None:
    moved = performed(LostAnchorStep(status=404))
    inside = performed(LostAnchorStep(in_stream=True))

    assert isinstance(moved[0], Head)
    assert moved[0].status == 404
    assert names(inside) == [*OPENING, "error"]
    assert events(inside)[-1]["error"]["code"] == "previous_response_not_found"
    assert inside[-1] == Finish("lost_anchor")


def test_without_a_stream_the_answer_is_one_json_body() -> None:
    response = json.loads(body(performed(AnswerStep(text="Hello there"), stream=False)))

    assert response["status"] == "completed"
    assert response["output"][0]["content"][0]["text"] == "Hello there"


@pytest.mark.parametrize("step", [CutStep(at=2), EndStep(at=2), MalformedStep(at=2)], ids=lambda step: step.type)
def test_without_a_stream_a_fault_breaks_the_json(step: Step) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(body(performed(step, stream=False)))


def test_without_a_stream_an_error_is_a_status_or_a_failed_response() -> None:
    status = performed(ErrorEventStep(code="server_error"), stream=False)
    failed = performed(ErrorEventStep(shape=ErrorShape.RESPONSE_FAILED), stream=False)

    assert isinstance(status[0], Head)
    assert status[0].status == 500
    assert json.loads(body(failed))["status"] == "failed"


def test_reasoning_that_is_not_shown_has_no_summary() -> None:
    actions = performed(AnswerStep(reasoning="Hm", redacted=True), include=["reasoning.encrypted_content"])

    output = events(actions)[-1]["response"]["output"]
    assert (output[0]["type"], output[0]["summary"]) == ("reasoning", [])
    assert SEAL.fits(output[0]["encrypted_content"])
    assert b"Hm" not in body(actions)


def test_a_search_that_is_interrupted_is_whole_here_and_nothing_follows_it() -> None:
    actions = performed(IncompleteStep(search="rivers", in_search=True, reason="pause_turn"))

    output = events(actions)[-1]["response"]["output"]
    assert [(item["type"], item.get("status")) for item in output] == [
        ("reasoning", None),
        ("web_search_call", "completed"),
    ]


@pytest.mark.parametrize(
    ("chunks", "tokens"),
    [
        pytest.param(1, (1, 1), id="reasoning alone"),
        pytest.param(2, (2, 1), id="a piece of the text"),
        pytest.param(3, (3, 1), id="the text"),
        pytest.param(9, (4, 1), id="a call too"),
    ],
)
def test_a_cancelled_response_says_what_had_been_said_until_then(chunks: int, tokens: tuple[int, int]) -> None:
    call = FunctionCall(name="f", arguments="{}")
    cancelled = scene(background=True)
    list(perform(AnswerStep(text="abcdefgh", chunk_chars=4, reasoning="Hm", calls=(call,)), cancelled))
    assert isinstance(cancelled.wire, ResponsesWire)

    response = cancelled.wire.cancelled(chunks)

    usage = response["usage"]
    assert response["status"] == "cancelled"
    assert (usage["output_tokens"], usage["output_tokens_details"]["reasoning_tokens"]) == tokens


def test_a_response_that_is_cancelled_before_it_says_anything_has_no_usage() -> None:
    cancelled = scene(background=True)
    assert isinstance(cancelled.wire, ResponsesWire)

    assert cancelled.wire.cancelled(0)["usage"] is None
