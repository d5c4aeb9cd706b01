"""The input of the Responses API: what is taken, and in which words the rest is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnkeeper_ops.simulator.openai_errors import ApiError, check_key
from turnkeeper_ops.simulator.openai_parameters import MAX_STRING_CHARS
from turnkeeper_ops.simulator.responses_parameters import decode
from turnkeeper_ops.simulator.responses_wire import read_prompt, read_request
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.vault import Item, StoredResponse, Vault

SEAL = Seal("sk-1")
USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
CALL = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": SEAL.close("rs_1")}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed"}


def stored(response_id: str, *output: Item, previous: StoredResponse | None = None) -> StoredResponse:
    return StoredResponse(
        id=response_id,
        previous=previous,
        conversation=previous.conversation if previous else response_id,
        input=({"type": "message", **USER},),
        output=output,
        chars=400,
        body={"id": response_id},
    )


def vault_with(*responses: StoredResponse) -> Vault:
    vault = Vault()
    for response in responses:
        vault.add(response)
    return vault


def read(vault: Vault | None = None, /, **parameters: Any) -> Any:
    body = json.dumps({"model": "m", **parameters}).encode()
    return read_request(decode(body), vault or Vault(), SEAL)


def refused(vault: Vault | None = None, /, **parameters: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(vault, **parameters)
    return caught.value


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([USER], id="a message"),
        pytest.param([USER, ASSISTANT, USER], id="a conversation"),
        pytest.param([{"role": "system", "content": "Be kind"}, USER], id="a system message"),
        pytest.param([{"role": "developer", "content": [{"type": "input_text", "text": ""}]}], id="no text"),
        pytest.param([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], id="image"),
        pytest.param([USER, CALL, OUTPUT], id="a call and its output"),
        pytest.param([USER, REASONING, CALL, OUTPUT], id="reasoning that led to a call"),
        pytest.param([USER, REASONING, SEARCH, ASSISTANT], id="a search with its reasoning"),
        pytest.param([USER, REASONING, ASSISTANT], id="reasoning that led to a message"),
    ],
)
def test_proper_input_is_taken(items: list[dict[str, Any]]) -> None:
    assert len(read(input=items).input) == len(items)


@pytest.mark.parametrize(
    ("parameters", "code", "param"),
    [
        pytest.param({"model": None, "input": "x"}, "missing_required_parameter", "model", id="no model"),
        pytest.param({"model": "no-such-x", "input": "x"}, "model_not_found", "model", id="unknown model"),
        pytest.param({}, "missing_required_parameter", "input", id="no input"),
        pytest.param({"input": ""}, "empty_string", "input", id="empty text"),
        pytest.param({"input": []}, "empty_array", "input", id="empty items"),
        pytest.param({"input": 1}, "invalid_type", "input", id="a number for input"),
        pytest.param({"input": "x", "temprature": 1}, "unknown_parameter", "temprature", id="misspelt"),
        pytest.param({"input": "x", "store": "yes"}, "invalid_type", "store", id="a string for a boolean"),
        pytest.param({"input": "x", "max_output_tokens": True}, "invalid_type", "max_output_tokens", id="bool"),
        pytest.param({"input": "x", "temperature": 3}, "decimal_above_max_value", "temperature", id="too hot"),
        pytest.param(
            {"input": "x", "max_output_tokens": 1},
            "integer_below_min_value",
            "max_output_tokens",
            id="too few",
        ),
        pytest.param({"input": "x", "metadata": {"a": 1}}, "invalid_type", "metadata.a", id="metadata"),
        pytest.param(
            {"input": "x", "metadata": {str(n): "" for n in range(17)}},
            "object_above_max_properties",
            "metadata",
            id="much metadata",
        ),
        pytest.param(
            {"input": "x", "tools": [{}]},
            "missing_required_parameter",
            "tools[0].type",
            id="a tool without type",
        ),
        pytest.param(
            {"input": "x", "tools": [{"type": "function"}]},
            "missing_required_parameter",
            "tools[0].name",
            id="a function without a name",
        ),
        pytest.param(
            {"input": "x", "prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "prompt", id="not simulated"
        ),
        pytest.param(
            {"input": "x" * (MAX_STRING_CHARS + 1)}, "string_above_max_length", "input", id="11 MB of text"
        ),
        pytest.param(
            {"input": "x", "previous_response_id": "abc"},
            "invalid_value",
            "previous_response_id",
            id="no resp_",
        ),
        pytest.param(
            {"input": "x", "previous_response_id": "resp_x"},
            "previous_response_not_found",
            "previous_response_id",
            id="unknown response",
        ),
    ],
)
def test_parameters_are_refused_with_code_and_param(parameters: dict[str, Any], code: str, param: str) -> None:
    error = refused(**parameters)

    assert (error.status, error.code, error.param) == (400, code, param)


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        pytest.param("Hello", "invalid_type", "input[0]", id="no object"),
        pytest.param({}, "missing_required_parameter", "input[0].type", id="empty"),
        pytest.param({"type": "massage"}, "invalid_value", "input[0].type", id="unknown type"),
        pytest.param({"type": ["message"]}, "invalid_value", "input[0].type", id="type is no string"),
        pytest.param({"role": "user"}, "missing_required_parameter", "input[0].content", id="no content"),
        pytest.param({"role": "robot", "content": "x"}, "invalid_value", "input[0].role", id="unknown role"),
        pytest.param({"role": "user", "content": 1}, "invalid_type", "input[0].content", id="a number"),
        pytest.param(
            {"role": "user", "content": [{"type": "output_text", "text": "x"}]},
            "invalid_value",
            "input[0].content[0]",
            id="a user does not put out",
        ),
        pytest.param(
            {"role": "assistant", "content": [{"type": "input_text", "text": "x"}]},
            "invalid_value",
            "input[0].content[0]",
            id="an assistant does not put in",
        ),
        pytest.param(
            {"role": "user", "content": [{"type": "input_text"}]},
            "missing_required_parameter",
            "input[0].content[0].text",
            id="a part without text",
        ),
        pytest.param(
            {"role": "user", "content": [{"type": "input_image"}]},
            "missing_required_parameter",
            "input[0].content[0].image_url",
            id="an image without address",
        ),
        pytest.param(
            {**CALL, "arguments": {}},
            "invalid_type",
            "input[0].arguments",
            id="arguments are JSON in a string",
        ),
        pytest.param(
            {"type": "function_call_output", "output": "x"},
            "missing_required_parameter",
            "input[0].call_id",
            id="an output of no call",
        ),
        pytest.param({**CALL, "id": "msg_1"}, "invalid_value", "input[0].id", id="an id of another kind"),
        pytest.param(
            {"type": "reasoning", "id": "rs_1"},
            "missing_required_parameter",
            "input[0].summary",
            id="reasoning without summary",
        ),
    ],
)
def test_items_are_refused_with_code_and_param(item: object, code: str, param: str) -> None:
    error = refused(input=[item])

    assert (error.status, error.code, error.param) == (400, code, param)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        pytest.param([USER, CALL], "No tool output found for function call call_1.", id="a call without output"),
        pytest.param(
            [USER, OUTPUT],
            "No tool call found for function call output with call_id call_1.",
            id="an output without call",
        ),
        pytest.param(
            [USER, OUTPUT, CALL],
            "No tool call found for function call output with call_id call_1.",
            id="an output before its call",
        ),
        pytest.param(
            [USER, CALL, CALL, OUTPUT], "Duplicate function call with call_id call_1.", id="a call twice"
        ),
        pytest.param(
            [USER, CALL, OUTPUT, OUTPUT],
            "Duplicate function call output with call_id call_1.",
            id="an output twice",
        ),
        pytest.param(
            [USER, SEARCH, ASSISTANT],
            "Item 'ws_1' of type 'web_search_call' was provided without its required 'reasoning' item: 'rs_1'.",
            id="a search without its reasoning",
        ),
        pytest.param(
            [USER, REASONING, ASSISTANT, SEARCH],
            "Item 'ws_1' of type 'web_search_call' was provided without its required 'reasoning' item: 'rs_1'.",
            id="a search away from its reasoning",
        ),
        pytest.param(
            [USER, REASONING],
            "Item 'rs_1' of type 'reasoning' was provided without its required following item.",
            id="reasoning at the end",
        ),
        pytest.param(
            [REASONING, USER],
            "Item 'rs_1' of type 'reasoning' was provided without its required following item.",
            id="reasoning before a user message",
        ),
    ],
)
def test_items_that_need_each_other_are_refused_apart(items: list[dict[str, Any]], message: str) -> None:
    error = refused(input=items)

    assert (error.status, error.param, str(error)) == (400, "input", message)


@pytest.mark.parametrize(
    "item",
    [
        pytest.param({"type": "item_reference", "id": "msg_9"}, id="a reference"),
        pytest.param({"id": "msg_9"}, id="a bare id"),
        pytest.param({"type": "reasoning", "id": "rs_9", "summary": []}, id="reasoning without its content"),
    ],
)
def test_what_is_not_stored_cannot_be_referred_to(item: dict[str, Any]) -> None:
    error = refused(input=[item, USER])

    assert error.status == 404
    assert "Items are not persisted when `store` is set to false." in str(error)


def test_a_reference_is_replaced_by_the_stored_item() -> None:
    message: Item = {"type": "message", "id": "msg_1", "role": "assistant", "content": []}
    vault = vault_with(stored("resp_1", message))

    assert read(vault, input=[{"type": "item_reference", "id": "msg_1"}, USER]).input[0] == message


def test_an_item_that_came_with_reasoning_needs_it_when_it_is_sent_by_id() -> None:
    reasoning: Item = {"type": "reasoning", "id": "rs_7", "summary": []}
    call: Item = {**CALL, "id": "fc_7"}
    vault = vault_with(stored("resp_1", reasoning, call))

    error = refused(vault, input=[USER, {"id": "fc_7"}, OUTPUT])

    assert str(error) == (
        "Item 'fc_7' of type 'function_call' was provided without its required 'reasoning' item: 'rs_7'."
    )
    assert read(vault, input=[USER, {"id": "rs_7"}, {"id": "fc_7"}, OUTPUT])
    assert read(vault, input=[USER, CALL, OUTPUT])


def test_a_chained_request_must_answer_the_calls_of_its_anchor() -> None:
    vault = vault_with(stored("resp_1", {**CALL, "id": "fc_1"}))

    error = refused(vault, input=[USER], previous_response_id="resp_1")

    assert str(error) == "No tool output found for function call call_1."
    assert read(vault, input=[OUTPUT], previous_response_id="resp_1")


def test_a_chained_prompt_holds_the_whole_conversation() -> None:
    first = stored("resp_1", {"type": "message", "id": "msg_1", **ASSISTANT})
    second = stored("resp_2", {**CALL, "id": "fc_1"}, previous=first)
    vault = vault_with(first, second)

    prompt = read_prompt(read(vault, input=[OUTPUT], previous_response_id="resp_2"))

    assert prompt.user_texts == ("Hello", "Hello")
    assert prompt.tool_outputs == ("sunny",)
    assert (prompt.chained, prompt.cached_tokens, prompt.input_tokens) == (True, 100, 102)


def test_a_chain_outlives_the_deletion_of_its_beginning() -> None:
    first = stored("resp_1")
    vault = vault_with(first, stored("resp_2", previous=first))

    vault.delete("resp_1")

    assert read_prompt(read(vault, input="x", previous_response_id="resp_2")).user_texts == ("Hello",) * 2 + ("x",)
    assert refused(vault, input="x", previous_response_id="resp_1").code == "previous_response_not_found"


def test_a_conversation_is_dropped_whole_and_alone() -> None:
    first = stored("resp_1", {"type": "message", "id": "msg_1", **ASSISTANT})
    vault = vault_with(first, stored("resp_2", previous=first), stored("resp_3"))

    vault.drop_conversation("resp_2")

    assert [vault.get(name) is None for name in ("resp_1", "resp_2", "resp_3")] == [True, True, False]
    assert vault.item("msg_1") is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": NaN}', b"[" * 100_000])
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="We could not parse the JSON body"):
        decode(body)


@pytest.mark.parametrize(
    ("authorization", "sentence"),
    [
        pytest.param(None, "You didn't provide an API key", id="none"),
        pytest.param("Basic x", "You didn't provide an API key", id="another scheme"),
        pytest.param("Bearer ", "You didn't provide an API key", id="empty"),
        pytest.param("Bearer sk-wrong-key-1234", "provided: sk-wrong*****1234. You", id="wrong, masked"),
    ],
)
def test_a_wrong_key_is_refused(authorization: str | None, sentence: str) -> None:
    with pytest.raises(ApiError, match="API key") as caught:
        check_key(authorization, ["sk-simulator"])

    assert caught.value.status == 401
    assert sentence in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = {
    "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | JSON,
    "role": st.sampled_from(["user", "assistant"]) | JSON,
    "content": st.lists(st.fixed_dictionaries({"type": st.just("input_text"), "text": JSON})) | JSON,
    "id": st.sampled_from(["rs_1", "ws_1", "msg_1"]) | JSON,
    "call_id": st.sampled_from(["call_1", "call_2"]) | JSON,
    "output": JSON,
    "arguments": JSON,
    "name": JSON,
    "summary": JSON,
}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=FIELDS), max_size=4))
def test_any_items_are_read_or_refused_but_never_crash(items: list[dict[str, Any]]) -> None:
    try:
        read_prompt(read(input=items))
    except ApiError as error:
        # Whatever is refused can be sent.
        json.dumps(error.plain().body)


@pytest.mark.parametrize(
    ("sealed", "which"),
    [
        pytest.param(
            {"id": "rs_1", "encrypted_content": Seal("sk-2").close("rs_1")}, "for item rs_1 ", id="by id"
        ),
        pytest.param({"encrypted_content": "gAAAAAother=="}, "gAAA...er== ", id="by what it looks like"),
    ],
)
def test_reasoning_that_was_not_sealed_for_this_key_is_refused(sealed: dict[str, str], which: str) -> None:
    error = refused(input=[USER, {"type": "reasoning", "summary": [], **sealed}, ASSISTANT])

    assert (error.status, error.code, error.param) == (400, "invalid_encrypted_content", None)
    assert str(error).startswith(f"The encrypted content {which}could not be verified. Reason: ")


def test_reasoning_that_was_sealed_for_this_key_needs_no_id() -> None:
    items = [USER, {"type": "reasoning", "summary": [], "encrypted_content": SEAL.close("rs_1")}, ASSISTANT]

    assert len(read(input=items).input) == 3


def test_reasoning_is_sealed_or_stored() -> None:
    error = refused(input=[USER, {"type": "reasoning", "summary": []}, ASSISTANT])

    assert (error.code, error.param) == ("missing_required_parameter", "input[1].id")


def test_what_is_novel_is_taken_back() -> None:
    message = {"role": "assistant", "content": [{"type": "output_novel", "levels": [1]}]}

    assert len(read(input=[USER, {"type": "novel_item", "id": "nov_1"}, message]).input) == 3
