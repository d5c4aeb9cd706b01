"""Checkpoints of background responses: what was said is told again as it was, and rubbish is no checkpoint."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.events import PartKind
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.checkpoint import Checkpoint, Piece, joined, read_checkpoint

HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
CHECKPOINT = Checkpoint(
    response_id="resp_1",
    credential=HERE,
    began_at=datetime(2026, 5, 1, tzinfo=UTC),
    cursor=7,
    pieces=(("text", "Hello"), ("reasoning", "…")),
)
KINDS: tuple[PartKind, ...] = get_args(PartKind)
pieces = st.lists(st.tuples(st.sampled_from(KINDS), st.text()))


def text_of(said: list[Piece] | tuple[Piece, ...], kind: PartKind) -> str:
    return "".join(text for one, text in said if one == kind)


class TestJoining:
    @given(pieces)
    def test_what_was_said_of_each_kind_stays_the_same(self, said: list[Piece]) -> None:
        for kind in KINDS:
            assert text_of(joined(said), kind) == text_of(said, kind)

    @given(pieces)
    def test_neighbours_are_of_different_kinds(self, said: list[Piece]) -> None:
        assert all(one != next_one for (one, _), (next_one, _) in pairwise(joined(said)))

    @given(pieces)
    def test_the_order_of_the_kinds_stays_the_same(self, said: list[Piece]) -> None:
        kinds = [kind for kind, _ in said]

        changes = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]

        assert [kind for kind, _ in joined(said)] == changes

    @given(pieces)
    def test_what_is_joined_is_not_changed_by_joining_again(self, said: list[Piece]) -> None:
        assert joined(list(joined(said))) == joined(said)


class TestReading:
    def test_a_checkpoint_comes_back_from_its_stored_form(self) -> None:
        assert read_checkpoint(CHECKPOINT.model_dump(mode="json")) == CHECKPOINT

    @pytest.mark.parametrize(
        "stored",
        [
            pytest.param(None, id="nothing"),
            pytest.param({}, id="an empty object"),
            pytest.param([], id="a list"),
            pytest.param("resp_1", id="a bare id"),
            pytest.param(7, id="a number"),
            *(
                pytest.param(CHECKPOINT.model_dump(mode="json") | {field: value}, id=f"{field} as {value!r}")
                for field, value in (
                    ("response_id", None),
                    ("credential", "openai"),
                    ("began_at", "yesterday"),
                    ("cursor", "far"),
                    ("pieces", [["text"]]),
                    ("pieces", [["song", "la"]]),
                    ("pieces", None),
                )
            ),
        ],
    )
    def test_what_cannot_be_read_is_no_checkpoint(self, stored: object) -> None:
        assert read_checkpoint(stored) is None

    @given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
    def test_whatever_is_stored_reading_it_breaks_nothing(self, stored: object) -> None:
        assert read_checkpoint(stored) is None

    @pytest.mark.parametrize("field", ["response_id", "credential", "began_at", "cursor"])
    def test_half_a_checkpoint_is_none(self, field: str) -> None:
        stored = CHECKPOINT.model_dump(mode="json")
        del stored[field]

        assert read_checkpoint(stored) is None
