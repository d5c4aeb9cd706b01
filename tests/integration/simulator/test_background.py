"""Background responses: the model goes on when the client is gone, and who comes back finds the rest."""

import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

DEADLINE_SECONDS = 10.0
SLOW = {"type": "answer", "chunk_delay_ms": 30}

Script = Callable[..., str]
LastRequest = Callable[[], dict[str, Any]]


def ask(client: openai.OpenAI, text: str, **parameters: Any) -> list[ResponseStreamEvent]:
    """Ask for a background response as a stream, and read it to its end."""
    with client.responses.create(model="m", input=text, background=True, stream=True, **parameters) as events:
        return list(events)


def ask_and_leave(client: openai.OpenAI, text: str, *, after: int) -> tuple[str, list[ResponseStreamEvent]]:
    """Ask, read so many events, and hang up; return the response's id and what was read."""
    with client.responses.create(model="m", input=text, background=True, stream=True) as events:
        seen = list(takewhile(lambda event: event.sequence_number <= after, events))
    assert seen[0].type == "response.created"
    return seen[0].response.id, seen


def settled(client: openai.OpenAI, response_id: str) -> Response:
    """Poll until the response has ended, as a client without a stream must."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        response = client.responses.retrieve(response_id)
        if response.status not in {"queued", "in_progress"}:
            return response
    raise AssertionError(f"not settled within {DEADLINE_SECONDS} s")


def resume(client: openai.OpenAI, response_id: str, after: int) -> list[ResponseStreamEvent]:
    with client.responses.retrieve(response_id, stream=True, starting_after=after) as events:
        return list(events)


def text_of(events: list[ResponseStreamEvent]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


class TestStreams:
    def test_a_stream_is_queued_before_it_begins(self, client: openai.OpenAI) -> None:
        events = ask(client, "Hello")

        assert [event.type for event in events[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type == "response.completed"
        assert events[-1].response.background is True
        assert client.responses.retrieve(events[-1].response.id).to_dict() == events[-1].response.to_dict()

    @pytest.mark.parametrize("after", [0, 2, 6])
    def test_who_left_resumes_exactly_where_it_was(
        self, client: openai.OpenAI, script: Script, last_request: LastRequest, after: int
    ) -> None:
        response_id, seen = ask_and_leave(client, script(SLOW), after=after)

        rest = resume(client, response_id, after)

        assert [event.sequence_number for event in seen + rest] == list(range(len(seen) + len(rest)))
        assert rest[-1].type == "response.completed"
        assert text_of(seen + rest) == rest[-1].response.output_text
        logged = last_request()
        assert (logged["response_id"], logged["generated"]) == (response_id, True)
        assert [(fetch["kind"], fetch["starting_after"]) for fetch in logged["fetches"]] == [("resume", after)]

    async def test_the_async_client_resumes_too(self, async_client: openai.AsyncOpenAI) -> None:
        whole = [
            event
            async for event in await async_client.responses.create(
                model="m", input="Hello", background=True, stream=True
            )
        ]
        assert whole[0].type == "response.created"

        rest = [
            event
            async for event in await async_client.responses.retrieve(
                whole[0].response.id, stream=True, starting_after=4
            )
        ]

        assert [event.to_dict() for event in rest] == [event.to_dict() for event in whole[5:]]

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"type": "cut", "at": 2}, id="cut"),
            pytest.param({"type": "reset", "at": 2}, id="reset"),
            pytest.param({"type": "end", "at": 2}, id="ended"),
            pytest.param({"type": "stall", "at": 2}, id="stalled"),
        ],
    )
    def test_a_broken_connection_does_not_break_the_generation(
        self, client: openai.OpenAI, script: Script, control: httpx.Client, fault: dict[str, Any]
    ) -> None:
        before = control.get("/health").json()["generations"]
        seen: list[ResponseStreamEvent] = []

        def read() -> None:
            patient = client.with_options(timeout=0.5)
            with patient.responses.create(
                model="m", input=script({**SLOW, **fault}), background=True, stream=True
            ) as events:
                seen.extend(events)
            raise openai.APIConnectionError(request=events.response.request)

        with pytest.raises(openai.APIConnectionError):
            read()
        assert seen[0].type == "response.created"
        rest = resume(client, seen[0].response.id, seen[-1].sequence_number)

        assert rest[-1].type == "response.completed"
        assert text_of(seen + rest) == rest[-1].response.output_text
        assert control.get("/health").json()["generations"] == before + 1

    def test_an_error_fails_the_generation_itself(self, client: openai.OpenAI, script: Script) -> None:
        events = ask(client, script({"type": "error_event", "shape": "response_failed"}))

        assert events[-1].type == "response.failed"
        failed = client.responses.retrieve(events[-1].response.id)
        assert (failed.status, failed.error is not None and failed.error.code) == ("failed", "server_error")

    def test_a_stream_may_be_too_old_to_resume(self, client: openai.OpenAI, script: Script) -> None:
        response_id, _ = ask_and_leave(client, script({**SLOW, "resumable": False}), after=2)

        with pytest.raises(openai.BadRequestError, match="can no longer be streamed because it is more than 5"):
            resume(client, response_id, 2)

        assert settled(client, response_id).status == "completed"


class TestPolling:
    def test_without_a_stream_the_answer_is_fetched(
        self, client: openai.OpenAI, script: Script, last_request: LastRequest
    ) -> None:
        queued = client.responses.create(model="m", input=script(SLOW), background=True)

        response = settled(client, queued.id)

        assert (queued.status, queued.output, queued.background) == ("queued", [], True)
        assert (response.status, response.output_text.startswith("I have read 1")) == ("completed", True)
        assert {fetch["kind"] for fetch in last_request()["fetches"]} == {"retrieve"}

    @pytest.mark.parametrize(
        ("step", "status"),
        [
            pytest.param({"type": "incomplete"}, "incomplete"),
            pytest.param({"type": "error_event"}, "failed"),
            pytest.param({"type": "empty"}, "completed"),
            pytest.param({"type": "drip"}, "completed"),
        ],
    )
    def test_what_became_of_it_is_told_when_it_is_fetched(
        self, client: openai.OpenAI, script: Script, step: dict[str, Any], status: str
    ) -> None:
        queued = client.responses.create(model="m", input=script(step), background=True)

        assert settled(client, queued.id).status == status

    def test_a_completed_one_can_be_continued(self, client: openai.OpenAI) -> None:
        first = settled(client, client.responses.create(model="m", input="My name is Ada", background=True).id)

        second = client.responses.create(model="m", input="Who am I?", previous_response_id=first.id)

        assert "2 user messages" in second.output_text

    def test_one_without_a_stream_cannot_be_streamed(self, client: openai.OpenAI) -> None:
        queued = client.responses.create(model="m", input="Hello", background=True)

        with pytest.raises(openai.BadRequestError, match="can be streamed"):
            resume(client, queued.id, 0)

    def test_some_are_stuck_in_the_queue(self, client: openai.OpenAI, script: Script) -> None:
        said = script({"type": "answer", "queued_seconds": 86_400})
        response_id, seen = ask_and_leave(client, said, after=0)

        assert len(seen) == 1
        assert client.responses.retrieve(response_id).status == "queued"
        assert client.responses.cancel(response_id).status == "cancelled"


class TestRetrieval:
    """A generation that goes on, and a provider that does not tell of it."""

    @pytest.mark.parametrize(
        ("retrieval", "error"),
        [
            pytest.param("gone", openai.NotFoundError),
            pytest.param("unavailable", openai.InternalServerError),
        ],
    )
    def test_some_can_never_be_asked_for(
        self,
        client: openai.OpenAI,
        script: Script,
        last_request: LastRequest,
        retrieval: str,
        error: type[openai.APIStatusError],
    ) -> None:
        response_id, _ = ask_and_leave(client, script({**SLOW, "retrieval": retrieval}), after=2)

        for ask_again in (
            lambda: client.responses.retrieve(response_id),
            lambda: resume(client, response_id, 2),
            lambda: client.responses.retrieve(response_id),
        ):
            with pytest.raises(error):
                ask_again()

        fetches = [(fetch["kind"], fetch["status"]) for fetch in last_request()["fetches"]]
        status = 404 if error is openai.NotFoundError else 500
        assert fetches == [("retrieve", status), ("resume", status), ("retrieve", status)]

    @pytest.mark.parametrize(
        ("retrieval", "error"),
        [
            pytest.param("gone_once", openai.NotFoundError),
            pytest.param("unavailable_once", openai.InternalServerError),
        ],
    )
    def test_some_fail_the_first_who_asks(
        self, client: openai.OpenAI, script: Script, retrieval: str, error: type[openai.APIStatusError]
    ) -> None:
        response_id, seen = ask_and_leave(client, script({**SLOW, "retrieval": retrieval}), after=2)

        with pytest.raises(error):
            resume(client, response_id, 2)
        rest = resume(client, response_id, 2)

        assert text_of(seen + rest) == rest[-1].response.output_text  # type: ignore[union-attr]

    def test_what_is_gone_cannot_be_cancelled_but_can_be_continued_from(
        self, client: openai.OpenAI, script: Script
    ) -> None:
        events = ask(client, script({"type": "answer", "retrieval": "gone"}))
        assert events[-1].type == "response.completed"

        with pytest.raises(openai.NotFoundError):
            client.responses.cancel(events[-1].response.id)
        second = client.responses.create(model="m", input="And now?", previous_response_id=events[-1].response.id)

        assert "2 user messages" in second.output_text


class TestCancel:
    def test_what_had_been_said_until_then_is_paid_for(self, client: openai.OpenAI, script: Script) -> None:
        said = script({"type": "answer", "text": "abcdefghijkl", "chunk_chars": 4, "chunk_delay_ms": 86_400_000})
        response_id, _ = ask_and_leave(client, said, after=4)

        usage = client.responses.cancel(response_id).usage

        assert usage is not None
        assert (usage.input_tokens > 0, usage.output_tokens) == (True, 1)
        assert client.responses.retrieve(response_id).usage == usage

    def test_a_cancel_ends_the_generation_and_its_streams_without_a_last_event(
        self, client: openai.OpenAI, script: Script
    ) -> None:
        said = script({"type": "answer", "chunk_delay_ms": 500})
        with client.responses.create(model="m", input=said, background=True, stream=True) as events:
            created = next(events)
            assert created.type == "response.created"
            cancelled = client.responses.cancel(created.response.id)
            rest = list(events)

        assert cancelled.status == "cancelled"
        assert all(event.type != "response.completed" for event in rest)
        assert client.responses.retrieve(cancelled.id).status == "cancelled"
        assert resume(client, cancelled.id, 1)[-1].sequence_number == rest[-1].sequence_number

    def test_what_has_ended_stays_as_it_was(self, client: openai.OpenAI) -> None:
        queued = client.responses.create(model="m", input="Hello", background=True)
        settled(client, queued.id)

        assert client.responses.cancel(queued.id).status == "completed"

    def test_only_background_responses_can_be_cancelled(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="m", input="Hello")

        with pytest.raises(openai.BadRequestError, match="background: true"):
            client.responses.cancel(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.cancel("resp_gone")

    def test_a_deleted_one_is_gone(self, client: openai.OpenAI, script: Script) -> None:
        queued = client.responses.create(model="m", input=script(SLOW), background=True)

        client.responses.delete(queued.id)

        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(queued.id)


def test_a_background_response_must_be_stored(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="Hello", background=True, store=False)

    assert caught.value.param == "background"
