"""Message threads: what is kept, for how long, and for whom."""

from typing import Any

import pytest

from turnkeeper_ops.simulator import anthropic_threads
from turnkeeper_ops.simulator.anthropic_errors import MessagesError
from turnkeeper_ops.simulator.anthropic_threads import (
    BETA,
    KEPT_SECONDS,
    Kept,
    Thread,
    Threads,
    Use,
    pinned,
    read_thread,
    thread_error,
)
from turnkeeper_ops.simulator.scripts import Spelling
from turnkeeper_ops.simulator.vault import StoredResponse

USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}
CREATED: dict[str, Any] = {"model": "m", "system": "Be kind", "tools": [{"name": "f", "input_schema": {}}]}


def kept(message_id: str = "msg_1", *, used: float = 0, paused: bool = False, conversation: str = "msg_1") -> Kept:
    stored = StoredResponse(
        id=message_id,
        previous=None,
        conversation=conversation,
        input=(USER,),
        output=(ASSISTANT,),
        chars=0,
        body={},
    )
    return Kept(stored=stored, pinned=pinned(CREATED), paused=paused, used=used)


def threads_with(*messages: Kept) -> Threads:
    threads = Threads()
    for message in messages:
        threads.keep(message)
    return threads


def refused(threads: Threads, message_id: str = "msg_1", now: float = 1) -> tuple[int, str]:
    with pytest.raises(MessagesError) as caught:
        threads.find(message_id, now)
    assert caught.value.details is not None
    return caught.value.status, caught.value.details["error_code"]


class TestKeeping:
    def test_a_message_is_found_until_its_thread_has_not_been_used_for_a_while(self) -> None:
        threads = threads_with(kept(used=10))

        assert threads.find("msg_1", 10 + KEPT_SECONDS).stored.id == "msg_1"
        assert threads.find("msg_1", 10 + 2 * KEPT_SECONDS).stored.id == "msg_1"
        assert refused(threads, now=11 + 3 * KEPT_SECONDS) == (404, "thread_not_found")
        assert len(threads) == 0

    @pytest.mark.parametrize(
        ("use", "code"),
        [
            pytest.param(Use.CONTINUED, "thread_already_continued"),
            pytest.param(Use.IN_FLIGHT, "thread_continue_in_flight"),
        ],
    )
    def test_a_message_is_continued_once_and_by_one_alone(self, use: Use, code: str) -> None:
        message = kept()
        message.use = use

        assert refused(threads_with(message)) == (400, code)

    def test_the_oldest_makes_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(anthropic_threads, "MAX_MESSAGES", 1)

        threads = threads_with(kept("msg_1"), kept("msg_2"))

        assert refused(threads, "msg_1") == (404, "thread_not_found")
        assert threads.find("msg_2", 1).stored.id == "msg_2"

    @pytest.mark.parametrize(
        ("spelling", "code"),
        [
            pytest.param(Spelling.NOT_FOUND, "thread_not_found"),
            pytest.param(Spelling.THREAD_NOT_FOUND, "thread_not_found"),
            pytest.param(Spelling.THREAD_FINGERPRINT_MISMATCH, "thread_not_found"),
            pytest.param(Spelling.THREAD_ALREADY_CONTINUED, "thread_already_continued"),
        ],
    )
    def test_what_is_said_to_be_lost_stays_lost(self, spelling: Spelling, code: str) -> None:
        first, second, other = kept("msg_1"), kept("msg_2"), kept("msg_3", conversation="msg_3")
        threads = threads_with(first, second, other)

        threads.lose(second, spelling)

        assert refused(threads, "msg_2")[1] == code
        assert threads.find("msg_3", 1) is other

    @pytest.mark.parametrize("spelling", [Spelling.THREAD_CONTINUE_IN_FLIGHT, Spelling.INVALID_ENCRYPTED_CONTENT])
    def test_what_is_not_said_of_the_thread_leaves_it_alone(self, spelling: Spelling) -> None:
        message = kept()
        threads = threads_with(message)

        threads.lose(message, spelling)

        assert threads.find("msg_1", 1) is message


class TestContinuing:
    def test_what_was_left_out_comes_from_the_thread(self) -> None:
        whole = kept().complete({"model": "m", "max_tokens": 9, "messages": [USER]})

        assert whole == {**CREATED, "max_tokens": 9, "messages": [USER, ASSISTANT, USER]}

    @pytest.mark.parametrize(
        "given",
        [
            pytest.param({"system": "Be kind"}, id="the same"),
            pytest.param({"system": [{"type": "text", "text": "Be kind"}]}, id="the same, as a block"),
            pytest.param({"system": None, "tools": None, "thinking": None}, id="nulls"),
            pytest.param({"temperature": 0.5}, id="what is free"),
        ],
    )
    def test_what_is_the_same_may_be_sent_again(self, given: dict[str, Any]) -> None:
        assert kept().complete({"model": "m", "messages": [USER], **given})["messages"][0] == USER

    @pytest.mark.parametrize(
        ("given", "fields"),
        [
            pytest.param({"model": "n"}, "model", id="the model"),
            pytest.param({"system": "Be rude"}, "system", id="the system prompt"),
            pytest.param({"tools": []}, "tools", id="the tools"),
            pytest.param({"thinking": {"type": "disabled"}, "tools": []}, "tools, thinking", id="two fields"),
        ],
    )
    def test_what_must_stay_the_same_is_named(self, given: dict[str, Any], fields: str) -> None:
        with pytest.raises(MessagesError, match=rf"differing field\(s\): {fields}$") as caught:
            kept().complete({"model": "m", "messages": [USER], **given})

        assert caught.value.details == {"error_code": "thread_fingerprint_mismatch"}

    def test_only_what_was_paused_is_continued_with_nothing(self) -> None:
        given = {"model": "m", "messages": []}

        assert kept(paused=True).complete(given)["messages"] == [USER, ASSISTANT]
        with pytest.raises(MessagesError, match="at least one message"):
            kept().complete(given)


class TestReading:
    @pytest.mark.parametrize(
        ("thread", "expected"),
        [
            pytest.param({"type": "create"}, Thread(previous=None), id="create"),
            pytest.param(
                {"type": "continue", "previous_message_id": "msg_1"}, Thread(previous="msg_1"), id="continue"
            ),
            pytest.param(None, None, id="none"),
        ],
    )
    def test_a_request_begins_a_thread_or_continues_one(self, thread: object, expected: Thread | None) -> None:
        assert read_thread({"thread": thread}, f"other-2026-01-01, {BETA}") == expected
        assert read_thread({"thread": thread}, "other-2026-01-01") is None

    @pytest.mark.parametrize(
        "thread",
        [
            pytest.param("create", id="a text"),
            pytest.param({}, id="no type"),
            pytest.param({"type": "continue"}, id="no message"),
            pytest.param({"type": "continue", "previous_message_id": 1}, id="a number"),
            pytest.param({"type": "create", "previous_message_id": "msg_1"}, id="too much"),
        ],
    )
    def test_anything_else_is_refused(self, thread: object) -> None:
        with pytest.raises(MessagesError, match="thread: Input should be") as caught:
            read_thread({"thread": thread}, BETA)

        assert caught.value.details is None

    @pytest.mark.parametrize("field", ["context_management", "fallbacks"])
    def test_what_threads_do_not_support_is_named(self, field: str) -> None:
        with pytest.raises(MessagesError) as caught:
            read_thread({"thread": {"type": "create"}, field: {}}, BETA)

        assert caught.value.details == {"error_code": "thread_unsupported_request", "unsupported": [field]}


@pytest.mark.parametrize("spelling", list(Spelling))
def test_every_spelling_has_a_code_of_threads(spelling: Spelling) -> None:
    error = thread_error(spelling)

    assert error.details is not None
    expected = spelling.value if spelling.value.startswith("thread_") else "thread_not_found"
    assert error.details["error_code"] == expected
    assert (error.status == 404) is (expected == "thread_not_found")
