"""When a turn may continue from an anchor: only when nothing at all speaks against it."""

from typing import Any

import pytest

from turnkeeper_worker.chain import Anchor, Chained, Credential, FullReplay, plan, read_anchor

HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
ANCHOR = Anchor(response_id="resp_1", credential=HERE, through=3, digest="d")
GOOD: dict[str, Any] = {"credential": HERE, "stores": True, "digest": "d", "has_news": True}


def test_an_anchor_that_nothing_speaks_against_is_continued() -> None:
    assert plan(ANCHOR, **GOOD) == Chained(ANCHOR)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"stores": False}, "the provider keeps no responses", id="a provider without a store"),
        pytest.param({"digest": "e"}, "the history was edited", id="an edited history"),
        pytest.param({"has_news": False}, "nothing new to send", id="nothing new"),
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
    assert plan(ANCHOR, **(GOOD | change)) == FullReplay(why)


def test_a_first_turn_replays() -> None:
    assert plan(None, **GOOD) == FullReplay("no anchor")


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
