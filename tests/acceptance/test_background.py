"""Background responses through real workers: whoever dies, the provider generates and charges once."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from turnkeeper import AttemptOutcome, ErrorKind, Transcript, TurnState
from turnkeeper.events import TurnPart, TurnRetry, TurnStarted
from turnkeeper.turns import Enqueued
from turnkeeper.views import TurnView
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site_with

WORDS = "word " * 160
LATELY = timedelta(seconds=20)
SLOWLY = {"type": "answer", "text": WORDS, "chunk_chars": 5, "chunk_delay_ms": 60}
LEASE_TTL = 3.0


def settings(url: str) -> Iterator[str]:
    yield f"lease_ttl_seconds = {LEASE_TTL}"
    yield "beat_seconds = 0.5"
    yield "drain_seconds = 0.2"
    yield "checkpoint_seconds = 0.3"
    yield "[retry]"
    yield "backoff_base_seconds = 0.05"
    for name, lines in {"impatient": ["queue_timeout_seconds = 1.5"], "always": ["background = true"]}.items():
        yield f"[providers.{name}]"
        yield f'base_url = "{url}/v1"'
        yield 'api_key_env = "TURNKEEPER_SIMULATOR_KEY"'
        yield 'model = "sim-1"'
        yield from lines


@pytest.fixture(scope="module")
def backstage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack with short leases, and providers of little patience."""
    yield from open_site_with(tmp_path_factory.mktemp("backstage"), settings, concurrency=20)


def ask(site: Site, *steps: dict[str, Any], **options: Any) -> Enqueued:
    return site.enqueue(f"Go on {site.script(*steps)}", **({"background": True} | options))


def wait_for_words(site: Site, turn_id: UUID, count: int = 5) -> None:
    """Return when followers have been told so many pieces."""
    parts = (event for event in site.keeper.follow(turn_id) if isinstance(event, TurnPart))
    for _ in range(count):
        next(parts)


def generations(site: Site, turn_id: UUID) -> int:
    """Return how often the model began to speak for a turn."""
    return sum(call["generated"] for call in site.calls(turn_id))


def fetches(site: Site, turn_id: UUID, how: str) -> list[dict[str, Any]]:
    """Return who came back for the responses of a turn: to `resume`, to `retrieve` or to `cancel`."""
    return [fetch for call in site.calls(turn_id) for fetch in call["fetches"] if fetch["kind"] == how]


def assert_said_once(site: Site, view: TurnView, words: str = WORDS) -> None:
    events = list(site.keeper.follow(view.id))
    transcript = Transcript()
    transcript.feed(events)
    assert view.state is TurnState.COMPLETED
    assert view.text == transcript.text == words


def test_a_response_in_the_background_streams_like_any_other(backstage: Site) -> None:
    view = backstage.finish(ask(backstage, SLOWLY))

    assert_said_once(backstage, view)
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.COMPLETED]
    assert view.usage is not None
    assert generations(backstage, view.id) == 1
    assert backstage.run("And now?", chat=view.chat_id).attempts[0].chained


def test_a_provider_may_be_told_to_do_so_for_all_turns(backstage: Site) -> None:
    view = backstage.run("Hello", provider="always")

    assert generations(backstage, view.id) == 1


def test_the_successor_of_a_killed_worker_finishes_its_response_and_the_model_spoke_once(backstage: Site) -> None:
    turn = ask(backstage, SLOWLY)
    events = backstage.keeper.follow(turn.id)
    for _ in range(20):
        next(events)
    backstage.running.start_worker()

    backstage.running.workers.pop(0).kill()

    rest = list(events)
    view = backstage.keeper.show(turn.id)
    assert_said_once(backstage, view)
    assert generations(backstage, view.id) == 1
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.LOST, AttemptOutcome.COMPLETED]
    assert [one.resumed for one in view.attempts] == [None, True]
    assert [one.resumed for one in rest if isinstance(one, TurnStarted)] == [True]
    assert view.usage == view.attempts[1].usage is not None
    (stream,) = fetches(backstage, turn.id, "resume")
    assert stream["starting_after"] > 0


def test_a_worker_that_shuts_down_leaves_its_response_running(backstage: Site) -> None:
    turn = ask(backstage, SLOWLY)
    wait_for_words(backstage, turn.id)
    leaving = backstage.running.workers.pop(0)
    backstage.running.start_worker()

    os.kill(leaving.pid, signal.SIGTERM)

    view = backstage.finish(turn)
    assert_said_once(backstage, view)
    assert generations(backstage, view.id) == 1
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.HANDED_BACK, AttemptOutcome.COMPLETED]
    assert poll(lambda: leaving.exit_code() is not None, within=LATELY)
    leaving.stop()


@pytest.mark.parametrize("fault", ["cut", "reset", "malformed", "end"])
def test_a_connection_that_breaks_is_not_even_noticed(backstage: Site, fault: str) -> None:
    view = backstage.finish(ask(backstage, SLOWLY | {"type": fault, "at": 10}))

    assert_said_once(backstage, view)
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.COMPLETED]
    assert not [event for event in backstage.keeper.follow(view.id) if isinstance(event, TurnRetry)]
    assert generations(backstage, view.id) == 1


def test_a_stream_that_is_too_old_is_looked_at_until_it_is_over(backstage: Site) -> None:
    view = backstage.finish(ask(backstage, SLOWLY | {"type": "cut", "at": 10, "resumable": False}))

    assert_said_once(backstage, view)
    assert generations(backstage, view.id) == 1


def test_a_response_that_is_gone_is_asked_for_anew(backstage: Site) -> None:
    lost = SLOWLY | {"type": "cut", "at": 10, "retrieval": "gone"}

    view = backstage.finish(ask(backstage, lost, {"type": "answer", "text": "Here."}))

    assert_said_once(backstage, view, "Here.")
    assert [(one.outcome, one.kind) for one in view.attempts] == [
        (AttemptOutcome.RETRIED, ErrorKind.TIMEOUT),
        (AttemptOutcome.COMPLETED, None),
    ]
    assert generations(backstage, view.id) == 2


def test_a_response_that_stays_queued_is_called_off_and_asked_for_anew(backstage: Site) -> None:
    stuck = {"type": "answer", "queued_seconds": 3600}

    view = backstage.finish(ask(backstage, stuck, {"type": "answer", "text": "Here."}, provider="impatient"))

    assert_said_once(backstage, view, "Here.")
    assert [(one.outcome, one.kind) for one in view.attempts] == [
        (AttemptOutcome.RETRIED, ErrorKind.STARTUP_TIMEOUT),
        (AttemptOutcome.COMPLETED, None),
    ]
    assert len(fetches(backstage, view.id, "cancel")) == 1


def test_a_cancel_reaches_the_provider_and_what_it_cost_is_known(backstage: Site) -> None:
    turn = ask(backstage, SLOWLY | {"text": WORDS * 100})
    wait_for_words(backstage, turn.id)

    backstage.keeper.cancel(turn.id)

    assert poll(lambda: backstage.keeper.show(turn.id).state.is_final, within=timedelta(seconds=1))
    assert poll(lambda: fetches(backstage, turn.id, "cancel"), within=LATELY)
    assert poll(lambda: backstage.keeper.show(turn.id).usage is not None, within=LATELY)
    view = backstage.keeper.show(turn.id)
    assert view.state is TurnState.CANCELLED
    assert view.text
    assert WORDS.startswith(view.text[: len(WORDS)])


def test_a_turn_that_is_cancelled_while_nobody_runs_it_is_called_off_as_well(backstage: Site) -> None:
    turn = ask(backstage, SLOWLY | {"text": WORDS * 100})
    wait_for_words(backstage, turn.id)
    backstage.running.workers.pop(0).kill()

    backstage.keeper.cancel(turn.id)
    backstage.running.start_worker()

    assert poll(lambda: fetches(backstage, turn.id, "cancel"), within=LATELY)
    assert poll(lambda: backstage.keeper.show(turn.id).state is TurnState.CANCELLED, within=LATELY)
    assert poll(lambda: backstage.keeper.show(turn.id).usage is not None, within=LATELY)


def test_a_turn_that_asks_for_it_where_it_cannot_be_is_told_so(backstage: Site) -> None:
    view = backstage.finish(ask(backstage, SLOWLY, provider="simulator_chat"))

    assert view.state is TurnState.FAILED
    assert view.error is not None
    assert view.error.kind is ErrorKind.CONFIG
    assert "background" in (view.error.detail or "")
