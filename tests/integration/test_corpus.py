"""The classifier against real failures, where the corpus lies beside the checkout."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turnkeeper_worker.cli.classify import run

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "failures.jsonl"
HIDDEN = {"expect", "why", "ambiguous", "source"}
"""Fields that the classifier must not see."""

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"no corpus at {CORPUS}")

Case = dict[str, Any]


@pytest.fixture(scope="module")
def answered() -> list[tuple[Case, Case]]:
    """Each case with its answer, through the same door as `turnkeeper classify`."""
    cases = [json.loads(line) for line in CORPUS.read_text("utf-8").splitlines()]
    asked = "".join(json.dumps({k: v for k, v in case.items() if k not in HIDDEN}) + "\n" for case in cases)
    out = io.StringIO()
    assert run(io.StringIO(asked), out, explain=False) == 0
    return list(zip(cases, map(json.loads, out.getvalue().splitlines()), strict=True))


@pytest.fixture(scope="module")
def tally(answered: list[tuple[Case, Case]]) -> Counter[str]:
    """How many cases there are of each figure, and how many of them are right."""
    counts: Counter[str] = Counter()
    for case, got in answered:
        if not case["ambiguous"]:
            for figure, right in figures(case["expect"], got):
                counts[figure] += 1
                counts[f"{figure} right"] += right
    return counts


def figures(want: Case, got: Case) -> Iterator[tuple[str, bool]]:
    yield (
        "case",
        got["kind"] in want["kinds"]
        and got["retryable"] == want["retryable"]
        and got["chain_broken"] == want["chain_broken"],
    )
    if want["retry_after_s"] is not None:
        yield "hint", abs((got["retry_after_s"] or 0) - want["retry_after_s"]) <= 1
    if want["status_code"] is not None:
        yield "status", got["status_code"] == want["status_code"]
    if want["detail_contains"]:
        yield "detail", want["detail_contains"].lower() in said(got).lower()


def said(got: Case) -> str:
    return f"{got['detail'] or ''} {got['message']}"


@pytest.mark.parametrize(("figure", "share"), [("case", 0.97), ("hint", 0.95), ("status", 0.95), ("detail", 0.95)])
def test_the_share_that_is_right(tally: Counter[str], figure: str, share: float) -> None:
    assert tally[f"{figure} right"] / tally[figure] >= share


def test_nothing_leaks(answered: list[tuple[Case, Case]]) -> None:
    leaks = [
        (case["id"], secret)
        for case, got in answered
        for secret in case["expect"]["must_not_leak"] or []
        if secret in json.dumps(got)
    ]

    assert leaks == []


def test_no_hint_is_invented(answered: list[tuple[Case, Case]]) -> None:
    invented = [
        case["id"]
        for case, got in answered
        if not case["ambiguous"] and case["expect"]["retry_after_s"] is None and got["retry_after_s"] is not None
    ]

    assert invented == []


def test_no_status_is_invented(answered: list[tuple[Case, Case]]) -> None:
    invented = [
        case["id"]
        for case, got in answered
        if not case["ambiguous"] and case["expect"]["status_code"] is None and got["status_code"] is not None
    ]

    assert invented == []


def test_no_rule_is_used_up_by_one_name(answered: list[tuple[Case, Case]]) -> None:
    """The names of cases are no evidence: without them the answers are the same."""
    case, got = answered[0]
    out = io.StringIO()
    anonymous = {k: v for k, v in case.items() if k not in HIDDEN | {"id"}}

    run(io.StringIO(json.dumps(anonymous)), out, explain=False)

    assert json.loads(out.getvalue()) == got | {"id": None}
