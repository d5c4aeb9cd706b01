"""The log and the store: bounded, and complete when somebody asks."""

from datetime import UTC, datetime
from typing import Any

import pytest

from turnkeeper_ops.simulator import journal, vault
from turnkeeper_ops.simulator.journal import Entry, Instant, Journal
from turnkeeper_ops.simulator.scripts import CutStep
from turnkeeper_ops.simulator.turns import Applied, Sender
from turnkeeper_ops.simulator.vault import StoredResponse, Vault

NOW = Instant(monotonic=5.0, wall=datetime(2026, 7, 1, tzinfo=UTC))


def opened(log: Journal, turn: str | None = None, request_bytes: int = 1) -> Entry:
    return log.open(api="openai-responses", sender=Sender(turn, "1"), arrived=NOW, request_bytes=request_bytes)


def stored(response_id: str, *, previous: StoredResponse | None = None, **item: Any) -> StoredResponse:
    return StoredResponse(
        id=response_id,
        previous=previous,
        conversation="resp_0",
        input=(item,),
        output=({"type": "message", "id": f"msg_{response_id}"},),
        chars=0,
        body={},
    )


def test_entries_are_selected_by_turn_and_number() -> None:
    log = Journal()
    for turn in ("a", "b", "a", None):
        opened(log, turn)

    assert [entry.number for entry in log.select()] == [1, 2, 3, 4]
    assert [entry.number for entry in log.select(turn="a")] == [1, 3]
    assert [entry.number for entry in log.select(turn="a", after=1)] == [3]


def test_numbers_go_on_after_the_log_was_cleared() -> None:
    log = Journal()
    opened(log)

    assert log.clear() == 1
    assert opened(log).number == 2
    assert len(log) == 1


def test_the_oldest_entries_make_room_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_ENTRIES", 2)
    log = Journal()
    for _ in range(4):
        opened(log)

    assert [entry.number for entry in log.select()] == [3, 4]


def test_the_oldest_entries_make_room_by_bytes_but_the_newest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 10)
    log = Journal()
    for size in (4, 4, 4, 99):
        opened(log, request_bytes=size)

    assert [entry.number for entry in log.select()] == [4]


def test_an_entry_shows_the_history_that_its_anchor_stood_for() -> None:
    log = Journal()
    entry = opened(log, "turn-1")
    entry.previous = stored("resp_2", previous=stored("resp_1", text="first"), text="second")
    entry.input = ({"text": "third"},)
    entry.applied = Applied(CutStep(), "story", 1)

    shown = entry.as_json()

    assert [item.get("text", item.get("id")) for item in shown["history"]] == [
        "first",
        "msg_resp_1",
        "second",
        "msg_resp_2",
        "third",
    ]
    assert (shown["turn"], shown["attempt"], shown["script"], shown["step_number"], shown["step"]) == (
        "turn-1",
        "1",
        "story",
        1,
        "cut",
    )
    assert (shown["outcome"], shown["ended_at"]) == ("in_flight", None)


def test_the_oldest_response_makes_room_with_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "MAX_RESPONSES", 2)
    store = Vault()
    for name in ("resp_1", "resp_2", "resp_3"):
        store.add(stored(name))

    assert (len(store), store.get("resp_1"), store.item("msg_resp_1")) == (2, None, None)
    assert store.item("msg_resp_3") is not None


def test_a_cleared_store_knows_nothing() -> None:
    store = Vault()
    store.add(stored("resp_1"))

    assert store.clear() == 1
    assert (len(store), store.item("msg_resp_1")) == (0, None)
