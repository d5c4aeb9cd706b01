"""When a step may continue from an anchor: only when nothing at all speaks against it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from turnkeeper.messages import Message, Text, ToolResult
from turnkeeper_worker.chain import (
    Anchor,
    Chained,
    Credential,
    FullReplay,
    Health,
    Present,
    plan,
    read_anchor,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
ANCHOR = Anchor(response_id="resp_1", credential=HERE, seq=3, position=1, digest="d", made_at=NOW)
HELLO = Message(role="user", parts=(Text(text="Hello"),))
PRESENT = Present(
    credential=HERE,
    kept_for=timedelta(days=30),
    terms="",
    health=Health(),
    digest="d",
    news=(HELLO,),
    now=NOW,
)


def results(*call_ids: str) -> Message:
    return Message(role="user", parts=tuple(ToolResult(call_id=one, output="sunny") for one in call_ids))


def test_an_anchor_that_nothing_speaks_against_is_continued() -> None:
    assert plan(ANCHOR, PRESENT) == Chained(ANCHOR)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"kept_for": None}, "the provider keeps no responses", id="a provider without a store"),
        pytest.param({"now": NOW + timedelta(days=31)}, "the anchor is too old", id="an old anchor"),
        pytest.param({"digest": "e"}, "the history was edited", id="an edited history"),
        pytest.param({"terms": "x"}, "other instructions, options or tools", id="other terms of a thread"),
        pytest.param({"news": ()}, "nothing new to send", id="nothing new"),
        pytest.param(
            {"health": Health(breaks=3, is_resting=True)}, "chains broke too often", id="chains that rest"
        ),
        *(
            pytest.param(
                {"credential": HERE.model_copy(update={name: "other"})},
                "another provider, key, address or model",
                id=f"another {name}",
            )
            for name in ("provider", "base_url", "key", "model")
        ),
    ],
)
def test_a_doubt_means_full_replay(change: dict[str, Any], why: str) -> None:
    assert plan(ANCHOR, replace(PRESENT, **change)) == FullReplay(why)


@pytest.mark.parametrize(
    ("news", "is_chained"),
    [
        pytest.param((results("a", "b"),), True, id="both in one message"),
        pytest.param((results("a"), results("b")), True, id="one by us, one by the producer"),
        pytest.param((results("a"), HELLO), False, id="one is missing"),
        pytest.param((HELLO,), False, id="the user went on instead"),
        pytest.param(
            (results("a"), Message(role="assistant", parts=(Text(text="Hm"),)), results("b")),
            False,
            id="the model spoke before the second",
        ),
    ],
)
def test_calls_that_the_anchor_ended_with_must_all_be_answered(
    news: tuple[Message, ...], is_chained: bool
) -> None:
    anchor = ANCHOR.model_copy(update={"calls": ("a", "b")})

    planned = plan(anchor, replace(PRESENT, news=news))

    assert planned == (Chained(anchor) if is_chained else FullReplay("a tool call has no result"))


def test_a_first_turn_replays() -> None:
    assert plan(None, PRESENT) == FullReplay("no anchor")


def test_a_seal_names_the_key_and_not_the_model() -> None:
    assert HERE.seal == HERE.model_copy(update={"model": "other"}).seal
    assert HERE.seal != HERE.model_copy(update={"key": "other"}).seal


def test_an_anchor_comes_back_from_its_stored_form() -> None:
    assert read_anchor(ANCHOR.model_dump(mode="json")) == ANCHOR


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(None, id="nothing"),
        pytest.param({}, id="an empty object"),
        pytest.param("resp_1", id="a bare id of a former version"),
        pytest.param({"response_id": "resp_1"}, id="half an anchor"),
    ],
)
def test_what_cannot_be_read_is_no_anchor(stored: object) -> None:
    assert read_anchor(stored) is None
