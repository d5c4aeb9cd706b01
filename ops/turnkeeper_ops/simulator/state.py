"""Everything one simulator knows while it runs, and the settings it was started with."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from turnkeeper_ops.simulator.generations import Generations
from turnkeeper_ops.simulator.journal import Instant, Journal
from turnkeeper_ops.simulator.scripts import Script
from turnkeeper_ops.simulator.turns import ScriptBook
from turnkeeper_ops.simulator.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a simulator is started."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port."""
    api_key: str = "sk-simulator"
    """The only key that is accepted; it guards nothing, for the provider is a fake."""
    chunk_delay_ms: float = 20.0
    """Wait between the chunks of an answer whose step does not say."""
    context_tokens: int = 1_000_000
    """A longer prompt is refused with context_length_exceeded."""
    scripts: dict[str, Script] = field(default_factory=dict)
    """More scripts, or others in the place of ready-made ones."""


def read_clocks() -> Instant:
    """Return the current time."""
    return Instant(monotonic=time.monotonic(), wall=datetime.now(UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The parts that the endpoints work on."""

    settings: Settings
    book: ScriptBook
    started: Instant
    vault: Vault = field(default_factory=Vault)
    journal: Journal = field(default_factory=Journal)
    generations: Generations = field(default_factory=Generations)
    clock: Callable[[], Instant] = read_clocks
