"""Everything one simulator knows while it runs, and the settings it was started with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from turnkeeper_ops.simulator.anthropic_pauses import Pauses
from turnkeeper_ops.simulator.anthropic_threads import Threads
from turnkeeper_ops.simulator.generations import Generations
from turnkeeper_ops.simulator.journal import Instant, Journal
from turnkeeper_ops.simulator.limits import Limiter
from turnkeeper_ops.simulator.scripts import Script
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.turns import ScriptBook
from turnkeeper_ops.simulator.vault import Vault

KEY = "sk-simulator"
"""The key that is accepted where no other is set."""
SECOND_KEY = "sk-simulator-second"
"""A key for a second account; accepted where it is set beside the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a simulator is started."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port."""
    api_key: str = KEY
    """A key that is accepted; it guards nothing, for the provider is a fake."""
    more_api_keys: tuple[str, ...] = ()
    """Keys that are accepted too, each an account of its own."""
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
class Account:
    """What the provider keeps for one API key; another key can neither read nor continue it."""

    seal: Seal
    vault: Vault = field(default_factory=Vault)
    generations: Generations = field(default_factory=Generations)
    threads: Threads = field(default_factory=Threads)
    pauses: Pauses = field(default_factory=Pauses)

    def __len__(self) -> int:
        """Return how many responses can be continued."""
        return len(self.vault) + len(self.threads)

    def clear(self) -> int:
        """Drop every response, as an expired retention would; return how many there were."""
        self.generations.clear()
        return self.vault.clear() + self.threads.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The parts that the endpoints work on."""

    settings: Settings
    book: ScriptBook
    started: Instant
    accounts: Mapping[str, Account]
    """By API key."""
    journal: Journal = field(default_factory=Journal)
    limiter: Limiter = field(default_factory=Limiter)
    clock: Callable[[], Instant] = read_clocks


def accounts_of(settings: Settings) -> dict[str, Account]:
    """Return an empty account for each key that is accepted."""
    return {key: Account(seal=Seal(key)) for key in (settings.api_key, *settings.more_api_keys)}
