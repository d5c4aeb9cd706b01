"""Scripts: what may be written in them, which step applies to a request, and the ready-made ones."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from turnkeeper_ops.simulator.control import parse_script, sentence
from turnkeeper_ops.simulator.ready_made import ready_made_scripts
from turnkeeper_ops.simulator.script_file import ScriptFileInvalid, read_script_file
from turnkeeper_ops.simulator.scripts import (
    AnswerStep,
    CutStep,
    LostAnchorStep,
    Script,
    StatusStep,
    Step,
)
from turnkeeper_ops.simulator.turns import ScriptBook, Sender, UnknownScript, named_script, sender_of
from turnkeeper_ops.simulator.wire import Prompt

NOBODY = Sender(turn=None, attempt=None)


def prompt(*texts: str, chained: bool = False) -> Prompt:
    return Prompt(user_texts=texts, tool_outputs=(), input_tokens=0, cached_tokens=0, chained=chained)


def book(*steps: Step, repeat_last: bool = False) -> ScriptBook:
    return ScriptBook({"story": Script(steps=steps, repeat_last=repeat_last)})


def taken(scripts: ScriptBook, *requests: tuple[Sender, Prompt]) -> list[tuple[str, int | None]]:
    applied = [scripts.next_step(sender, each) for sender, each in requests]
    return [(each.step.type, each.number) for each in applied]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("Tell me of rivers sim:cut", "cut", id="at the end"),
        pytest.param("sim:rate-limited, please", "rate-limited", id="before a comma"),
        pytest.param("(sim:lost-anchor)", "lost-anchor", id="in brackets"),
        pytest.param("sim:Cut", "cut", id="whatever the case"),
        pytest.param("sim:cut sim:reset", "cut", id="the first of two"),
        pytest.param("Tell me of rivers", None, id="no word"),
        pytest.param("a sim: card", None, id="no name"),
        pytest.param("prosim:cut", None, id="inside another word"),
        pytest.param("http://sim:8080/", None, id="a host and port"),
    ],
)
def test_the_word_in_the_message_names_the_script(text: str, name: str | None) -> None:
    assert named_script(prompt(text)) == name


def test_only_the_last_user_message_counts() -> None:
    assert named_script(prompt("Hello sim:cut", "And now?")) is None
    assert named_script(prompt()) is None


def test_each_request_of_a_turn_takes_the_next_step_and_then_plain_answers() -> None:
    scripts = book(StatusStep(status=503), CutStep())
    request = (Sender("turn-1", "1"), prompt("Hello sim:story"))

    assert taken(scripts, request, request, request, request) == [
        ("status", 1),
        ("cut", 2),
        ("answer", None),
        ("answer", None),
    ]


def test_a_script_may_repeat_its_last_step_for_ever() -> None:
    scripts = book(CutStep(), StatusStep(status=503), repeat_last=True)
    request = (Sender("turn-1", "1"), prompt("Hello sim:story"))

    assert taken(scripts, *[request] * 4) == [("cut", 1), ("status", 2), ("status", 2), ("status", 2)]


def test_turns_are_counted_apart_by_the_header_whatever_was_said() -> None:
    scripts = book(CutStep())
    said = prompt("Hello sim:story")

    steps = taken(scripts, (Sender("a", "1"), said), (Sender("b", "1"), said), (Sender("a", "2"), said))

    assert steps == [("cut", 1), ("cut", 1), ("answer", None)]


def test_without_the_header_the_users_words_tell_turns_apart() -> None:
    scripts = book(CutStep())

    steps = taken(
        scripts,
        (NOBODY, prompt("Hello sim:story")),
        (NOBODY, prompt("Hello sim:story", chained=True)),
        (NOBODY, prompt("Goodbye", "Hello sim:story")),
    )

    assert steps == [("cut", 1), ("answer", None), ("cut", 1)]


def test_a_lost_anchor_is_passed_over_by_a_request_that_is_not_chained() -> None:
    scripts = book(LostAnchorStep(), CutStep())
    sender = Sender("turn-1", "1")

    assert taken(scripts, (sender, prompt("sim:story"))) == [("cut", 2)]
    assert taken(scripts, (sender, prompt("sim:story", chained=True))) == [("answer", None)]


def test_a_lost_anchor_strikes_a_chained_request_and_not_its_full_replay() -> None:
    scripts = book(LostAnchorStep())
    sender = Sender("turn-1", "1")

    steps = taken(scripts, (sender, prompt("sim:story", chained=True)), (sender, prompt("sim:story")))

    assert steps == [("lost_anchor", 1), ("answer", None)]


def test_a_confused_provider_loses_anchors_that_were_never_given() -> None:
    scripts = book(LostAnchorStep(even_unchained=True))

    assert taken(scripts, (NOBODY, prompt("sim:story"))) == [("lost_anchor", 1)]


def test_a_script_that_is_put_again_begins_anew() -> None:
    scripts = book(CutStep())
    request = (Sender("turn-1", "1"), prompt("sim:story"))
    taken(scripts, request)

    scripts.put("story", Script(steps=(StatusStep(status=500),)))

    assert taken(scripts, request) == [("status", 1)]


def test_an_unknown_script_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UnknownScript, match=r"no script 'nope'\. There are: story\."):
        book(CutStep()).next_step(NOBODY, prompt("sim:nope"))


@pytest.mark.parametrize(
    ("header", "sender"),
    [
        pytest.param("7f3/2", Sender("7f3", "2"), id="turn and attempt"),
        pytest.param("7f3", Sender("7f3", None), id="turn alone"),
        pytest.param("", NOBODY, id="empty"),
    ],
)
def test_the_header_holds_the_turn_and_the_attempt(header: str, sender: Sender) -> None:
    assert sender_of({"x-client-request-id": header}) == sender


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        pytest.param({"steps": []}, "steps: Tuple should have at least 1 item", id="no steps"),
        pytest.param({}, "steps: Field required", id="steps missing"),
        pytest.param({"steps": [{"type": "cutt"}]}, "Input tag 'cutt' found", id="unknown step"),
        pytest.param({"steps": [{"type": "cut", "att": 3}]}, "steps.0.cut.att: Extra inputs", id="misspelt"),
        pytest.param({"steps": [{"type": "status", "status": 200}]}, "greater than or equal to 300", id="200"),
        pytest.param({"steps": [{"type": "cut", "at": -1}]}, "greater than or equal to 0", id="negative"),
        pytest.param({"steps": [{"type": "stall", "seconds": "soon"}]}, "valid number", id="no number"),
        pytest.param(
            {"steps": [{"type": "end", "at": 2, "missing": "done"}]}, "only be missing at", id="half a middle"
        ),
        pytest.param(
            {"steps": [{"type": "incomplete", "in_search": True}]}, "asks for a search", id="no search to stop in"
        ),
        pytest.param(
            {"steps": [{"type": "answer", "retrieval": "later"}]}, "'unavailable_once'", id="no such failure"
        ),
        pytest.param([], "valid dictionary", id="a list"),
    ],
)
def test_an_invalid_script_is_refused_in_one_line_that_says_where(given: object, complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_script("story", given)

    assert complaint in sentence(caught.value)
    assert "\n" not in sentence(caught.value)


@pytest.mark.parametrize("name", ["", "Cut", "two words", "a" * 65, "-cut"])
def test_a_script_needs_a_name_that_can_stand_in_a_message(name: str) -> None:
    with pytest.raises(ValidationError):
        parse_script(name, {"steps": [{"type": "cut"}]})


def test_a_step_is_read_with_its_defaults() -> None:
    script = parse_script("story", {"steps": [{"type": "answer"}, {"type": "cut", "at": "before_headers"}]})

    assert script.steps == (AnswerStep(), CutStep(at="before_headers"))


def test_every_ready_made_script_can_be_asked_for_and_says_what_it_does() -> None:
    for name, script in ready_made_scripts().items():
        assert named_script(prompt(f"Tell me of rivers sim:{name}")) == name
        assert script.about.endswith(".")
        assert parse_script(name, script.model_dump(mode="json")) == script


def test_the_scripts_that_the_demo_tells_of_are_there() -> None:
    named = {"rate-limited", "cut", "reset", "lost-anchor", "overloaded", "stall", "slow", "server-error"}

    assert named | {"content-filter", "quota"} <= ready_made_scripts().keys()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("scripts.json", json.dumps({"story": {"steps": [{"type": "cut"}]}}), id="JSON"),
        pytest.param("scripts.toml", '[[story.steps]]\ntype = "cut"\n', id="TOML"),
    ],
)
def test_scripts_are_read_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)

    assert read_script_file(path) == {"story": Script(steps=(CutStep(),))}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("{", "Expecting property name", id="not JSON"),
        pytest.param("[]", "names of scripts are expected", id="a list"),
        pytest.param('{"story": {"steps": [{"type": "cutt"}]}}', "script 'story' is not valid", id="invalid"),
    ],
)
def test_a_wrong_file_of_scripts_is_refused_with_its_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "scripts.json"
    path.write_text(text)

    with pytest.raises(ScriptFileInvalid, match=complaint) as caught:
        read_script_file(path)

    assert str(caught.value).startswith(str(path))


def test_a_missing_file_of_scripts_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ScriptFileInvalid, match="No such file"):
        read_script_file(tmp_path / "scripts.json")
