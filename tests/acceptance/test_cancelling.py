"""Cancelling a turn, wherever it is: over within a second, and without Redis within its worker's beat."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from turnkeeper import TurnState
from turnkeeper.events import TurnPart
from turnkeeper.turns import Enqueued
from turnkeeper.views import TurnView
from turnkeeper_ops.services.ports import LOOPBACK
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site_with
from .tools_package import install_tools

A_SECOND = timedelta(seconds=1)
BEAT = timedelta(seconds=0.5)
LATELY = timedelta(seconds=20)
WORDS = "word " * 2000
SLOWLY = {"type": "answer", "text": WORDS, "chunk_chars": 5, "chunk_delay_ms": 50}


@dataclass(frozen=True, slots=True)
class Place:
    """A stack, and two providers that are none."""

    site: Site

    def streams(self) -> Enqueued:
        turn = self.site.enqueue(f"Go on {self.site.script(SLOWLY)}")
        self.wait_for_words(turn)
        return turn

    def stalls(self) -> Enqueued:
        turn = self.site.enqueue(f"Go on {self.site.script({'type': 'stall', 'at': 2})}")
        self.wait_for_words(turn)
        return turn

    def waits_for_the_first_word(self) -> Enqueued:
        turn = self.site.enqueue(f"Go on {self.site.script({'type': 'stall', 'at': 'before_headers'})}")
        assert poll(lambda: self.site.calls(turn.id), within=LATELY)
        return turn

    def is_accepted_by_nobody(self) -> Enqueued:
        return self.running(self.site.enqueue("Anybody there?", provider="mute"))

    def knocks_at_a_port_that_never_answers(self) -> Enqueued:
        return self.running(self.site.enqueue("Anybody there?", provider="deaf"))

    def runs_a_tool(self) -> Enqueued:
        calls = {"type": "answer", "calls": [{"name": "look", "arguments": {"seconds": 600}}]}
        turn = self.site.enqueue(f"Do it {self.site.script(calls)}", tools=("look",))
        assert poll(lambda: self.site.keeper.show(turn.id).tool_runs, within=LATELY)
        return turn

    def waits_for_its_retry(self) -> Enqueued:
        refused = {"type": "status", "status": 429, "headers": {"Retry-After": "600"}}
        turn = self.site.enqueue(f"Wait {self.site.script(refused)}")
        assert poll(lambda: self.site.keeper.show(turn.id).state is TurnState.RETRYING, within=LATELY)
        return turn

    def waits_for_another(self) -> Enqueued:
        return self.site.enqueue("And then?", chat=self.streams().chat_id)

    def running(self, turn: Enqueued) -> Enqueued:
        assert poll(lambda: self.site.keeper.show(turn.id).attempts, within=LATELY)
        return turn

    def wait_for_words(self, turn: Enqueued) -> None:
        next(event for event in self.site.keeper.follow(turn.id) if isinstance(event, TurnPart))

    def ended(self, turn_id: UUID, *, within: timedelta) -> TurnView:
        """Wait for the end of a turn, for no longer than that by our clock and by the database's."""
        assert poll(lambda: self.site.keeper.show(turn_id).state.is_final, within=within)
        view = self.site.keeper.show(turn_id)
        assert view.state is TurnState.CANCELLED
        assert view.finished_at is not None
        assert view.finished_at - (view.cancel_requested_at or view.finished_at) < within
        return view


RUNNING = [
    Place.streams,
    Place.stalls,
    Place.waits_for_the_first_word,
    Place.is_accepted_by_nobody,
    Place.knocks_at_a_port_that_never_answers,
    Place.runs_a_tool,
]
WAITING = [Place.waits_for_its_retry, Place.waits_for_another]
Moment = Callable[[Place], Enqueued]


def settings(url: str, *, mute: int, deaf: int) -> Iterator[str]:
    yield "lease_ttl_seconds = 3.0"
    yield f"beat_seconds = {BEAT.total_seconds()}"
    for name, port in {"mute": mute, "deaf": deaf}.items():
        yield f"[providers.{name}]"
        yield f'base_url = "http://{LOOPBACK}:{port}/v1"'
        yield 'model = "m"'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A stack with short leases and tools, one provider that takes connections and one that does not even that."""
    tools = tmp_path_factory.mktemp("tools")
    install_tools(tools)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as sockets:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tools), os.environ.get("PYTHONPATH")))))
        mute = _listener(sockets, backlog=128)
        deaf = _listener(sockets, backlog=0)
        for _ in range(3):
            _knock(sockets, deaf)
        folder = tmp_path_factory.mktemp("place")
        for site in open_site_with(folder, lambda url: settings(url, mute=mute, deaf=deaf), concurrency=30):
            yield Place(site)


def _listener(sockets: ExitStack, *, backlog: int) -> int:
    """Listen and accept nothing; return the port."""
    listener = sockets.enter_context(socket.socket())
    listener.bind((LOOPBACK, 0))
    listener.listen(backlog)
    port: int = listener.getsockname()[1]
    return port


def _knock(sockets: ExitStack, port: int) -> None:
    """Take a place in the queue before a port; where it is full, the kernel lets everybody wait in silence."""
    client = sockets.enter_context(socket.socket())
    client.setblocking(False)
    client.connect_ex((LOOPBACK, port))


def name_of(moment: Any) -> str:
    return str(moment.__name__).replace("_", " ")


@pytest.mark.parametrize("moment", RUNNING + WAITING, ids=name_of)
def test_a_turn_ends_within_a_second_whatever_it_does(place: Place, moment: Moment) -> None:
    turn = moment(place)

    place.site.keeper.cancel(turn.id)

    view = place.ended(turn.id, within=A_SECOND)
    assert place.site.events(turn)[-1].type == "turn.cancelled"
    assert view.error is None


@pytest.mark.parametrize("moment", [Place.streams, Place.stalls], ids=name_of)
def test_what_had_been_said_is_kept(place: Place, moment: Moment) -> None:
    turn = moment(place)

    place.site.keeper.cancel(turn.id)

    view = place.ended(turn.id, within=A_SECOND)
    assert view.text
    assert place.site.record(turn).read().text == view.text


@pytest.mark.parametrize("moment", RUNNING, ids=name_of)
def test_an_interrupt_does_the_same_and_goes_next(place: Place, moment: Moment) -> None:
    turn = moment(place)

    after = place.site.enqueue("Stop!", chat=turn.chat_id, on_busy="interrupt")

    place.ended(turn.id, within=A_SECOND)
    assert place.site.finish(after).state is TurnState.COMPLETED


def test_an_interrupt_that_comes_by_message_does_the_same(place: Place) -> None:
    turn = place.streams()
    request = {"chat_id": str(turn.chat_id), "text": "Stop!", "on_busy": "interrupt"}

    place.site.keeper._celery.send_task("turnkeeper.submit_turn", args=[request])

    assert poll(lambda: place.site.keeper.show(turn.id).cancel_requested_at, within=LATELY)
    assert place.ended(turn.id, within=A_SECOND).text


def test_without_redis_a_running_turn_ends_within_the_beat_of_its_worker(place: Place) -> None:
    turns = [moment(place) for moment in RUNNING]
    place.site.running.redis.kill()
    try:
        for turn in turns:
            place.site.keeper.cancel(turn.id)
            place.ended(turn.id, within=BEAT + A_SECOND)
    finally:
        place.site.running.redis.start()

    assert place.site.run("And now?").state is TurnState.COMPLETED
