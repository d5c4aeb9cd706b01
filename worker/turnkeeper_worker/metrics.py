"""What Prometheus is told of a worker process: every metric, by name, on a page of its own.

Counters say what happened here, histograms how long it took; gauges are read when Prometheus asks. Labels are
bounded: a name that a producer makes up becomes no series of its own, however many it makes up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from turnkeeper.errors import ErrorKind
from turnkeeper.exceptions import InvalidSettings
from turnkeeper.states import FINAL_STATES

OTHER = "other"
"""Stands for models that too few turns have named."""
UNKNOWN = "unknown"
"""Stands for providers that this worker is not configured for."""
NONE = "none"
"""Stands for the model of a turn that names none."""
KNOWN_AFTER_TURNS = 100
"""A model that no configuration names becomes a label when so many turns have named it."""
MAX_LEARNED = 50
"""No more models than this become labels without being configured."""
MAX_CANDIDATES = 1000
"""So many names are counted at a time; then the count begins anew."""

QUICK = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
FIRST_WORDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
WHOLE_TURNS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
PATIENCE = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 900)
"""Upper bounds of histograms, in seconds."""

CallMetric = TypeVar("CallMetric", Counter, Histogram)
Labels = tuple[str, str]
"""A provider and a model, as far as they may be labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric, as the documentation lists it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """The metrics of one worker process.  Written on its event loop, read by the thread that serves the page.

    Args:
        models: The configured providers, each with the models that its configuration names.
        defaults: The models that providers use where a turn names none.
    """

    def __init__(
        self, models: Mapping[str, Sequence[str]], defaults: Mapping[str, str | None] | None = None
    ) -> None:
        # When a series began is a series more for each, and nobody looks at it.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left the types out
        self.registry = CollectorRegistry()
        self.table: list[Row] = []
        self._labels = LabelBounds(models, defaults or {})
        self._children: dict[tuple[object, ...], Counter | Histogram] = {}
        called = ("provider", "model")

        # What became of turns and attempts.
        self.turns = self._counter("turns", (*called, "outcome"), "Turns that ended here, by final state.")
        self.attempts = self._counter("attempts", (*called, "outcome"), "Attempts that ended, by outcome.")
        self.stream_retries = self._counter(
            "stream_retries",
            (*called, "kind", "chain_broken"),
            "Failed attempts that another one follows: later, or at once with a healed chain or a fallback.",
        )
        self.terminal_failures = self._counter(
            "terminal_failures", (*called, "kind"), "Turns that failed for good, by the kind of their error."
        )
        self.tokens = self._counter(
            "tokens", (*called, "kind"), "Tokens as providers count them, those of failed attempts included."
        )

        # How long things take.
        self.queue_wait = self._histogram("queue_wait_seconds", (), QUICK, "From when a turn is due to its claim.")
        self.first_event = self._histogram(
            "time_to_first_event_seconds", called, FIRST_WORDS, "From the call to the first event of its stream."
        )
        self.silence = self._histogram(
            "provider_silence_seconds", called, PATIENCE, "The longest pause in the stream of an attempt."
        )
        self.duration = self._histogram(
            "turn_duration_seconds",
            called,
            WHOLE_TURNS,
            "From a turn's first claim to its end, countdowns included.",
        )
        self.countdown = self._histogram(
            "countdown_seconds", called, PATIENCE, "How long retries were told to wait."
        )

        # What goes wrong with workers, and what is done about it.
        self.cooldown_waits = self._counter(
            "cooldown_waits",
            called,
            "Turns that were parked: their provider must rest, or be called more slowly.",
        )
        self.leases_lost = self._counter(
            "leases_lost", (), "Turns that were taken from this worker while it ran them."
        )
        self.rescues = self._counter(
            "rescues",
            ("state",),
            "Turns that nobody ran any more and that this worker freed, by the state they got.",
        )
        self.hand_backs = self._counter("hand_backs", (), "Turns that were handed back at shutdown.")
        self.live_events_dropped = self._counter(
            "live_events_dropped", (), "Live events that Redis did not take; followers get the stored result."
        )

        # How things stand.
        self.concurrency = self._gauge("concurrency", "Turns that this worker may hold in flight.")
        self.in_flight = self._gauge(
            "turns_in_flight", "Turns that are here, those included that are being claimed."
        )
        self.held = self._gauge("leases_held", "Turns that this worker has claimed.")
        self.lease_age = self._gauge("lease_age_seconds", "How long ago the heartbeat was last renewed.")
        self.due = self._gauge("turns_due", "Turns of all workers that are due and that nobody has claimed.")
        self.oldest_due = self._gauge("oldest_due_seconds", "How long the longest of them has been due.")
        self.counting_down = self._gauge("turns_counting_down", "Turns of all workers that wait for a countdown.")

        ProcessCollector(registry=self.registry)
        self._begin_at_zero(models)

    def count(self, counter: Counter, labels: Labels, *more: str, by: float = 1) -> None:
        """Add to a counter that is kept by provider and model."""
        self._child(counter, labels, more).inc(by)

    def observe(self, histogram: Histogram, labels: Labels, seconds: float) -> None:
        """Enter a duration in a histogram that is kept by provider and model."""
        self._child(histogram, labels, ()).observe(seconds)

    def labels(self, provider: str, model: str | None) -> Labels:
        """Return the labels that stand for a provider and a model."""
        return self._labels.of(provider, model)

    def named(self, provider: str, model: str | None) -> None:
        """Note that a turn names a provider and a model."""
        self._labels.note(provider, model)

    def _child(self, metric: CallMetric, labels: Labels, more: tuple[str, ...]) -> CallMetric:
        # Looking a child up by its labels, as the library does it, takes a lock and several times as long.
        key = (metric, labels, more)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels, *more)
        return child  # type: ignore[return-value]  # a metric's children are of its own type

    def _begin_at_zero(self, models: Mapping[str, Sequence[str]]) -> None:
        """Enter what alerts look at: a series that begins at 1 has, for Prometheus, never increased."""
        for provider, names in models.items():
            for model in (*names, OTHER):
                for state in FINAL_STATES:
                    self.turns.labels(provider, model, state)
                for kind in ErrorKind:
                    self.terminal_failures.labels(provider, model, kind)

    def _counter(self, name: str, labels: tuple[str, ...], meaning: str) -> Counter:
        self._enter(f"{name}_total", "counter", labels, meaning)
        return Counter(f"turnkeeper_{name}", meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, labels: tuple[str, ...], buckets: tuple[float, ...], meaning: str
    ) -> Histogram:
        self._enter(name, "histogram", labels, meaning)
        return Histogram(f"turnkeeper_{name}", meaning, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        self._enter(name, "gauge", (), meaning)
        return Gauge(f"turnkeeper_{name}", meaning, registry=self.registry)

    def _enter(self, name: str, kind: str, labels: tuple[str, ...], meaning: str) -> None:
        self.table.append(Row(name=f"turnkeeper_{name}", kind=kind, labels=labels, meaning=meaning))


class LabelBounds:
    """Decides which names may become labels.

    >>> bounds = LabelBounds({"openai": ["gpt-5"]}, {})
    >>> bounds.of("openai", "gpt-5"), bounds.of("openai", "made-up"), bounds.of("made-up", "gpt-5")
    (('openai', 'gpt-5'), ('openai', 'other'), ('unknown', 'other'))
    """

    def __init__(self, models: Mapping[str, Sequence[str]], defaults: Mapping[str, str | None]) -> None:
        self._defaults = defaults
        self._known = {(provider, model): (provider, model) for provider in models for model in models[provider]}
        self._others = {provider: (provider, OTHER) for provider in models}
        self._seen: dict[Labels, int] = {}
        self._learned = 0

    def of(self, provider: str, model: str | None) -> Labels:
        """Return the labels that stand for a provider and a model."""
        model = model or self._defaults.get(provider)
        if model is None:
            return (provider if provider in self._others else UNKNOWN, NONE)
        return self._known.get((provider, model)) or self._others.get(provider, (UNKNOWN, OTHER))

    def note(self, provider: str, model: str | None) -> None:
        """Note that a turn names them; a model that enough turns name becomes a label."""
        if model is None or provider not in self._others or self._learned >= MAX_LEARNED:
            return
        named = (provider, model)
        if named in self._known:
            return
        if len(self._seen) >= MAX_CANDIDATES:
            self._seen.clear()
        self._seen[named] = self._seen.get(named, 0) + 1
        if self._seen[named] >= KNOWN_AFTER_TURNS:
            del self._seen[named]
            self._known[named] = named
            self._learned += 1


@contextmanager
def serving(metrics: Metrics, address: str, port: int) -> Iterator[None]:
    """Serve the page of metrics while the block runs; port 0 serves none.  Raises InvalidSettings."""
    if port == 0:
        yield
        return
    try:
        server, thread = start_http_server(port, address, metrics.registry)
    except OSError as error:
        raise InvalidSettings(
            f"metrics_port cannot be opened at {address}:{port} ({error.strerror or error}); "
            "set TURNKEEPER_METRICS_PORT to a free one for each worker process, or to 0 for none"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
