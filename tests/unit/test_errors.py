"""The copy, and reading stored errors back."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import (
    COPY,
    SITUATIONS,
    ChatError,
    ErrorKind,
    Situation,
    display_name,
    read_stored,
    retry_copy,
    terminal_copy,
    with_try_after,
)

ADVICE = re.compile(r"\b(?:try|please|check|choose|wait|resend|ask|tell|shorten|rephrase)\b", re.IGNORECASE)
SENTENCE = re.compile(r"[A-Z][^.!?]*\.")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_has_copy(kind: ErrorKind) -> None:
    words = COPY[kind]

    assert all((words.title, words.label, words.retry, words.fact, words.action))
    assert len(words.label.split()) <= 2


@pytest.mark.parametrize("kind", ErrorKind)
def test_retry_copy_is_one_fact_without_status_or_advice(kind: ErrorKind) -> None:
    copy = retry_copy(ChatError(kind=kind, message="", provider="openai", status_code=503))

    assert SENTENCE.fullmatch(copy)
    assert not re.search(r"\d", copy)
    assert not ADVICE.search(copy)


@pytest.mark.parametrize("kind", ErrorKind)
def test_terminal_copy_is_the_fact_and_one_action(kind: ErrorKind) -> None:
    copy = terminal_copy(kind, "openai")

    assert len(SENTENCE.findall(copy)) == 2
    assert copy.startswith(retry_copy(ChatError(kind=kind, message="", provider="openai")))
    assert "try again" not in copy.lower()


@pytest.mark.parametrize("situation", Situation)
def test_a_situation_has_copy_of_its_own(situation: Situation) -> None:
    copy = terminal_copy(ErrorKind.GENERIC, "openai", situation)

    assert copy != terminal_copy(ErrorKind.GENERIC, "openai")
    assert copy == SITUATIONS[situation].replace("{provider}", "OpenAI")
    assert "try again" not in copy.lower()


@pytest.mark.parametrize(
    ("configured", "shown"),
    [
        pytest.param("openai", "OpenAI", id="a known name"),
        pytest.param("Azure OpenAI", "Azure OpenAI", id="spaces and capitals"),
        pytest.param("azure_openai", "Azure OpenAI", id="an underscore"),
        pytest.param("our-gateway", "our-gateway", id="a free name stays as the operator wrote it"),
        pytest.param(None, "the AI provider", id="no name"),
        pytest.param("  ", "the AI provider", id="a blank name"),
        pytest.param("unknown", "the AI provider", id="an unknown provider"),
    ],
)
def test_display_name(configured: str | None, shown: str) -> None:
    assert display_name(configured) == shown


def test_a_nameless_provider_takes_a_capital_at_the_beginning_only() -> None:
    assert terminal_copy(ErrorKind.OVERLOADED).startswith("The AI provider is")
    assert "with the AI provider is" in terminal_copy(ErrorKind.USAGE_LIMIT)


def test_a_lower_case_name_keeps_its_case_at_the_beginning() -> None:
    assert terminal_copy(ErrorKind.OVERLOADED, "vllm").startswith("vLLM is")


def test_braces_in_a_configured_name_are_no_placeholders() -> None:
    assert terminal_copy(ErrorKind.AUTH, "{0}{kind}").startswith("{0}{kind} rejected")


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        pytest.param(datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02 03:04 UTC", id="a full minute stays"),
        pytest.param(datetime(2026, 1, 2, 3, 4, 1, tzinfo=UTC), "2026-01-02 03:05 UTC", id="a second rounds up"),
        pytest.param(
            datetime(2026, 1, 2, 3, 4, 0, 1, tzinfo=UTC), "2026-01-02 03:05 UTC", id="a fraction rounds up"
        ),
        pytest.param(
            datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC), "2027-01-01 00:00 UTC", id="over the year's end"
        ),
        pytest.param(
            datetime(2026, 1, 2, 5, 4, tzinfo=timezone(timedelta(hours=2))), "2026-01-02 03:04 UTC", id="in UTC"
        ),
    ],
)
def test_a_try_after_time_is_never_too_early(moment: datetime, shown: str) -> None:
    error = ChatError(kind=ErrorKind.RATE_LIMIT, message="old", provider="openai", retryable=True)

    later = with_try_after(error, moment)

    assert later.message == f"OpenAI is limiting the rate of requests. Try after {shown}."
    assert later.model_copy(update={"message": "old"}) == error


@pytest.mark.parametrize("kind", ErrorKind)
def test_a_stored_error_reads_back_as_it_was(kind: ErrorKind) -> None:
    error = ChatError(kind=kind, message="m", provider="p", retryable=True, status_code=429, detail="„d“")

    assert read_stored(error.model_dump(mode="json")) == error
    assert read_stored(error.model_dump_json()) == error
    assert read_stored(error.model_dump_json().encode()) == error
    assert read_stored(error) is error


def test_no_stored_error_is_none() -> None:
    assert read_stored(None) is None


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param({}, id="an empty object"),
        pytest.param({"kind": "of another age", "message": "m"}, id="an unknown kind"),
        pytest.param({"kind": "auth"}, id="no message"),
        pytest.param("not json", id="no JSON"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param("[1]", id="another type"),
        pytest.param(17, id="a number"),
    ],
)
def test_what_cannot_be_read_is_generic(stored: object) -> None:
    error = read_stored(stored)

    assert error is not None
    assert error.kind is ErrorKind.GENERIC
    assert not error.retryable
    assert error.message == terminal_copy(ErrorKind.GENERIC)


def test_fields_of_a_later_release_are_ignored() -> None:
    error = read_stored({"kind": "auth", "message": "m", "mood": "sour"})

    assert error == ChatError(kind=ErrorKind.AUTH, message="m")


@given(JSON | st.binary(max_size=60) | st.text(max_size=60))
def test_reading_never_raises(stored: object) -> None:
    read_stored(stored)
    read_stored(json.dumps(stored) if not isinstance(stored, bytes) else stored)


def test_title_and_label_come_from_the_kind() -> None:
    error = ChatError(kind=ErrorKind.AUTH, message="m")

    assert (error.title, error.label) == ("Credentials rejected", "Credentials")


def test_the_module_is_light() -> None:
    code = (
        "import sys, importlib.util as u;"
        "s = u.find_spec('turnkeeper');"
        "p = s.submodule_search_locations[0] + '/errors.py';"
        "m = u.spec_from_file_location('errors_alone', p);"
        "module = u.module_from_spec(m); sys.modules['errors_alone'] = module; m.loader.exec_module(module);"
        "heavy = {'celery', 'sqlalchemy', 'httpx', 'redis', 'kombu'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
