"""A short storm with every kind of trouble in it; `make chaos` runs a long one."""

import os
import random
from pathlib import Path

import pytest

from .mischief import Prank
from .report import report
from .storm import Forecast, run_storm


def forecast(seed: int) -> Forecast:
    """Return what has everything in it that a long storm has, in less time."""
    return Forecast(
        seed=seed,
        seconds=25.0,
        workers=3,
        chats_per_second=1.0,
        workers_rest=(0.5, 2.5),
        services_rest=(1.0, 4.0),
    )


@pytest.fixture(scope="module")
def seed() -> int:
    """Another storm each time, printed where it fails; CHAOS_SEED asks for a certain one."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))


@pytest.mark.timeout(400)
def test_a_hundred_turns_are_neither_lost_nor_doubled_while_everything_fails(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TURNKEEPER_CONFIG", raising=False)

    evidence = run_storm(forecast(seed), tmp_path)

    found = report(seed, evidence)
    assert found.is_clean, "\n".join([f"CHAOS_SEED={seed}", *found.lines()])
    assert len(evidence.turns) > 50
    assert {Prank.KILL, Prank.REDIS_RESTART, Prank.REDIS_WIPE, Prank.POSTGRES_RESTART} <= {
        incident.prank for incident in evidence.incidents
    }
