"""What a turn sends as its chat grows: the same with a chain, more and more with a full replay.

`python tests/benchmarks/chains.py [MESSAGES]` grows two chats to that many messages through a real worker, prints
the bytes of a turn's request along the way, and exits 1 where a chained turn grows, or a full replay other than in
step with its messages.
"""

import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.progress import track
from rich.table import Table

from turnkeeper import Turnkeeper
from turnkeeper_ops.dev import Stack, stack

SAID = "sim:bench " + "The river runs past the mill and on to the sea. " * 4
"""Every message of the user's, of the same length."""
AT_ONCE = 50
"""Turns that wait in a chat at the same time."""
STEPS = (10, 50, 200, 500, 1000, 2000)
MAX_CHAINED_GROWTH = 1.2
MAX_REPLAY_SPREAD = 1.3
"""Bytes per message, the most against the least."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes of one turn's request, by the messages that its chat held then."""

    chained: dict[int, int]
    replayed: dict[int, int]

    @property
    def chained_ratio(self) -> float:
        """The largest chained request against the smallest."""
        return max(self.chained.values()) / min(self.chained.values())

    @property
    def replay_spread(self) -> float:
        """Bytes per message of a full replay, the most against the least."""
        each = [size / messages for messages, size in self.replayed.items()]
        return max(each) / min(each)


def main() -> int:
    """Print the figures; return 1 when one of them is out of bounds."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS[-1]
    with tempfile.TemporaryDirectory() as folder, stack(Path(folder), concurrency=8, durable=False) as running:
        script(running)
        with running.keeper() as keeper:
            growth = Growth(
                chained=dict(grow(running, keeper, "simulator", most)),
                replayed=dict(grow(running, keeper, "simulator_chat", most)),
            )
    report(growth)
    is_good = growth.chained_ratio <= MAX_CHAINED_GROWTH and growth.replay_spread <= MAX_REPLAY_SPREAD
    return 0 if is_good else 1


def grow(running: Stack, keeper: Turnkeeper, provider: str, most: int) -> Iterator[tuple[int, int]]:
    """Let a chat grow; yield how many messages a turn found, and how many bytes it sent."""
    chat, messages = _run(keeper, None, provider, 1), 2
    for step in track(
        [step for step in STEPS if step <= most], description=provider, console=Console(stderr=True)
    ):
        while messages < step:
            turns = min(AT_ONCE, (step - messages + 1) // 2)
            _run(keeper, chat, provider, turns)
            messages += 2 * turns
        asked = keeper.enqueue(chat, SAID, provider=provider)
        _finish(keeper, asked.id)
        yield messages, sent_by(running, asked.id)
        messages += 2


def _run(keeper: Turnkeeper, chat: UUID | None, provider: str, count: int) -> UUID:
    """Enqueue so many turns in a chat and wait for all of them; return the chat."""
    turns = [keeper.enqueue(chat, SAID, provider=provider) for _ in range(count)]
    for turn in turns:
        _finish(keeper, turn.id)
    return turns[0].chat_id


def _finish(keeper: Turnkeeper, turn_id: UUID) -> None:
    final = list(keeper.follow(turn_id))[-1]
    if final.type != "turn.completed":
        raise SystemExit(f"turn {turn_id} ended with {final.type}")


def sent_by(running: Stack, turn_id: UUID) -> int:
    """Return the bytes of a turn's one request."""
    (call,) = _ask(running, "GET", f"/simulator/requests?turn={turn_id}&items=0")["requests"]
    return int(call["request_bytes"])


def script(running: Stack) -> None:
    """Let the model always say the same."""
    answer = {"type": "answer", "text": SAID.removeprefix("sim:bench "), "chunk_chars": 1000}
    _ask(running, "PUT", "/simulator/scripts/bench", {"steps": [answer], "repeat_last": True})


def _ask(running: Stack, method: str, path: str, body: object = None) -> Any:
    content = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{running.addresses.simulator_url}{path}", content, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def report(growth: Growth) -> None:
    """Print the table and the ratios."""
    table = Table("messages", "chained, bytes", "full replay, bytes", "replay, bytes per message", box=None)
    for messages, chained in growth.chained.items():
        replayed = growth.replayed[messages]
        table.add_row(*(f"{number:,}" for number in (messages, chained, replayed, round(replayed / messages))))
    console = Console()
    console.print(table)
    console.print(f"chained: {growth.chained_ratio:.2f} times (at most {MAX_CHAINED_GROWTH})")
    console.print(f"full replay, per message: {growth.replay_spread:.2f} times (at most {MAX_REPLAY_SPREAD})")


if __name__ == "__main__":
    sys.exit(main())
