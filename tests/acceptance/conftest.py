"""A whole stack for the acceptance tests, and the ways in which a person and a program use it."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert

from turnkeeper import AttemptOutcome, Transcript, Turnkeeper
from turnkeeper.events import Event, FinalEvent, TurnCompleted, TurnFailed, TurnRetry, read_event
from turnkeeper.follow import FIELD
from turnkeeper.keys import events_key
from turnkeeper.tables import chats, messages, turns
from turnkeeper.turns import Enqueued
from turnkeeper.views import TurnView
from turnkeeper_ops.dev import Stack, stack
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES
from turnkeeper_ops.services.process import poll

CLI = (sys.executable, "-m", "turnkeeper_worker.cli")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command of the CLI left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that is known of a turn that has ended."""

    view: TurnView
    events: list[Event]
    """Every one, those of failed attempts too, which late followers are spared."""
    calls: list[dict[str, Any]]
    """What the simulator logged of it, without the items."""

    @property
    def tries(self) -> list[tuple[AttemptOutcome, str | None]]:
        """The outcome and the kind of each attempt."""
        return [(attempt.outcome, attempt.kind) for attempt in self.view.attempts]

    @property
    def answer(self) -> str:
        """What the simulator answers to the first message of a chat."""
        (said,) = (message.text for message in self.view.messages if message.role == "user")
        return f"I have read 1 user message. It says: “{said}”."

    @property
    def finish(self) -> str | None:
        """Why the model stopped; None where the turn was not completed."""
        last = self.events[-1]
        return last.finish if isinstance(last, TurnCompleted) else None

    def read(self) -> Transcript:
        """Return what a reader who saw everything is left with."""
        transcript = Transcript()
        transcript.feed(self.events)
        return transcript

    def taken_back(self) -> list[tuple[str, str]]:
        """Return the provisional words before and behind each event that makes an attempt void."""
        transcript, taken = Transcript(), []
        for event in self.events:
            before = _provisional(transcript)
            transcript.feed([event])
            if isinstance(event, TurnRetry | TurnFailed):
                taken.append((before, _provisional(transcript)))
        return taken


def _provisional(transcript: Transcript) -> str:
    return "".join(part.text for part in transcript.provisional if part.kind == "text")


def outcomes(view: TurnView) -> list[AttemptOutcome]:
    """Return how each attempt of a turn ended."""
    return [attempt.outcome for attempt in view.attempts]


@dataclass(slots=True)
class Site:
    """A running stack, as its users see it."""

    folder: Path
    running: Stack
    keeper: Turnkeeper

    def cli(self, *arguments: str, stdin: str | None = None, **environment: str) -> Ran:
        """Run a command in the stack's folder, with nothing set but what is given here."""
        return self._run([*CLI, *arguments], stdin, environment)

    def python(self, program: str, *arguments: str) -> Ran:
        """Run a program of a producer's against the stack."""
        return self._run([sys.executable, "-c", program, *arguments], None, self.running.addresses.environment())

    def _run(self, command: Sequence[str], stdin: str | None, environment: dict[str, str]) -> Ran:
        ran = subprocess.run(
            command,
            cwd=self.folder,
            env=bare_environment() | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def script(self, *steps: dict[str, Any], word: str | None = None) -> str:
        """Teach the simulator what to do with a turn, or teach it anew; return the word that asks for it."""
        word = word or f"sim:test-{uuid4().hex[:12]}"
        self._simulator("PUT", f"/simulator/scripts/{word.removeprefix('sim:')}", {"steps": steps})
        return word

    def calls(self, turn_id: UUID) -> list[dict[str, Any]]:
        """Return what the simulator logged of a turn, in order."""
        found: list[dict[str, Any]] = self._simulator("GET", f"/simulator/requests?turn={turn_id}")["requests"]
        return found

    def enqueue(self, text: str, *, chat: UUID | None = None, **options: Any) -> Enqueued:
        """Enqueue a turn at the simulator."""
        return self.keeper.enqueue(chat, text, **({"provider": "simulator", "model": "sim-1"} | options))

    def finish(self, turn: Enqueued) -> TurnView:
        """Follow a turn to its end, and read it."""
        for _ in self.keeper.follow(turn.id):
            pass
        return self.keeper.show(turn.id)

    def run(self, text: str, *, chat: UUID | None = None, **options: Any) -> TurnView:
        """Enqueue a turn and wait for its end."""
        return self.finish(self.enqueue(text, chat=chat, **options))

    def events(self, turn: Enqueued) -> list[Event]:
        """Return all events of a turn, once it has ended."""
        return list(self.keeper.follow(turn.id))

    def record(self, turn: Enqueued) -> Record:
        """Wait until the last event of a turn is told; return all that is known of it."""

        def told() -> list[Event] | None:
            entries = self.keeper._redis.xrange(events_key(turn.id))
            events = [read_event(identifier.decode(), content[FIELD]) for identifier, content in entries]
            return events if events and isinstance(events[-1], FinalEvent) else None

        events = poll(told, within=timedelta(seconds=60))
        assert events is not None, self.keeper.show(turn.id)
        calls = self._simulator("GET", f"/simulator/requests?turn={turn.id}&items=0")["requests"]
        return Record(self.keeper.show(turn.id), events, calls)

    def run_all(self, turns: Sequence[tuple[str, str]]) -> list[Record]:
        """Run turns side by side, each a text and the provider that it is for; return what is known of each."""
        with ThreadPoolExecutor(8) as users:
            enqueued = list(users.map(lambda turn: self.enqueue(turn[0], provider=turn[1]), turns))
        return [self.record(one) for one in enqueued]

    def gather(self, count: int, **turn: Any) -> None:
        """Store turns as if they had been enqueued, each in a chat of its own, and tell nobody.

        Args:
            count: How many.
            turn: What is not usual about them.
        """
        usual = {"seq": 1, "provider": SIMULATOR, "request_digest": ""} | turn
        crowd = [{"id": uuid4(), "chat_id": uuid4()} | usual for _ in range(count)]
        said = {"position": 0, "role": "user", "parts": [{"type": "text", "text": "One of many"}]}
        with self.keeper._engine.begin() as connection:
            chat = {"provider": usual["provider"], "turn_count": 1}
            connection.execute(insert(chats), [{"id": one["chat_id"]} | chat for one in crowd])
            connection.execute(insert(turns), crowd)
            connection.execute(
                insert(messages),
                [{"turn_id": one["id"], "chat_id": one["chat_id"], "turn_seq": 1} | said for one in crowd],
            )

    def spent(self, turn_id: UUID) -> int:
        """Return how many attempts were charged to the budget of a turn's last step."""
        with self.keeper._engine.connect() as connection:
            query = "SELECT spent FROM turns WHERE id = %s"
            charged: int = connection.exec_driver_sql(query, (turn_id,)).scalar_one()
            return charged

    def replace_worker(self) -> None:
        """Kill the worker as the kernel would, and start another one."""
        self.running.workers.pop(0).kill()
        self.running.start_worker()

    def flower(self, path: str) -> Any:
        """Ask Flower's API."""
        with urllib.request.urlopen(self.running.addresses.flower_url + path, timeout=10) as response:
            return json.load(response)

    def _simulator(self, method: str, path: str, body: object = None) -> Any:
        url = f"{self.running.addresses.simulator_url}{path}"
        content = json.dumps(body).encode() if body is not None else None
        with urllib.request.urlopen(urllib.request.Request(url, content, method=method), timeout=10) as answer:
            return json.load(answer)


def bare_environment() -> dict[str, str]:
    """Return the environment without any setting or key of whoever runs the tests."""
    hidden = ("TURNKEEPER_", "OPENAI_", "ANTHROPIC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def open_site(
    folder: Path, *, concurrency: int = 250, lines: Sequence[str] = (), durable: bool = False
) -> Iterator[Site]:
    """Run a stack with one worker; *lines* is its `turnkeeper.toml`."""
    (folder / "turnkeeper.toml").write_text("\n".join(lines), encoding="utf-8")
    with (
        stack(folder, concurrency=concurrency, durable=durable) as running,
        running.keeper() as keeper,
    ):
        yield Site(folder, running, keeper)


def open_site_with(
    folder: Path, settings: Callable[[str], Iterable[str]], *, concurrency: int = 250
) -> Iterator[Site]:
    """Run a stack whose worker reads the `turnkeeper.toml` that *settings* writes for the simulator's address."""
    with (
        stack(folder, workers=0, concurrency=concurrency, durable=False) as running,
        running.keeper() as keeper,
    ):
        lines = settings(running.addresses.simulator_url or "")
        (folder / "turnkeeper.toml").write_text("\n".join(lines), encoding="utf-8")
        running.start_worker()
        running.wait_until_ready()
        yield Site(folder, running, keeper)


@pytest.fixture(autouse=True)
def _let_stacks_read_their_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that a test starts read the `turnkeeper.toml` of their stack's folder."""
    monkeypatch.delenv("TURNKEEPER_CONFIG", raising=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One stack with one worker for every test that leaves it as it was."""
    yield from open_site(tmp_path_factory.mktemp("site"))


HASTY = "hasty"
HASTE_SECONDS = 2.0
LONERS = 8
"""How many providers of each API share their connection with no other turn, because it is going to be closed."""
APIS = {
    SIMULATOR: "openai-responses",
    SIMULATOR_CHAT: "openai-chat",
    SIMULATOR_MESSAGES: "anthropic-messages",
}


@pytest.fixture(scope="session")
def fault_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One stack for the tables of faults: it retries at once, and speaks HTTP/2 and with little patience too."""
    yield from open_site_with(tmp_path_factory.mktemp("faults"), _faulty_settings, concurrency=100)


def _faulty_settings(url: str) -> Iterator[str]:
    # Hundreds of turns at once on a busy machine: these tables are not about leases.
    yield "lease_ttl_seconds = 60"
    yield from ("[retry]", "backoff_base_seconds = 0.05", "backoff_cap_seconds = 0.2")
    haste = f"startup_timeout_seconds = {HASTE_SECONDS}\nsilence_timeout_seconds = {HASTE_SECONDS}"
    for name, api in APIS.items():
        yield _provider(f"{HASTY}_{name}", api, url, haste)
        yield _provider(f"http2_{name}", api, url, "http2 = true")
        for number in range(LONERS):
            yield _provider(f"loner_{number}_{name}", api, url, "http2 = true")


def _provider(name: str, api: str, url: str, more: str) -> str:
    return f"""
[providers.{name}]
api = "{api}"
base_url = "{url}/v1"
api_key_env = "TURNKEEPER_SIMULATOR_KEY"
model = "sim-1"
cooldown = false
{more}
"""
