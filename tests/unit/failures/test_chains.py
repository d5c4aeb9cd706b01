"""Broken chains, by structure and in every spelling seen."""

# ruff: noqa: E501 - a row of a table is a line, whatever a provider had to say

from collections.abc import Callable

import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Classified

Ask = Callable[..., Classified]


def error(message: str, **fields: object) -> dict[str, object]:
    return {"error": {"message": message, **fields}}


SEALS = [
    pytest.param(400, error("The encrypted content for item rs_1 could not be verified.", code="invalid_encrypted_content"), id="another key's reasoning"),
    pytest.param(400, error("Could not decrypt the provided encrypted_content."), id="xAI: another key's reasoning"),
    pytest.param(400, error("The requested item was created under a different Azure OpenAI resource."), id="another resource's item"),
    pytest.param(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "messages.1.content.0: Invalid `signature` in `thinking` block"}}, id="Anthropic: a signature"),
]  # fmt: skip
BROKEN = [
    *SEALS,
    pytest.param(400, error("Previous response with id 'resp_1' not found.", code="previous_response_not_found"), id="OpenAI: the code"),
    pytest.param(404, error("Previous response with id 'resp_1' not found."), id="OpenAI: the sentence under 404"),
    pytest.param(400, error("Invalid `previous_response_id`."), id="OpenAI: an invalid id"),
    pytest.param(400, error("Invalid previous_response_id: resp_1"), id="OpenAI: an invalid id that is named"),
    pytest.param(400, error("PREVIOUS RESPONSE WITH ID 'resp_1' NOT FOUND"), id="in capitals"),
    pytest.param(404, error("Item with id 'rs_1' not found. Items are not persisted when `store` is set to false."), id="an item that was not stored"),
    pytest.param(404, error("Item with id 'ws_1' not found."), id="an item that is gone"),
    pytest.param(404, error("Item with id 'msg_1' not found."), id="a message that is gone"),
    pytest.param(400, error("Item 'rs_1' of type 'reasoning' was provided without its required following item."), id="a chain that ends in an orphan"),
    pytest.param(400, error("No tool call found for function call output with call_id call_1."), id="a call that the anchor held"),
    pytest.param(400, error("No tool output found for function call call_1."), id="a call that nobody answered"),
    pytest.param(400, error("Previous response cannot be used for this organization due to Zero Data Retention.", code="unsupported_parameter"), id="zero data retention"),
    pytest.param(404, {"code": "not-found", "error": "Response with id=1 not found"}, id="xAI: the error is a string"),
    pytest.param(400, {"detail": "Unsupported parameter: previous_response_id"}, id="an endpoint without chains"),
    pytest.param(400, error("Unknown parameter: 'previous_response_id'.", code="unknown_parameter"), id="a server that does not know the parameter"),
    pytest.param(None, error("Prediction history node with id '1' not found while attempting to build chat history chain"), id="LM Studio: a history node"),
    pytest.param(404, error("Thread not found.", details={"error_code": "thread_not_found"}), id="Anthropic: no thread"),
    pytest.param(400, error("A field differs from the value stored with the Thread: system.", details={"error_code": "thread_fingerprint_mismatch"}), id="Anthropic: another fingerprint"),
    pytest.param(409, error("Already continued.", details={"error_code": "thread_already_continued"}), id="Anthropic: continued before"),
    pytest.param(404, error("resource not found"), id="a 404 that names nothing else"),
    pytest.param(404, None, id="a bare 404"),
    pytest.param(200, {"type": "error", "code": "previous_response_not_found", "message": "gone"}, id="in mid stream"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), BROKEN)
def test_a_chained_request_whose_anchor_is_gone_is_a_broken_chain(
    ask: Ask, status: int | None, body: object
) -> None:
    classified = ask(status, body, chained=True)

    assert classified.chain_broken
    assert (classified.error.kind, classified.error.retryable) == (ErrorKind.GENERIC, True)
    assert classified.rule == "chain broken"


@pytest.mark.parametrize(("status", "body"), SEALS)
def test_a_seal_that_its_maker_cannot_open_is_one_without_a_chain_as_well(
    ask: Ask, status: int | None, body: object
) -> None:
    classified = ask(status, body, chained=False)

    assert classified.chain_broken
    assert classified.error.retryable


@pytest.mark.parametrize(("status", "body"), BROKEN[len(SEALS) :])
def test_without_a_chain_nothing_else_can_be_broken(ask: Ask, status: int | None, body: object) -> None:
    assert not ask(status, body, chained=False).chain_broken


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(429, error("Rate limit reached", code="rate_limit_exceeded"), ErrorKind.RATE_LIMIT, id="a limit"),
        pytest.param(401, error("Previous response: invalid key"), ErrorKind.AUTH, id="a bad key that names the anchor"),
        pytest.param(500, error("Failed to load previous response"), ErrorKind.GENERIC, id="a server error that names the anchor"),
        pytest.param(404, error("The model `x` does not exist", code="model_not_found"), ErrorKind.CONFIG, id="no such model"),
        pytest.param(404, error("Invalid URL (POST /v1/v1/responses)"), ErrorKind.CONFIG, id="a wrong address"),
        pytest.param(404, error("No such thing", code="ModelNotFound"), ErrorKind.CONFIG, id="a 404 with a model's code"),
        pytest.param(400, error("prompt is too long"), ErrorKind.CONTEXT_OVERFLOW, id="an overflow"),
        pytest.param(400, error("Unsupported parameter: temperature", code="unsupported_parameter"), ErrorKind.CONFIG, id="another parameter"),
    ],
)  # fmt: skip
def test_a_chained_request_that_fails_otherwise_keeps_its_chain(
    ask: Ask, status: int, body: object, kind: ErrorKind
) -> None:
    classified = ask(status, body, chained=True)

    assert not classified.chain_broken
    assert classified.error.kind is kind


def test_no_word_of_the_provider_keeps_a_broken_chain_from_healing(ask: Ask) -> None:
    body = error("Previous response with id 'resp_1' not found.")

    assert ask(400, body, chained=True, headers={"x-should-retry": "false"}).error.retryable
