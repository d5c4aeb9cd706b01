"""Edits, erasures and housekeeping through real workers."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from turnkeeper import AttemptOutcome, TurnState
from turnkeeper.events import TurnPart
from turnkeeper.keys import events_key
from turnkeeper.turns import Enqueued
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site_with

LATELY = timedelta(seconds=20)
WORDS = "word " * 2000
SLOWLY = {"type": "answer", "text": WORDS, "chunk_chars": 5, "chunk_delay_ms": 50}


def settings(_: str) -> Iterator[str]:
    yield "lease_ttl_seconds = 3.0"
    yield "beat_seconds = 0.5"
    yield "housekeeping_seconds = 0.3"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack that tidies up all the time."""
    yield from open_site_with(tmp_path_factory.mktemp("desk"), settings, concurrency=20)


def speaking(site: Site, *, chat: UUID | None = None, **options: Any) -> Enqueued:
    """Return a turn that has begun to speak, and will not end by itself."""
    turn = site.enqueue(f"Go on {site.script(SLOWLY)}", chat=chat, **options)
    next(event for event in site.keeper.follow(turn.id) if isinstance(event, TurnPart))
    return turn


def execute(site: Site, statement: str, *parameters: object) -> None:
    with site.keeper._engine.begin() as connection:
        connection.exec_driver_sql(statement, parameters)


class TestEditing:
    def test_the_model_sees_the_new_history_alone_and_the_chat_is_chained_again(self, desk: Site) -> None:
        first = desk.run("The first message")
        second = desk.run("The second message", chat=first.chat_id)
        running = speaking(desk, chat=first.chat_id)

        edited = desk.finish(desk.keeper.edit(second.id, "Another message"))
        after = desk.run("The next message", chat=first.chat_id)

        stopped = desk.keeper.show(running.id)
        assert (stopped.state, stopped.superseded_by) == (TurnState.CANCELLED, edited.id)
        assert stopped.text.startswith("word")
        (replayed,) = desk.calls(edited.id)
        said = json.dumps(replayed["input"])
        assert replayed["previous_response_id"] is None
        assert ("The first message" in said, "Another message" in said) == (True, True)
        assert ("The second message" in said, "word" in said) == (False, False)
        assert "2 user messages" in edited.text
        (chained,) = desk.calls(after.id)
        assert chained["previous_response_id"] == edited.attempts[0].response_id
        assert "3 user messages" in after.text

    def test_an_anchor_from_before_the_message_is_used_again(self, desk: Site) -> None:
        first = desk.run("The first message")
        failed = desk.run("The second message sim:unauthorized", chat=first.chat_id)
        assert failed.state is TurnState.FAILED

        edited = desk.finish(desk.keeper.edit(failed.id, "Another message"))

        assert [one.outcome for one in edited.attempts] == [AttemptOutcome.COMPLETED]
        assert edited.attempts[0].chained
        assert "2 user messages" in edited.text

    def test_a_message_is_edited_on_the_command_line(self, desk: Site) -> None:
        first = desk.run("The first message", owner="ada")

        ran = desk.cli("edit", str(first.id), "-", "--json", stdin="Another message")

        new = json.loads(ran.out)["turn_id"]
        assert (ran.code, desk.cli("follow", new).code) == (0, 0)
        assert f"superseded by turn {new}" in desk.cli("show", str(first.id)).out
        again = desk.cli("edit", str(first.id), "A third one")
        assert (again.code, again.out) == (2, "")
        assert again.err == (
            f"turnkeeper: turn {first.id} cannot be edited: edit turn {new}, which stands in its place\n"
        )
        retried = desk.cli("retry", str(first.id))
        assert retried.code == 2
        assert f"turn {new} stands in its place" in retried.err

    def test_a_message_is_edited_by_a_message(self, desk: Site) -> None:
        first = desk.run("The first message")
        request = {"edits": str(first.id), "text": "Another message"}

        desk.keeper._celery.send_task("turnkeeper.submit_turn", args=[request])

        assert poll(lambda: desk.keeper.show(first.id).superseded_by, within=LATELY)
        new = desk.keeper.show(first.id).superseded_by
        assert new is not None
        assert poll(lambda: desk.keeper.show(new).state is TurnState.COMPLETED, within=LATELY)
        assert "1 user message." in desk.keeper.show(new).text


class TestErasing:
    def test_a_chat_is_erased_while_a_turn_of_it_runs(self, desk: Site) -> None:
        first = desk.run("The first message")
        running = speaking(desk, chat=first.chat_id, background=True)

        ran = desk.cli("erase", str(first.chat_id), "--json")

        assert json.loads(ran.out) == {"chat_id": str(first.chat_id), "turns": 2, "stopped": 1}
        assert poll(lambda: was_called_off(desk, running.id), within=LATELY)
        assert poll(lambda: not remains(desk), within=LATELY)
        for turn_id in (first.id, running.id):
            assert desk.keeper._redis.exists(events_key(turn_id)) == 0
            assert desk.cli("show", str(turn_id)).code == 2
        assert desk.run("And now?").state is TurnState.COMPLETED

    def test_a_chat_that_is_unknown_is_told_in_one_line(self, desk: Site) -> None:
        ran = desk.cli("erase", str(UUID(int=1)))

        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)


def was_called_off(site: Site, turn_id: UUID) -> bool:
    return any(fetch["kind"] == "cancel" for call in site.calls(turn_id) for fetch in call["fetches"])


def remains(site: Site) -> int:
    with site.keeper._engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM erased_turns")) or 0)


class TestHousekeeping:
    def test_workers_delete_the_records_of_a_turn_that_ended_long_ago(self, desk: Site) -> None:
        old, young = desk.run("The first message"), desk.run("Hello")

        execute(desk, "UPDATE turns SET finished_at = now() - interval '91 days' WHERE id = %s", old.id)
        execute(desk, "UPDATE attempts SET started_at = now() - interval '91 days' WHERE turn_id = %s", old.id)

        assert poll(lambda: not desk.keeper.show(old.id).attempts, within=LATELY)
        assert desk.keeper.show(old.id).text == old.text
        assert desk.keeper.show(young.id).attempts

    def test_they_are_deleted_on_the_command_line(self, desk: Site) -> None:
        view = desk.run("Hello")

        kept = desk.cli("prune")
        deleted = desk.cli("prune", "--older-than", "0s", "--json")

        assert (kept.code, kept.out) == (0, "deleted nothing\n")
        assert json.loads(deleted.out)["attempts"] > 0
        assert desk.keeper.show(view.id).attempts == ()
        assert "Hello" in desk.keeper.show(view.id).text

    @pytest.mark.parametrize("age", ["", "30", "-1d", "a month", "9999999d"])
    def test_what_is_no_age_is_refused(self, desk: Site, age: str) -> None:
        ran = desk.cli("prune", f"--older-than={age}")

        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)

    def test_where_all_is_kept_an_age_is_asked_for(self, desk: Site) -> None:
        ran = desk.cli("prune", TURNKEEPER_RETENTION_DAYS="0")

        assert (ran.code, len(ran.err.splitlines())) == (2, 1)

    def test_a_turn_that_nobody_woke_is_woken(self, desk: Site) -> None:
        with desk.keeper._engine.begin() as connection:
            turn = desk.enqueue("Hello", connection=connection)
            lose = "UPDATE turns SET available_at = NULL, rung_at = NULL WHERE id = %s"
            connection.exec_driver_sql(lose, (turn.id,))

        assert desk.finish(turn).state is TurnState.COMPLETED
