"""What may be a turn, and in which words the rest is refused."""

import hashlib
import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.exceptions import InvalidRequest
from turnkeeper.messages import Image, Text, ToolResult
from turnkeeper.requests import MAX_TEXT_BYTES, TurnRequest
from turnkeeper.states import OnBusy

CHAT = UUID(int=1)


def refusal(**content: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        TurnRequest.parse(content)
    return str(caught.value)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


class TestInput:
    def test_text_becomes_one_part(self) -> None:
        request = TurnRequest.parse({"text": "Hello"})

        assert request.input == (Text(text="Hello"),)

    def test_parts_are_taken_as_they_are(self) -> None:
        parts = (Image(url="https://example.org/a.png"), ToolResult(call_id="call_1", output=""))

        request = TurnRequest.parse({"parts": [part.model_dump() for part in parts]})

        assert request.input == parts

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param({}, id="nothing"),
            pytest.param({"text": None}, id="no text"),
            pytest.param({"text": "a", "parts": [{"type": "text", "text": "b"}]}, id="two inputs"),
        ],
    )
    def test_a_request_has_one_input(self, content: dict[str, Any]) -> None:
        assert refusal(**content) == "give either text or parts"

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param({"text": ""}, id="an empty text"),
            pytest.param({"text": " \n\t\u2003"}, id="a text of blanks"),
            pytest.param({"parts": [{"type": "text", "text": " "}]}, id="a blank part"),
        ],
    )
    def test_a_request_says_something(self, content: dict[str, Any]) -> None:
        assert refusal(**content) == "the text is empty; say something"

    def test_a_picture_needs_no_words(self) -> None:
        parts = [{"type": "text", "text": ""}, {"type": "image", "url": "https://example.org/a.png"}]

        assert len(TurnRequest.parse({"parts": parts}).input) == 2


class TestSize:
    def test_ten_mebibytes_are_allowed(self) -> None:
        assert TurnRequest.parse({"text": "a" * MAX_TEXT_BYTES}).text is not None

    def test_one_byte_more_is_not(self) -> None:
        assert refusal(text="a" * (MAX_TEXT_BYTES + 1)) == (
            "the input has 10,485,761 bytes and 10,485,760 are allowed; shorten it, or send it in several turns"
        )

    def test_bytes_are_counted_and_not_characters(self) -> None:
        assert "10,485,762 bytes" in refusal(text="é" * (MAX_TEXT_BYTES // 2 + 1))

    def test_all_parts_count_together(self) -> None:
        half = "a" * (MAX_TEXT_BYTES // 2)
        parts = [
            {"type": "text", "text": half},
            {"type": "tool_result", "call_id": "call_1", "output": half},
            {"type": "image", "url": "x"},
        ]

        assert "10,485,761 bytes" in refusal(parts=parts)


class TestStorable:
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param({"text": "a\0b"}, id="in the text"),
            pytest.param({"parts": [{"type": "text", "text": "\0"}]}, id="in a part"),
            pytest.param({"text": "a", "instructions": "\0"}, id="in the instructions"),
            pytest.param({"text": "a", "owner": "\0"}, id="in the owner"),
            pytest.param({"text": "a", "idempotency_key": "\0"}, id="in the key"),
            pytest.param({"text": "a", "options": {"user": "\0"}}, id="in an option"),
            pytest.param({"text": "a", "options": {"\0": 1}}, id="in an option's name"),
            pytest.param({"text": "a", "options": {"stop": [{"a": ["\0"]}]}}, id="deep in an option"),
        ],
    )
    def test_a_nul_is_refused(self, content: dict[str, Any]) -> None:
        assert "NUL character" in refusal(**content)

    @pytest.mark.parametrize(
        "half", [pytest.param("\ud83d", id="the first half"), pytest.param("\udc00", id="the second half")]
    )
    def test_half_of_a_surrogate_pair_is_refused(self, half: str) -> None:
        assert refusal(text=f"a{half}") == "the text holds half of a surrogate pair; send valid Unicode"
        assert "surrogate" in refusal(text="a", options={"user": half})

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(float("nan"), id="not a number"),
            pytest.param([float("inf")], id="infinity"),
            pytest.param({1, 2}, id="a set"),
            pytest.param(b"\xff", id="bytes"),
            pytest.param(object(), id="any object"),
            pytest.param({1: 2}, id="a number as a name"),
            pytest.param(nested(300), id="depths that no encoder follows"),
            pytest.param(nested(5000), id="depths that no stack follows"),
        ],
    )
    def test_an_option_is_json(self, value: object) -> None:
        assert refusal(text="a", options={"strange": value}).startswith("options.strange")


class TestFields:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            pytest.param({"colour": 1}, "colour: Extra inputs are not permitted", id="an unknown field"),
            pytest.param({"chat_id": "x"}, "chat_id: Input should be a valid UUID", id="no id"),
            pytest.param({"on_busy": "shout"}, "on_busy: Input should be 'queue', 'inter", id="no such manner"),
            pytest.param({"provider": ""}, "provider: String should have at least 1", id="an empty provider"),
            pytest.param({"owner": "x" * 201}, "owner: String should have at most 200", id="a long owner"),
            pytest.param({"idempotency_key": ""}, "idempotency_key: String should have", id="an empty key"),
            pytest.param({"options": []}, "options: Input should be a valid dictionary", id="options in a list"),
            pytest.param({"tools": "look"}, "tools: Input should be a valid tuple", id="one tool in no list"),
            pytest.param(
                {"background": "later"}, "background: Input should be a valid boolean", id="no yes or no"
            ),
        ],
    )
    def test_a_refusal_names_the_field(self, content: dict[str, Any], words: str) -> None:
        assert refusal(text="a", **content).startswith(words)

    @pytest.mark.parametrize("content", [None, "Hello", 7, ["text"], b"\xff"])
    def test_what_is_no_object_is_no_request(self, content: object) -> None:
        with pytest.raises(InvalidRequest, match="valid dictionary"):
            TurnRequest.parse(content)

    def test_a_refusal_does_not_repeat_the_input(self) -> None:
        assert "hunter2" not in refusal(text=["hunter2"], chat_id="hunter2", on_busy="hunter2")

    @given(st.text(st.characters(exclude_categories=[]), min_size=1))
    def test_whatever_a_field_is_called_the_refusal_is_one_line_that_can_be_stored(self, name: str) -> None:
        said = refusal(text="a", **{f"no {name}": 1})

        assert len(said.splitlines()) == 1
        assert "\0" not in said
        assert said.encode()

    def test_a_refusal_is_short_however_much_is_wrong(self) -> None:
        assert len(refusal(text="a", **{"x" * 100_000: 1})) <= 500

    def test_it_queues_behind_a_busy_chat_unless_it_says_otherwise(self) -> None:
        assert TurnRequest.parse({"text": "a"}).on_busy is OnBusy.QUEUE


class TestTools:
    @pytest.mark.parametrize(
        "names",
        [
            pytest.param(["look"], id="one"),
            pytest.param(["look", "pay", "look-up_2"], id="several"),
            pytest.param(["x" * 64, "A", "-", "_", "0"], id="long and short"),
            pytest.param(["look", "Look"], id="two that differ in their case"),
            pytest.param([], id="none at all"),
        ],
    )
    def test_names_that_every_provider_takes_are_taken_in_their_order(self, names: list[str]) -> None:
        assert TurnRequest.parse({"text": "a", "tools": names}).tools == tuple(names)

    @pytest.mark.parametrize(
        "name", ["", "x" * 65, "look up", "look.up", "look\n", "größe", "look\0", "ͼ", "*", "²"]
    )
    def test_another_name_is_refused_by_its_place(self, name: str) -> None:
        assert refusal(text="a", tools=["look", name]).startswith("tools.1: String should match pattern")

    @pytest.mark.parametrize("name", [None, 7, ["look"], {"name": "look"}])
    def test_what_is_no_name_is_refused_by_its_place(self, name: object) -> None:
        assert refusal(text="a", tools=[name]).startswith("tools.0: Input should be a valid string")

    def test_no_tool_is_named_twice(self) -> None:
        assert refusal(text="a", tools=["look", "pay", "look"]) == "tools names the same tool twice"

    def test_a_turn_that_says_nothing_of_them_leaves_it_to_its_chat_and_its_provider(self) -> None:
        request = TurnRequest.parse({"text": "a"})

        assert (request.tools, request.background) == (None, None)

    @pytest.mark.parametrize("background", [True, False, None])
    def test_a_turn_may_say_whether_it_runs_in_the_background(self, background: bool | None) -> None:
        assert TurnRequest.parse({"text": "a", "background": background}).background is background


class TestEdits:
    def test_an_edit_names_a_turn_and_no_chat(self) -> None:
        request = TurnRequest.parse({"text": "a", "edits": str(CHAT)})

        assert (request.edits, request.chat_id) == (CHAT, None)
        with pytest.raises(InvalidRequest, match="edits names a turn, and with it the chat; leave chat_id out"):
            TurnRequest.parse({"text": "a", "edits": CHAT, "chat_id": CHAT})

    @pytest.mark.parametrize("on_busy", ["interrupt", "reject"])
    def test_an_edit_has_its_own_way_with_a_busy_chat(self, on_busy: str) -> None:
        with pytest.raises(InvalidRequest, match="leave on_busy out"):
            TurnRequest.parse({"text": "a", "edits": CHAT, "on_busy": on_busy})

    def test_an_edit_stays_with_the_provider_of_the_turn(self) -> None:
        request = TurnRequest.parse({"text": "a", "edits": CHAT})

        assert request.or_default_provider("openai").provider is None


class TestDigest:
    words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)

    @given(text=words, options=st.dictionaries(words, words | st.integers() | st.none(), min_size=2))
    def test_equal_requests_have_equal_digests_however_they_were_written(
        self, text: str, options: dict[str, Any]
    ) -> None:
        reversed_options = dict(reversed(options.items()))

        first = TurnRequest.parse({"chat_id": CHAT, "text": text, "options": options})
        second = TurnRequest.parse({"options": reversed_options, "text": text, "chat_id": str(CHAT)})

        assert first.digest() == second.digest()

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"text": "b"}, id="the text"),
            pytest.param({"chat_id": UUID(int=2)}, id="the chat"),
            pytest.param({"provider": "anthropic"}, id="the provider"),
            pytest.param({"model": "m"}, id="the model"),
            pytest.param({"instructions": "Be kind."}, id="the instructions"),
            pytest.param({"options": {"temperature": 0}}, id="the options"),
            pytest.param({"owner": "ada"}, id="the owner"),
            pytest.param({"tools": ["look"]}, id="the tools"),
            pytest.param({"tools": []}, id="that there are none"),
            pytest.param({"background": True}, id="that it runs in the background"),
            pytest.param({"background": False}, id="that it does not"),
            pytest.param({"chat_id": None, "edits": CHAT}, id="that it edits"),
        ],
    )
    def test_another_request_has_another_digest(self, change: dict[str, Any]) -> None:
        usual = {"text": "a", "chat_id": CHAT}

        assert TurnRequest.parse(usual).digest() != TurnRequest.parse(usual | change).digest()

    @given(text=words, owner=words.filter(lambda name: len(name) < 200), options=st.dictionaries(words, words))
    def test_a_request_without_the_later_fields_has_the_digest_that_earlier_versions_stored(
        self, text: str, owner: str, options: dict[str, str]
    ) -> None:
        fields: dict[str, Any] = {
            "chat_id": str(CHAT),
            "text": text,
            "parts": [],
            "provider": "openai",
            "model": None,
            "instructions": None,
            "options": options,
            "owner": owner,
        }
        stored = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

        assert TurnRequest.parse(fields).digest() == stored
        assert TurnRequest.parse(fields | {"tools": None, "background": None, "edits": None}).digest() == stored

    def test_the_key_and_the_manner_are_no_part_of_what_is_asked(self) -> None:
        plain = TurnRequest.parse({"text": "a"})
        keyed = TurnRequest.parse({"text": "a", "idempotency_key": "k", "on_busy": "interrupt"})

        assert plain.digest() == keyed.digest()


class TestFallbacks:
    @pytest.mark.parametrize(
        ("written", "provider", "model"),
        [
            ("anthropic", "anthropic", None),
            ("openai/gpt-5", "openai", "gpt-5"),
            ("router/meta/llama", "router", "meta/llama"),
            ({"provider": "openai", "model": "gpt-5"}, "openai", "gpt-5"),
        ],
    )
    def test_they_are_named_in_short_or_at_length(self, written: object, provider: str, model: str | None) -> None:
        (fallback,) = TurnRequest.parse({"text": "Hi", "fallbacks": [written]}).fallbacks or ()

        assert (fallback.provider, fallback.model) == (provider, model)

    @pytest.mark.parametrize(
        "fallbacks",
        [
            ["/gpt-5"],
            [""],
            [7],
            "openai",
            [{"model": "gpt-5"}],
            ["openai"] * 11,
            ["open\0ai"],
            [{"provider": "a", "b": 1}],
        ],
    )
    def test_what_names_nobody_is_refused_in_one_line(self, fallbacks: object) -> None:
        with pytest.raises(InvalidRequest, match=r"fallbacks|NUL") as caught:
            TurnRequest.parse({"text": "Hi", "fallbacks": fallbacks})

        assert len(str(caught.value).splitlines()) == 1
