"""Turns through a real worker process: what the provider is sent, what is stored, what followers see."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeVar
from uuid import UUID

import pytest

from turnkeeper import AttemptOutcome, ErrorKind, Transcript, TurnState
from turnkeeper.events import TurnCommitted, TurnPart, TurnRetry
from turnkeeper_ops.simulator.scripts import Spelling

from .conftest import Record, Site, outcomes

T = TypeVar("T")


def test_a_turn_is_streamed_committed_and_stored(site: Site) -> None:
    turn = site.enqueue("Hello")

    events = site.events(turn)

    assert [event.type for event in events if event.type != "turn.part"] == [
        "turn.started",
        "turn.committed",
        "turn.completed",
    ]
    view = site.keeper.show(turn.id)
    assert view.state is TurnState.COMPLETED
    assert "“Hello”" in view.text
    assert view.usage is not None
    assert view.usage["output_tokens"] > 0
    transcript = Transcript()
    transcript.feed(events)
    assert transcript.text == view.text


def test_the_parts_of_a_slow_answer_arrive_while_it_is_spoken(site: Site) -> None:
    word = site.script({"type": "answer", "text": "word " * 20, "chunk_chars": 5, "chunk_delay_ms": 40})
    turn = site.enqueue(f"Slowly {word}")

    parts = [event for event in site.keeper.follow(turn.id) if isinstance(event, TurnPart)]

    assert len(parts) > 5
    assert "".join(part.text for part in parts) == "word " * 20
    assert all(first.at < second.at for first, second in pairwise(parts))


def test_a_second_turn_continues_the_chain_and_sends_only_what_is_new(site: Site) -> None:
    first = site.run("The first message")
    second = site.run("The second message", chat=first.chat_id)

    (call,) = site.calls(second.id)
    assert call["previous_response_id"] == first.attempts[0].response_id
    assert [item["role"] for item in call["input"]] == ["user"]
    assert second.attempts[0].chained
    assert "2 user messages" in second.text


def test_another_model_means_a_full_replay(site: Site) -> None:
    first = site.run("The first message")

    second = site.run("The second message", chat=first.chat_id, model="sim-2")

    (call,) = site.calls(second.id)
    assert call["previous_response_id"] is None
    assert [item["role"] for item in call["input"]] == ["user", "assistant", "user"]
    assert not second.attempts[0].chained


@dataclass(frozen=True, slots=True)
class Loss:
    """How the provider says that the anchor is gone."""

    spelling: Spelling
    place: str

    @property
    def in_stream(self) -> bool:
        """Whether it is said inside a stream; two spellings have no error object, and are told by a status."""
        bare = {Spelling.UNSUPPORTED_DETAIL, Spelling.XAI_NOT_FOUND}
        return self.place == "in the stream" and self.spelling not in bare

    @property
    def status(self) -> int:
        """The status of the response that says so."""
        usual = 404 if self.spelling in {Spelling.XAI_NOT_FOUND, Spelling.ITEM_NOT_PERSISTED} else 400
        return 200 if self.in_stream else {"with 400": 400, "with 404": 404}.get(self.place, usual)

    def step(self, **more: Any) -> dict[str, Any]:
        """Return the simulator's step."""
        where = {"with 400": {"status": 400}, "with 404": {"status": 404}}.get(self.place, {"in_stream": True})
        return {"type": "lost_anchor", "spelling": self.spelling, **where, **more}


LOSSES = [Loss(spelling, place) for spelling in Spelling for place in ("with 400", "with 404", "in the stream")]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.spelling} {loss.place}")


def second_turns(site: Site, scripts: Sequence[Sequence[dict[str, Any]]]) -> list[Record]:
    """Run as many chats side by side; each loses its anchor in its second turn."""
    with ThreadPoolExecutor(8) as users:
        firsts = list(users.map(lambda _: site.enqueue("The first message"), scripts))
        chats = [site.finish(first).chat_id for first in firsts]
        words = [site.script(*steps) for steps in scripts]
        said = [f"The second message {word}" for word in words]
        records: list[Record] = []
        for some in batched(zip(said, chats, strict=True), 6):
            # A few at a time, so that a wait is the worker's and not the machine's.
            turns = list(users.map(lambda one: site.enqueue(one[0], chat=one[1]), some))
            records += [site.record(turn) for turn in turns]
        return records


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut *items* into lists of *size*."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


@pytest.fixture(scope="module")
def healed(site: Site) -> Mapping[Loss, Record]:
    """Lose the anchor of a chat's second turn in every way."""
    return dict(zip(LOSSES, second_turns(site, [[loss.step()] for loss in LOSSES]), strict=True))


@pytest.fixture(scope="module")
def broken_twice(site: Site) -> Mapping[Loss, Record]:
    """Say the same of the full replay as well."""
    scripts = [[loss.step(), loss.step(even_unchained=True)] for loss in LOSSES]
    return dict(zip(LOSSES, second_turns(site, scripts), strict=True))


@every_loss
def test_a_lost_anchor_is_healed_at_once_with_the_full_history(
    site: Site, healed: Mapping[Loss, Record], loss: Loss
) -> None:
    record = healed[loss]

    broken, replayed = site.calls(record.view.id)
    assert outcomes(record.view) == [AttemptOutcome.HEALED, AttemptOutcome.COMPLETED]
    assert [attempt.chained for attempt in record.view.attempts] == [True, False]
    assert (broken["outcome"], broken["status"]) == ("lost_anchor", loss.status)
    assert broken["previous_response_id"] is not None
    assert replayed["previous_response_id"] is None
    assert [item["role"] for item in replayed["input"]] == ["user", "assistant", "user"]


def test_the_full_history_follows_the_broken_request_at_once(site: Site, healed: Mapping[Loss, Record]) -> None:
    calls = [site.calls(record.view.id) for record in healed.values()]

    waits = [replayed["arrived_monotonic"] - broken["ended_monotonic"] for broken, replayed in calls]
    assert statistics.median(waits) < 0.5


@every_loss
def test_a_heal_waits_for_nothing_spends_no_budget_and_answers_from_the_whole_chat(
    site: Site, healed: Mapping[Loss, Record], loss: Loss
) -> None:
    record = healed[loss]

    (heal,) = [event for event in record.events if isinstance(event, TurnRetry)]
    assert (heal.reason, heal.delay_ms) == ("heal", 0)
    assert site.spent(record.view.id) == 0
    assert record.view.text.count("2 user messages") == 1
    assert record.read().text == record.view.text


@every_loss
def test_a_second_loss_in_the_same_turn_ends_it_with_facts(
    broken_twice: Mapping[Loss, Record], loss: Loss
) -> None:
    record = broken_twice[loss]

    assert record.view.state is TurnState.FAILED
    assert outcomes(record.view) == [AttemptOutcome.HEALED, AttemptOutcome.FAILED]
    assert len(record.calls) == 2
    assert record.view.error is not None
    assert record.view.error.status_code == (None if loss.in_stream else loss.status)
    assert record.view.error.detail
    assert record.view.attempts[-1].facts is not None
    # Sealed content is refused without a chain as well; of the other losses there is nothing left to lose.
    is_broken_again = loss.spelling is Spelling.INVALID_ENCRYPTED_CONTENT
    expected = "chain_broken_twice" if is_broken_again else "terminal"
    assert record.view.attempts[-1].facts["gave_up"] == expected


def test_the_chain_goes_on_from_the_healed_answer(site: Site) -> None:
    first = site.run("The first message")
    healed = site.run("The second message sim:lost-anchor", chat=first.chat_id)

    third = site.run("The third message", chat=first.chat_id)

    (call,) = site.calls(third.id)
    assert call["previous_response_id"] == healed.attempts[-1].response_id
    assert "3 user messages" in third.text


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Retry-After": "2"}, id="in seconds"),
        pytest.param({"Retry-After-Ms": "2000"}, id="in milliseconds"),
        pytest.param({"Retry-After-Ms": "2000", "Retry-After": "9"}, id="in milliseconds before seconds"),
    ],
)
def test_a_retry_starts_when_the_provider_asked_for_it(site: Site, headers: dict[str, str]) -> None:
    word = site.script({"type": "status", "status": 429, "headers": headers})

    view = site.run(f"Patience {word}")

    refused, answered = site.calls(view.id)
    wait = answered["arrived_monotonic"] - refused["ended_monotonic"]
    assert 2.0 <= wait <= 3.0
    assert view.attempts[0].delay_ms == 2000
    assert view.attempts[0].kind == ErrorKind.RATE_LIMIT
    assert view.attempts[0].status_code == 429


def test_event_row_and_countdown_agree_on_the_wait(site: Site) -> None:
    turn = site.enqueue("Patience sim:rate-limited")

    (retry,) = [event for event in site.keeper.follow(turn.id) if isinstance(event, TurnRetry)]

    attempt = site.keeper.show(turn.id).attempts[0]
    assert retry.delay_ms == attempt.delay_ms
    assert attempt.finished_at is not None
    planned = (retry.retrying_at - attempt.finished_at).total_seconds()
    assert planned == pytest.approx(retry.delay_ms / 1000, abs=0.001)
    assert retry.error is not None
    assert retry.error.kind is ErrorKind.RATE_LIMIT


@pytest.mark.parametrize("fault", ["cut", "reset", "unfinished", "malformed", "error-event", "html"])
def test_a_broken_stream_is_rolled_back_and_its_text_is_there_once(site: Site, fault: str) -> None:
    turn = site.enqueue(f"Once sim:{fault}")

    events = site.events(turn)

    view = site.keeper.show(turn.id)
    assert outcomes(view) == [AttemptOutcome.RETRIED, AttemptOutcome.COMPLETED]
    assert view.text.count("1 user message") == 1
    transcript = Transcript()
    transcript.feed(events)
    assert transcript.text == view.text


def test_a_late_follower_never_sees_the_parts_of_a_failed_attempt(site: Site) -> None:
    view = site.run("Once sim:cut")

    events = list(site.keeper.follow(view.id))

    assert all(event.attempt == 2 for event in events if isinstance(event, TurnPart))
    assert "".join(m.text for e in events if isinstance(e, TurnCommitted) for m in e.messages) == view.text


def test_a_follower_resumes_exactly_behind_the_last_event_it_saw(site: Site) -> None:
    word = site.script({"type": "answer", "text": "word " * 20, "chunk_chars": 5, "chunk_delay_ms": 20})
    turn = site.enqueue(f"Slowly {word}")
    whole = site.events(turn)

    # Behind the final event there is nothing left to resume: there the end is told once more.
    for cut, event in enumerate(whole[:-1], start=1):
        rest = list(site.keeper.follow(turn.id, after=event.id))

        assert [one.id for one in rest if not isinstance(one, TurnPart)] == [
            one.id for one in whole[cut:] if not isinstance(one, TurnPart)
        ]


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        pytest.param("unauthorized", ErrorKind.AUTH, 401, id="a rejected key"),
        pytest.param("quota", ErrorKind.USAGE_LIMIT, 429, id="a used-up quota"),
        pytest.param("context-overflow", ErrorKind.CONTEXT_OVERFLOW, 400, id="a prompt that does not fit"),
        pytest.param("content-filter", ErrorKind.CONTENT_FILTER, None, id="a filtered answer"),
    ],
)
def test_what_no_retry_can_mend_is_stored_at_once(
    site: Site, fault: str, kind: ErrorKind, status: int | None
) -> None:
    view = site.run(f"Try sim:{fault}")

    assert view.state is TurnState.FAILED
    assert outcomes(view) == [AttemptOutcome.FAILED]
    assert view.error is not None
    assert (view.error.kind, view.error.status_code) == (kind, status)
    assert view.error.message


def test_a_reload_tells_the_same_error_as_the_live_event(site: Site) -> None:
    turn = site.enqueue("Try sim:quota")

    final = site.events(turn)[-1]

    assert final.type == "turn.failed"
    assert site.keeper.show(turn.id).error == final.error


def test_turns_of_one_chat_run_one_after_another_in_order(site: Site) -> None:
    first = site.enqueue("Message 1 sim:slow")
    others = [site.enqueue(f"Message {number}", chat=first.chat_id) for number in range(2, 6)]

    views = [site.finish(turn) for turn in (first, *others)]

    spans = [(view.started_at, view.finished_at) for view in views]
    assert all(view.state is TurnState.COMPLETED for view in views)
    for (_, finished), (started, _) in pairwise(spans):
        assert started is not None
        assert finished is not None
        assert finished <= started
    assert "5 user messages" in views[-1].text


def test_a_running_turn_is_cancelled_at_once_and_keeps_what_was_said(site: Site) -> None:
    word = site.script({"type": "answer", "text": "word " * 500, "chunk_chars": 5, "chunk_delay_ms": 50})
    turn = site.enqueue(f"Go on {word}")
    events = site.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnPart))

    site.keeper.cancel(turn.id)

    final = list(events)[-1]
    assert final.type == "turn.cancelled"
    view = site.keeper.show(turn.id)
    assert view.state is TurnState.CANCELLED
    assert view.text.startswith("word")
    assert outcomes(view) == [AttemptOutcome.CANCELLED]
    assert view.finished_at is not None
    assert view.cancel_requested_at is not None
    assert (view.finished_at - view.cancel_requested_at).total_seconds() < 1.0


def test_a_turn_that_waits_for_its_retry_is_cancelled_on_the_spot(site: Site) -> None:
    word = site.script({"type": "status", "status": 429, "headers": {"Retry-After": "600"}})
    turn = site.enqueue(f"Wait {word}")
    events = site.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnRetry))

    cancelled = site.keeper.cancel(turn.id)

    assert cancelled.changed
    assert list(events)[-1].type == "turn.cancelled"
    assert site.keeper.show(turn.id).state is TurnState.CANCELLED


def test_retry_skips_a_long_countdown(site: Site) -> None:
    word = site.script({"type": "status", "status": 429, "headers": {"Retry-After": "600"}})
    turn = site.enqueue(f"Wait {word}")
    events = site.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnRetry))

    site.keeper.retry(turn.id)

    assert list(events)[-1].type == "turn.completed"


def test_retry_answers_the_message_of_a_failed_turn_in_a_new_one(site: Site) -> None:
    word = site.script({"type": "status", "status": 401})
    failed = site.run(f"Try {word}")
    site.script({"type": "answer"}, word=word)

    again = site.keeper.retry(failed.id)

    view = site.finish(again)
    assert view.state is TurnState.COMPLETED
    assert view.retry_of == failed.id
    assert "1 user message" in view.text


def test_a_hint_beyond_the_limit_ends_the_turn_with_a_time_to_try_after(site: Site) -> None:
    word = site.script({"type": "status", "status": 429, "headers": {"Retry-After": "86400"}})

    view = site.run(f"Wait a day {word}")

    assert view.state is TurnState.FAILED
    assert view.error is not None
    assert view.error.kind is ErrorKind.RATE_LIMIT


def test_an_attempt_keeps_the_facts_that_decided_and_no_word_of_the_chat(site: Site) -> None:
    view = site.run("A secret plan sim:quota")

    (attempt,) = view.attempts
    assert attempt.facts is not None
    assert attempt.facts["code"] == "insufficient_quota"
    assert attempt.facts["gave_up"] == "terminal"
    assert attempt.facts["request_id"].startswith("req_")
    assert attempt.facts["rule"]
    assert "secret plan" not in str(attempt.facts)


def test_the_same_message_sent_twice_under_a_key_is_one_turn(site: Site) -> None:
    key = f"key-{UUID(int=7)}"

    first = site.enqueue("Once", idempotency_key=key)
    second = site.enqueue("Once", idempotency_key=key)

    assert (second.id, second.is_new) == (first.id, False)
    assert len(site.calls(site.finish(first).id)) == 1
