"""A provider that takes ten calls a second, and far more turns than that: they wait together, and lose nothing."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from turnkeeper import TurnState
from turnkeeper.events import TurnFailed, TurnRetry
from turnkeeper.turns import Enqueued
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site_with

RATE = 10.0
TURNS = 150
SOON = timedelta(seconds=30)
KEYS = ("told", "silent", "heedless", "resting", "cancelled", "now", "shown", "chained", "cleared", "long", "shut")
"""Providers, each with a model of its own, and so with a bucket and a cooldown of its own."""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack with two workers, whose providers have a cooldown, but for the heedless one."""

    def settings(url: str) -> Iterator[str]:
        for name in KEYS:
            yield f"""
[providers.{name}]
base_url = "{url}/v1"
api_key_env = "TURNKEEPER_SIMULATOR_KEY"
model = "{name}"
cooldown = {str(name != "heedless").lower()}
"""

    for site in open_site_with(tmp_path_factory.mktemp("limited"), settings):
        site.running.start_worker()
        site.running.wait_until_ready()
        yield site


@pytest.fixture
def limit(limited: Site) -> Iterator[None]:
    yield
    limited._simulator("DELETE", "/simulator/limit")


def set_limit(site: Site, *, headers: bool = True) -> None:
    site._simulator("PUT", "/simulator/limit", {"requests_per_second": RATE, "burst": 10, "headers": headers})


def enqueue(site: Site, name: str, text: str = "Hello", **options: Any) -> Enqueued:
    return site.enqueue(text, provider=name, model=name, **options)


def run_many(site: Site, name: str, turns: int) -> list[dict[str, Any]]:
    """Run turns all at once; return what the simulator logged of them, in order."""
    site._simulator("DELETE", "/simulator/requests")
    with ThreadPoolExecutor(16) as users:
        enqueued = list(users.map(lambda number: enqueue(site, name, f"Question {number}"), range(turns)))
        views = list(users.map(site.finish, enqueued))
    assert {view.state for view in views} == {TurnState.COMPLETED}
    calls: list[dict[str, Any]] = site._simulator("GET", "/simulator/requests?items=0")["requests"]
    # An attempt for each call, and none for the waiting.
    assert sum(len(view.attempts) for view in views) == len(calls)
    return calls


def refused(calls: list[dict[str, Any]]) -> float:
    return sum(call["status"] == 429 for call in calls) / len(calls)


@pytest.mark.usefixtures("limit")
def test_turns_keep_to_the_pace_that_their_provider_tells(limited: Site) -> None:
    set_limit(limited)

    calls = run_many(limited, "told", TURNS)

    took = calls[-1]["arrived_monotonic"] - calls[0]["arrived_monotonic"]
    assert refused(calls) <= 0.1
    # Lenient, for machines that are busy; the benchmark is not.
    assert took <= 2 * TURNS / RATE


@pytest.mark.usefixtures("limit")
def test_turns_find_the_pace_of_a_provider_that_tells_nothing(limited: Site) -> None:
    set_limit(limited, headers=False)

    assert refused(run_many(limited, "silent", TURNS)) <= 0.3


@pytest.mark.usefixtures("limit")
def test_without_cooldown_most_calls_would_be_refused(limited: Site) -> None:
    """What the tests above are worth."""
    set_limit(limited)

    assert refused(run_many(limited, "heedless", 60)) > 0.3


def throttle(site: Site, name: str, *, seconds: int) -> None:
    """Let one turn meet a 429, and be cancelled after that."""
    word = site.script({"type": "status", "status": 429, "headers": {"retry-after": str(seconds)}})
    turn = enqueue(site, name, f"Hello {word}")
    assert poll(lambda: site.calls(turn.id), within=SOON)
    assert poll(lambda: site.keeper.show(turn.id).state is not TurnState.RUNNING, within=SOON)
    site.keeper.cancel(turn.id)


def parked(site: Site, name: str, **options: Any) -> Enqueued:
    """Enqueue a turn and wait until it is parked."""
    turn = enqueue(site, name, **options)
    assert poll(lambda: site.keeper.show(turn.id).parked_until is not None, within=SOON), site.keeper.show(turn.id)
    return turn


def test_a_turn_that_meets_a_rest_is_told_to_wait_and_goes_when_it_is_over(limited: Site) -> None:
    throttle(limited, "resting", seconds=4)
    turn = parked(limited, "resting")
    assert limited.keeper.show(turn.id).attempts == ()

    record = limited.record(turn)

    waits = [event for event in record.events if isinstance(event, TurnRetry)]
    assert [event.reason for event in waits] == ["cooldown"] * len(waits)
    assert waits[0].error is not None
    assert waits[0].error.kind == "rate_limit"
    assert 0 < waits[0].delay_ms <= 5000
    assert record.tries == [("completed", None)]
    assert len(record.calls) == 1
    assert limited.spent(turn.id) == 0


def test_people_see_that_a_turn_waits_for_its_provider(limited: Site) -> None:
    throttle(limited, "shown", seconds=300)
    turn = parked(limited, "shown")

    shown = limited.cli("show", str(turn.id)).out
    listed = limited.cli("cooldowns").out
    rows = json.loads(limited.cli("cooldowns", "--json").out)

    assert "waits for its provider" in shown
    assert "shown" in listed
    (row,) = [row for row in rows if row["provider"] == "shown"]
    assert (row["model"], row["kind"], row["waiting"]) == ("shown", "rate_limit", 1)

    def flower_shows_it() -> bool:
        task = limited.flower(f"/api/task/info/{turn.id}")
        return task["state"] == "RETRY" and "waits for shown (rate_limit)" in task["exception"]

    assert poll(flower_shows_it, within=SOON), limited.flower(f"/api/task/info/{turn.id}")
    limited.keeper.cancel(turn.id)


def test_a_turn_that_waits_is_cancelled_at_once(limited: Site) -> None:
    throttle(limited, "cancelled", seconds=300)
    turn = parked(limited, "cancelled")

    assert limited.keeper.cancel(turn.id).state is TurnState.CANCELLED
    assert limited.calls(turn.id) == []


def test_a_turn_that_is_retried_by_hand_asks_again_and_waits_again_where_it_must(limited: Site) -> None:
    throttle(limited, "now", seconds=300)
    turn = parked(limited, "now")
    epoch = limited.keeper.show(turn.id).epoch

    limited.keeper.retry(turn.id)

    def waits_again() -> bool:
        view = limited.keeper.show(turn.id)
        return view.epoch > epoch and view.parked_until is not None

    assert poll(waits_again, within=SOON), limited.keeper.show(turn.id)
    assert limited.keeper.cancel(turn.id).changed
    assert limited.calls(turn.id) == []


def test_whoever_clears_a_cooldown_lets_the_turns_go_that_wait_for_it(limited: Site) -> None:
    throttle(limited, "cleared", seconds=300)
    turn = parked(limited, "cleared")

    cleared = limited.cli("cooldowns", "clear", "cleared")

    assert (cleared.code, cleared.out) == (0, "forgot 1; 1 turns come back\n")
    assert limited.finish(turn).state is TurnState.COMPLETED


def test_a_rest_longer_than_any_hint_ends_the_turn_with_a_time_to_try_after(limited: Site) -> None:
    throttle(limited, "long", seconds=1200)
    turn = enqueue(limited, "long")

    *_, final = limited.events(turn)

    assert isinstance(final, TurnFailed)
    assert final.error.kind == "rate_limit"
    assert "Try after" in final.error.message
    assert limited.calls(turn.id) == []
    (attempt,) = limited.keeper.show(turn.id).attempts
    assert attempt.facts is not None
    assert attempt.facts["gave_up"] == "hint_too_long"


def test_a_chat_goes_on_as_a_chain_after_its_turn_has_waited(limited: Site) -> None:
    first = limited.finish(enqueue(limited, "chained"))
    throttle(limited, "chained", seconds=2)

    second = limited.finish(parked(limited, "chained", chat=first.chat_id))

    assert [attempt.chained for attempt in second.attempts] == [True]
    assert second.state is TurnState.COMPLETED


def test_turns_that_wait_survive_the_end_of_every_worker(limited: Site) -> None:
    throttle(limited, "shut", seconds=6)
    turns = [parked(limited, "shut") for _ in range(3)]

    for _ in range(len(limited.running.workers)):
        limited.replace_worker()

    assert {limited.finish(turn).state for turn in turns} == {TurnState.COMPLETED}
