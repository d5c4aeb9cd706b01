"""The provider's own sentence, fit to show."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Classified, Failure, Signal, classify

Ask = Callable[..., Classified]


def test_it_is_one_line_without_control_characters(ask: Ask) -> None:
    body = {"error": {"message": "one\n  two\tthree\x00\x1b[31m four\u202efive\u200b"}}

    assert ask(400, body).error.detail == "one two three [31m four five"


def test_it_is_at_most_500_characters_and_says_where_it_was_cut(ask: Ask) -> None:
    detail = ask(400, {"error": {"message": "word " * 400}}).error.detail

    assert detail is not None
    assert len(detail) == 500
    assert detail.endswith("…")


def test_500_characters_are_not_cut(ask: Ask) -> None:
    sentence = ("ab " * 167)[:499] + "."

    assert ask(400, {"error": {"message": sentence}}).error.detail == sentence


def test_it_counts_characters_and_not_bytes(ask: Ask) -> None:
    sentence = "é " * 250

    assert ask(400, {"error": {"message": sentence}}).error.detail == sentence.strip()


@pytest.mark.parametrize("length", [3_900, 3_990, 4_000, 4_090, 4_096, 5_000])
def test_a_secret_at_the_cut_does_not_show_its_beginning(ask: Ask, length: int) -> None:
    text = f"https://h/{'?' + 'q' * (length - 12)} sk-abcdefghijklmnopqrstuvwxyz0123456789"

    classified = ask(400, {"error": {"message": text}})

    assert "sk-" not in (classified.error.detail or "")
    assert "sk-" not in classified.evidence


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        pytest.param(
            "No tool output found for function call call_sensitive123.",
            "No tool output found for function call call_***. (match=function_call_output_missing)",
            id="an output is missing",
        ),
        pytest.param(
            "Item 'ws_1' of type 'web_search_call' was provided without its required 'reasoning' item: 'rs_a1b2'.",
            "Item 'ws_***' of type 'web_search_call' was provided without its required 'reasoning' item: "
            "'rs_***'. (match=web_search_reasoning_missing)",
            id="a search without its reasoning",
        ),
        pytest.param(
            "Item 'rs_12ab' of type 'reasoning' was provided without its required following item.",
            "Item 'rs_***' of type 'reasoning' was provided without its required following item. "
            "(match=following_item_missing)",
            id="reasoning without what follows",
        ),
        pytest.param("roles must alternate", "roles must alternate", id="no mark for the rest"),
    ],
)
def test_a_refused_history_names_what_is_missing_and_no_ids(ask: Ask, text: str, detail: str) -> None:
    assert ask(400, {"error": {"message": text}}).error.detail == detail


def test_a_mark_fits_within_the_limit(ask: Ask) -> None:
    detail = ask(
        400, {"error": {"message": "No tool output found for function call x. " + "word " * 400}}
    ).error.detail

    assert detail is not None
    assert len(detail) <= 500
    assert detail.endswith("(match=function_call_output_missing)")


def test_a_cancel_has_nothing_to_show(ask: Ask) -> None:
    assert ask(text="context canceled", signal=Signal.CANCELLED).error.detail is None


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        pytest.param(
            {"detail": {"code": "deactivated_workspace"}}, "deactivated_workspace", id="a code without a sentence"
        ),
        pytest.param(
            {"choices": [{"finish_reason": "sensitive"}]}, "finish reason: sensitive", id="a finish reason"
        ),
        pytest.param(
            {"error": {"message": "no"}, "choices": [{"finish_reason": "error"}]},
            "no",
            id="a sentence before a finish reason",
        ),
        pytest.param({}, None, id="nothing"),
        pytest.param("", None, id="an empty body"),
        pytest.param({"error": {"message": ""}}, None, id="an empty sentence"),
    ],
)
def test_where_there_is_no_sentence(ask: Ask, body: object, detail: str | None) -> None:
    assert ask(400, body).error.detail == detail


def test_secrets_are_masked_in_detail_and_evidence(ask: Ask) -> None:
    classified = ask(
        401, {"error": {"message": "Incorrect API key provided: sk-secret123. invalid api key sk-secret123"}}
    )

    assert classified.error.kind is ErrorKind.AUTH
    assert "secret123" not in str(classified)
    assert classified.error.detail == "Incorrect API key provided: ***. invalid api key ***"


def test_a_code_with_a_secret_is_masked(ask: Ask) -> None:
    assert "secret123" not in str(
        ask(400, {"error": {"code": "sk-secret123", "message": "x"}, "request_id": "sk-secret123"})
    )


@pytest.mark.parametrize(
    "request_id",
    [
        pytest.param("req_0123456789abcdef0123456789abcdef", id="OpenAI's, as long as a key"),
        pytest.param("req_011CSHoEeqs5C35K2UUqR7Fy", id="Anthropic's"),
        pytest.param("7f3a9c1e-1b2c-4d5e-8f90-123456789abc", id="a UUID"),
    ],
)
def test_a_request_id_stays_whole_to_be_quoted_to_support(request_id: str) -> None:
    failure = Failure(status=500, headers={"x-request-id": request_id})

    assert classify(failure, now=datetime.now(UTC)).request_id == request_id


def test_a_key_in_the_place_of_a_request_id_is_masked() -> None:
    failure = Failure(status=500, headers={"x-request-id": "sk-abcdefghijklmnopqrstuvwxyz012345"})

    assert classify(failure, now=datetime.now(UTC)).request_id == "***"
