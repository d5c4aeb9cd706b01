"""What another provider wrote: its words stay, its secrets go, and its calls keep their results."""

from typing import Any

import pytest

from turnkeeper.messages import Message, Part, Parts, Reasoning, Source, Text, ToolCall, ToolResult, WebSearch
from turnkeeper_worker.replay import MAX_CALL_ID_CHARS, Reader, Said, plain_name, readable_by, repair

HELLO = Text(text="Hello")
SEARCH = WebSearch(id="srvtoolu_1", sources=(Source(url="https://example.org/", encrypted="ZW5j"),))


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def assistant(*parts: Part) -> Message:
    return Message(role="assistant", parts=parts)


def call(call_id: str) -> ToolCall:
    return ToolCall(call_id=call_id, name="look", arguments="{}")


def result(call_id: str) -> ToolResult:
    return ToolResult(call_id=call_id, output="sunny")


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(Reasoning(id="rs_1", encrypted="gAAAAA"), id="encrypted reasoning"),
        pytest.param(Reasoning(text="Hm", signature="c2Vh"), id="a sealed thought"),
        pytest.param(Reasoning(redacted="ZGF0YQ"), id="a redacted thought"),
        pytest.param(Reasoning(text="Hm", told_in="reasoning_content"), id="an open thought"),
        pytest.param(SEARCH, id="a search"),
    ],
)
def test_what_only_its_writer_can_read_goes_and_the_words_stay(secret: Part) -> None:
    history = [Said(user(HELLO)), Said(assistant(secret, HELLO), "theirs")]

    assert readable_by(history, Reader("ours", "seal")) == (user(HELLO), assistant(HELLO))
    assert readable_by(history, Reader("theirs", "seal")) == (user(HELLO), assistant(secret, HELLO))


def test_a_foreign_call_and_its_result_get_an_id_that_everybody_takes() -> None:
    strange = "functions.look:0"
    history = [Said(assistant(call(strange)), "theirs"), Said(user(result(strange)))]

    renamed = readable_by(history, Reader("ours", "seal"))

    plain = plain_name(strange, MAX_CALL_ID_CHARS)
    assert renamed == (assistant(call(plain)), user(result(plain)))
    assert repair(renamed) == renamed


def test_our_own_ids_stay_however_strange() -> None:
    strange = "call_" + "x" * 100
    history = [Said(assistant(call(strange)), "ours"), Said(user(result(strange)))]

    assert readable_by(history, Reader("ours", "seal")) == (assistant(call(strange)), user(result(strange)))


def test_a_part_that_is_not_its_sides_to_say_goes() -> None:
    history = [user(HELLO, call("1"), Reasoning(text="Hm")), assistant(HELLO, result("1"))]

    assert repair(history) == (user(HELLO), assistant(HELLO))


@pytest.mark.parametrize(
    "stored",
    [
        {"type": "reasoning", "text": "Hm", "id": "rs_1", "encrypted": "gAAAAA"},
        {"type": "web_search", "id": "ws_1", "action": {"type": "search", "query": "rivers"}},
    ],
)
def test_what_was_stored_before_there_were_other_providers_still_reads(stored: dict[str, Any]) -> None:
    (part,) = Parts.validate_python([stored])

    assert part.model_dump(exclude_none=True) == stored


class TestPlainNames:
    @pytest.mark.parametrize("name", ["", "call_1", "toolu_01-A", "x" * 40])
    def test_what_everybody_takes_stays(self, name: str) -> None:
        assert plain_name(name, 40) == name

    @pytest.mark.parametrize("name", ["functions.look:0", "x" * 41, "näh", "a b", "a\n"])
    def test_what_is_strange_becomes_plain_and_stays_so(self, name: str) -> None:
        plain = plain_name(name, 40)

        assert plain != name
        assert len(plain) <= 40
        assert plain_name(plain, 40) == plain

    def test_names_that_look_alike_stay_apart(self) -> None:
        assert plain_name("a.b", 40) != plain_name("a:b", 40)


SEALED = [
    pytest.param(Reasoning(id="rs_1", encrypted="gAAAAA"), id="encrypted reasoning"),
    pytest.param(Reasoning(text="Hm", signature="c2Vh"), id="a sealed thought"),
    pytest.param(Reasoning(redacted="ZGF0YQ"), id="a redacted thought"),
    pytest.param(SEARCH, id="a search with encrypted sources"),
]


@pytest.mark.parametrize("sealed", SEALED)
def test_what_the_same_provider_sealed_under_another_key_goes(sealed: Part) -> None:
    history = [Said(assistant(sealed, HELLO), "ours", "their key")]

    assert readable_by(history, Reader("ours", "our key")) == (assistant(HELLO),)
    assert readable_by(history, Reader("ours", "their key")) == (assistant(sealed, HELLO),)


@pytest.mark.parametrize("sealed", SEALED)
def test_nothing_sealed_is_sent_to_a_reader_who_just_refused_it(sealed: Part) -> None:
    history = [Said(assistant(sealed, HELLO), "ours", "our key")]

    assert readable_by(history, Reader("ours", None)) == (assistant(HELLO),)


def test_under_another_key_the_rest_stays_as_it_is() -> None:
    thought = Reasoning(text="Hm", told_in="reasoning_content")
    strange = call("functions.look:0")
    history = [Said(assistant(thought, strange), "ours", "their key")]

    assert readable_by(history, Reader("ours", "our key")) == (assistant(thought, strange),)
