"""A whole stack for the acceptance tests, and the ways in which a person and a program use it."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from turnkeeper import Turnkeeper
from turnkeeper.events import Event
from turnkeeper.turns import Enqueued
from turnkeeper.views import TurnView
from turnkeeper_ops.dev import Stack, stack

CLI = (sys.executable, "-m", "turnkeeper_worker.cli")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command of the CLI left behind."""

    code: int
    out: str
    err: str


@dataclass(slots=True)
class Site:
    """A running stack, as its users see it."""

    folder: Path
    running: Stack
    keeper: Turnkeeper

    def cli(self, *arguments: str, stdin: str | None = None, **environment: str) -> Ran:
        """Run a command in the stack's folder, with nothing set but what is given here."""
        ran = subprocess.run(
            [*CLI, *arguments],
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


@pytest.fixture(autouse=True)
def _let_stacks_read_their_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that a test starts read the `turnkeeper.toml` of their stack's folder."""
    monkeypatch.delenv("TURNKEEPER_CONFIG", raising=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One stack with one worker for every test that leaves it as it was."""
    yield from open_site(tmp_path_factory.mktemp("site"))
