"""Whether a turn costs the same when its chat is long, and when there are very many others.

`python -m tests.benchmarks.growth [--messages 2000] [--rows 200000] [--turns 100] [--rounds 2]`

Small and big are measured in turn: chats of ten messages against chats of `--messages`, and an empty database
against one with `--rows` turns (and twice the messages), which are written by SQL.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import text
from tests.benchmarks.lab import PROVIDER, REPLAYING, Lab, Meter, Spent, lab
from tests.benchmarks.report import Cell, Goal, Report, Series, progress, run

SMALL = 10
CHATS = 20
"""Chats of each length, so that turns do not wait for each other too much."""
MAX_GROWTH = 1.2
FILLING = timedelta(minutes=10)

_CHAT = """
INSERT INTO chats (id, provider, turn_count) VALUES (:chat, :provider, :turns);
INSERT INTO turns (id, chat_id, seq, state, epoch, attempt, provider, request_digest, created_at, finished_at)
SELECT md5(:chat || ' ' || seq)::uuid, :chat, seq, 'completed', 1, 1, :provider, '', now(), now()
FROM generate_series(1, :turns) AS seq;
INSERT INTO messages (turn_id, position, chat_id, turn_seq, role, parts)
SELECT id, position, chat_id, seq, (ARRAY['user', 'assistant'])[position + 1],
       jsonb_build_array(jsonb_build_object('type', 'text', 'text', repeat('Why do people keep bees? ', 4)))
FROM turns, generate_series(0, 1) AS position WHERE chat_id = :chat
"""
_ROWS = """
INSERT INTO chats (id, owner, provider, turn_count)
SELECT md5('chat ' || chat)::uuid, 'owner ' || chat % 1000, 'bench', 10 FROM generate_series(1, :chats) AS chat;
INSERT INTO turns (id, chat_id, seq, owner, state, epoch, attempt, provider, request_digest, created_at,
                   finished_at)
SELECT md5(chat || ' ' || seq)::uuid, md5('chat ' || chat)::uuid, seq, 'owner ' || chat % 1000, 'completed', 1, 1,
       'bench', md5(chat || ' ' || seq), now(), now()
FROM generate_series(1, :chats) AS chat, generate_series(1, 10) AS seq;
INSERT INTO messages (turn_id, position, chat_id, turn_seq, role, parts)
SELECT md5(chat || ' ' || seq)::uuid, position, md5('chat ' || chat)::uuid, seq,
       (ARRAY['user', 'assistant'])[position + 1], '[{{"type": "text", "text": "Why do people keep bees?"}}]'
FROM generate_series(1, :chats) AS chat, generate_series(1, 10) AS seq, generate_series(0, 1) AS position;
INSERT INTO attempts (turn_id, step, number, epoch, worker_id, provider, chained, outcome, started_at, finished_at)
SELECT md5(chat || ' ' || seq)::uuid, 1, 1, 1, md5('worker')::uuid, 'bench', true, 'completed', now(), now()
FROM generate_series(1, :chats) AS chat, generate_series(1, 10) AS seq
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of a turn, in milliseconds."""

    worker: float
    postgres: float

    @classmethod
    def of(cls, spent: Spent, turns: int) -> "Cost":
        """Share what was spent among the turns."""
        return cls(spent.cpu["worker"] / turns * 1000, spent.cpu["postgres"] / turns * 1000)


Found = dict[str, dict[str, list[Cost]]]
"""The costs by what grows, and by how big it is."""


def measure(options: argparse.Namespace) -> Report:
    """Measure small and big in turn."""
    sizes = {"small": SMALL, "big": options.messages}
    found: Found = {}
    with lab() as here, here.workers() as pids:
        here.wait_for_workers()
        turns = Turns(here, pids, options.turns)
        turns.cost([None], PROVIDER)
        for name in (PROVIDER, REPLAYING):
            what = "a chained turn in its chat" if name == PROVIDER else "a full replay of its chat"
            chats = {size: make_chats(here, messages, name) for size, messages in sizes.items()}
            for some in chats.values():
                # The first turn of each chat leaves the anchor that the others are chained to.
                turns.run(CHATS, some, name)
            for number in range(options.rounds):
                for size, some in chats.items():
                    progress(f"growth: round {number + 1} of {options.rounds}, {what}, {size}")
                    found.setdefault(what, {}).setdefault(size, []).append(turns.cost(some, name))
        for size in sizes:
            if size == "big":
                progress(f"growth: writing {options.rows:,} turns")
                fill(here, options.rows)
            for number in range(options.rounds):
                progress(f"growth: round {number + 1} of {options.rounds}, the tables, {size}")
                found.setdefault("the tables", {}).setdefault(size, []).append(turns.cost([None], PROVIDER))
        here.check_all_completed()
    return _report(options, found)


@dataclass(frozen=True, slots=True)
class Turns:
    """Runs turns, and reads what they cost."""

    here: Lab
    pids: list[int]
    count: int

    def run(self, count: int, chats: list[UUID] | list[None], name: str) -> None:
        """Run turns in *chats*, or each in a new one."""
        self.here.enqueue(count, "short-3", name=name, chats=[chat for chat in chats if chat])
        self.here.wait(lambda: self.here.unfinished() == 0, "the turns end", within=FILLING)

    def cost(self, chats: list[UUID] | list[None], name: str) -> Cost:
        """Return what turns cost; the producer's statements are a part of PostgreSQL's share."""
        meter = Meter(worker=self.pids, postgres=[self.here.stack.postgres.pid])
        self.run(self.count, chats, name)
        return Cost.of(meter.read(), self.count)


def make_chats(here: Lab, messages: int, name: str) -> list[UUID]:
    """Write chats that hold so many messages already."""
    chats = [uuid4() for _ in range(CHATS)]
    with here.engine.begin() as connection:
        for chat in chats:
            for statement in _CHAT.split(";"):
                given = {"chat": chat, "provider": name, "turns": messages // 2}
                sent = {key: value for key, value in given.items() if f":{key}" in statement}
                connection.execute(text(statement.replace(":chat ||", "cast(:chat as text) ||")), sent)
    _analyse(here)
    return chats


def fill(here: Lab, rows: int) -> None:
    """Write as many turns of other chats."""
    with here.engine.begin() as connection:
        for statement in _ROWS.split(";"):
            connection.execute(text(statement.replace("{{", "{").replace("}}", "}")), {"chats": rows // 10})
    _analyse(here)


def _analyse(here: Lab) -> None:
    with here.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _report(options: argparse.Namespace, found: Found) -> Report:
    columns = ("what grows", "worker, CPU ms: small", "big", "ratio", "PostgreSQL, CPU ms: small", "big", "ratio")
    report = Report(
        f"Growth: chats of {SMALL} and {options.messages:,} messages, tables of few and {options.rows:,} turns",
        columns,
    )
    for what, costs in found.items():
        cells: list[Cell] = [what]
        for figure in (lambda cost: cost.worker, lambda cost: cost.postgres):
            small, big = _small_and_big(costs, figure)
            cells += [small, big, big.against(small)]
        report.rows.append(tuple(cells))
        if "replay" not in what:
            small, big = _small_and_big(costs, lambda cost: cost.worker + cost.postgres)
            report.goals.append(Goal(f"{what}, CPU of both, big / small", big.against(small), MAX_GROWTH))
    report.notes = ["A full replay reads and sends every message of its chat, so its cost grows with them."]
    return report


def _small_and_big(costs: dict[str, list[Cost]], figure: Callable[[Cost], float]) -> tuple[Series, Series]:
    return Series.over(costs["small"], figure), Series.over(costs["big"], figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="growth", description="whether a turn stays as cheap as it was")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=100)
    sys.exit(run(parser, measure))
