"""What is seen of turns while they run, told to operators: in metrics, in traces and in the log.

It looks on and decides nothing. Every attempt is counted when its end is stored, so that the numbers are those of
the tables.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import assert_never
from uuid import UUID

from structlog.contextvars import bind_contextvars, unbind_contextvars

from turnkeeper.errors import ChatError
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper_worker.decide import Decision, FallBack, GiveUp, Heal, Retry
from turnkeeper_worker.failures import Classified
from turnkeeper_worker.metrics import Labels, Metrics
from turnkeeper_worker.outcomes import Cancelled, Completed, Dropped, GaveUp, HandedBack, Outcome, Parked, Retrying
from turnkeeper_worker.providers import Answer, Call, Failed
from turnkeeper_worker.store import Claimed, total
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.tracing import UNTRACED, Span, Tracer
from turnkeeper_worker.upkeep import Orphan, Waiting

log = get_logger(__name__)

Usage = Mapping[str, int]

#: What is counted, by the names that OpenTelemetry's conventions for generative AI give it.
USAGE_ATTRIBUTES = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}

MOST_TOKENS = 10**9
"""No call costs more; a provider that says so, or less than nothing, is mistaken."""


class Watch:
    """Times the stream of one attempt."""

    __slots__ = ("_began", "_clock", "_heard_at", "first_event", "silence")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._heard_at = clock()
        self.first_event: float | None = None
        """How long the first event took, in seconds."""
        self.silence = 0.0
        """The longest pause since, in seconds."""

    def heard(self) -> None:
        """Note that the provider said something."""
        now = self._clock()
        if self.first_event is None:
            self.first_event = now - self._began
        elif now - self._heard_at > self.silence:
            self.silence = now - self._heard_at
        self._heard_at = now

    def stop(self) -> None:
        """Note that nothing more is listened for; the silence before that counts."""
        if self.first_event is not None:
            self.silence = max(self.silence, self._clock() - self._heard_at)


@dataclass(slots=True)
class Delivery:
    """One delivery of a turn, as far as it has come."""

    began: float = field(default_factory=time.monotonic)
    turn: Claimed | None = None
    """None until it is claimed."""
    usage: dict[str, int] | None = None
    first_event: float | None = None
    span: Span = UNTRACED
    call: Span = UNTRACED
    """The call that is under way."""


class Observer:
    """Looks on.  Belongs to one event loop.

    Args:
        metrics: What Prometheus is told.
        tracer: Begins spans.
        conventions: By which provider's conventions each configured one is traced.
    """

    def __init__(
        self, metrics: Metrics, *, tracer: Tracer = UNTRACED, conventions: Mapping[str, str] | None = None
    ) -> None:
        self.metrics = metrics
        self._tracer = tracer
        self._conventions = conventions or {}
        self._here: dict[UUID, Delivery] = {}

    @contextmanager
    def delivery(self, turn_id: UUID) -> Iterator[None]:
        """Look on while a delivery is under way; what is logged meanwhile names the turn."""
        bind_contextvars(turn_id=str(turn_id))
        delivery = self._here[turn_id] = Delivery()
        try:
            yield
        finally:
            del self._here[turn_id]
            # One whose lease was lost is still open; nobody stored how it ended.
            delivery.call.end()
            delivery.span.end()
            unbind_contextvars("turn_id", "chat_id", "epoch", "step", "attempt")

    def claimed(self, turn: Claimed) -> None:
        """See a turn that is ours now."""
        delivery = self._here[turn.id]
        delivery.turn, delivery.usage = turn, turn.usage
        if turn.epoch == 1:
            self.metrics.named(turn.provider, turn.model)
        self.metrics.queue_wait.observe(turn.waited.total_seconds())
        delivery.span = self._tracer.begin(
            "run turn", "consumer", _identity(turn) | {"messaging.system": "celery"}, within=turn.trace_context
        )
        bind_contextvars(chat_id=str(turn.chat_id), epoch=turn.epoch, step=turn.step, attempt=turn.attempt)

    def calling(self, turn: Claimed, call: Call) -> Watch:
        """See an attempt begin."""
        delivery = self._here[turn.id]
        delivery.turn = turn
        bind_contextvars(step=turn.step, attempt=turn.attempt)
        attributes = _identity(turn) | {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._conventions.get(turn.provider, turn.provider),
            "gen_ai.request.model": call.model,
            "gen_ai.conversation.id": str(turn.chat_id),
            "turnkeeper.chained": str(call.is_chained).lower(),
        }
        delivery.call = self._tracer.begin(f"chat {call.model}", "client", attributes, within=delivery.span)
        return Watch()

    def answered(self, turn: Claimed, answer: Answer, watch: Watch) -> None:
        """See an attempt whose answer is stored."""
        self._here[turn.id].call.note({"gen_ai.response.model": answer.model} if answer.model else {})
        self._attempt_ended(turn, AttemptOutcome.COMPLETED, watch, answer.response_id, answer.usage)

    def broken_off(self, turn: Claimed, outcome: AttemptOutcome, usage: Usage | None, watch: Watch) -> None:
        """See an attempt that was cancelled or handed back."""
        self._attempt_ended(turn, outcome, watch, None, usage)

    def failed(
        self, turn: Claimed, classified: Classified, decision: Decision, failed: Failed, watch: Watch
    ) -> None:
        """See a failure, and what was done about it."""
        labels, error = self._labels(turn), classified.error
        match decision:
            case Retry(delay=delay):
                outcome = AttemptOutcome.RETRIED
                self._count_retry(labels, classified)
                self.metrics.observe(self.metrics.countdown, labels, delay.total_seconds())
            case Heal():
                outcome = AttemptOutcome.HEALED
                self._count_retry(labels, classified)
            case FallBack():
                outcome = AttemptOutcome.FELL_BACK
                self._count_retry(labels, classified)
            case GiveUp(error=error):
                outcome = AttemptOutcome.FAILED
                self.metrics.count(self.metrics.terminal_failures, labels, error.kind)
            case other:
                assert_never(other)
        if not turn.runs_tools:
            self._attempt_ended(turn, outcome, watch, failed.response_id, failed.usage, error)

    def ended(self, turn_id: UUID, outcome: Outcome) -> None:
        """See what a delivery came to."""
        delivery = self._here[turn_id]
        turn = delivery.turn
        if turn is None:
            return
        match outcome:
            case Completed():
                self._turn_ended(delivery, turn, TurnState.COMPLETED)
            case GaveUp(error=error):
                self._turn_ended(delivery, turn, TurnState.FAILED, error)
            case Cancelled():
                self._turn_ended(delivery, turn, TurnState.CANCELLED)
            case HandedBack():
                self.metrics.hand_backs.inc()
            case Dropped():
                self.metrics.leases_lost.inc()
            case Parked():
                self.metrics.count(self.metrics.cooldown_waits, self._labels(turn))
            case Retrying():
                pass
            case other:
                assert_never(other)
        delivery.span.note({"turnkeeper.outcome": type(outcome).__name__.lower()})

    def rescued(self, orphan: Orphan) -> None:
        """See a turn freed whose worker was gone."""
        labels = self.metrics.labels(orphan.provider, orphan.model)
        self.metrics.rescues.labels(orphan.state).inc()
        if not orphan.ran_tools:
            self.metrics.count(self.metrics.attempts, labels, AttemptOutcome.LOST)
        if orphan.state.is_final:
            self.metrics.count(self.metrics.turns, labels, orphan.state)
        if orphan.error is not None:
            self.metrics.count(self.metrics.terminal_failures, labels, orphan.error.kind)

    def called_off(self, provider: str, model: str | None, usage: Usage | None) -> None:
        """See what a response has cost that nobody waited for any more."""
        self._count_tokens(self.metrics.labels(provider, model), usage)

    def waiting(self, waiting: Waiting) -> None:
        """See how many turns wait."""
        self.metrics.due.set(waiting.due)
        self.metrics.counting_down.set(waiting.counting_down)
        self.metrics.oldest_due.set(waiting.oldest_due.total_seconds())

    def _labels(self, turn: Claimed) -> Labels:
        return self.metrics.labels(turn.provider, turn.model)

    def _count_retry(self, labels: Labels, classified: Classified) -> None:
        broken = "true" if classified.chain_broken else "false"
        self.metrics.count(self.metrics.stream_retries, labels, classified.error.kind, broken)

    def _count_tokens(self, labels: Labels, usage: Usage | None) -> None:
        for kind, count in _counts(usage):
            self.metrics.count(self.metrics.tokens, labels, kind.removesuffix("_tokens"), by=count)

    def _attempt_ended(
        self,
        turn: Claimed,
        outcome: AttemptOutcome,
        watch: Watch,
        response_id: str | None,
        usage: Usage | None,
        error: ChatError | None = None,
    ) -> None:
        labels, metrics, delivery = self._labels(turn), self.metrics, self._here[turn.id]
        metrics.count(metrics.attempts, labels, outcome)
        self._count_tokens(labels, usage)
        if watch.first_event is not None:
            metrics.observe(metrics.first_event, labels, watch.first_event)
            metrics.observe(metrics.silence, labels, watch.silence)
        delivery.usage = total(turn.usage, dict(usage) if usage else None)
        delivery.first_event = watch.first_event
        delivery.call.note(_of_response(outcome, watch, response_id, usage))
        delivery.call.end(error=error.kind if error else None)
        delivery.call = UNTRACED

    def _turn_ended(
        self, delivery: Delivery, turn: Claimed, state: TurnState, error: ChatError | None = None
    ) -> None:
        labels, seconds = self._labels(turn), turn.elapsed.total_seconds() + time.monotonic() - delivery.began
        self.metrics.count(self.metrics.turns, labels, state)
        self.metrics.observe(self.metrics.duration, labels, seconds)
        known = {
            "kind": error and str(error.kind),
            "first_event_s": delivery.first_event and round(delivery.first_event, 3),
            **(delivery.usage or {}),
        }
        log.info(
            "turn.ended",
            outcome=str(state),
            provider=turn.provider,
            model=turn.model,
            steps=turn.step,
            attempts=turn.attempt,
            duration_s=round(seconds, 3),
            waited_s=round(turn.waited.total_seconds(), 3),
            **{name: value for name, value in known.items() if value is not None},
        )


def _identity(turn: Claimed) -> dict[str, str | int | float]:
    return {
        "turnkeeper.turn.id": str(turn.id),
        "turnkeeper.chat.id": str(turn.chat_id),
        "turnkeeper.provider": turn.provider,
        "turnkeeper.step": turn.step,
        "turnkeeper.attempt": turn.attempt,
        "turnkeeper.epoch": turn.epoch,
    }


def _of_response(
    outcome: AttemptOutcome, watch: Watch, response_id: str | None, usage: Usage | None
) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {"turnkeeper.outcome": outcome}
    if response_id is not None:
        found["gen_ai.response.id"] = response_id
    if watch.first_event is not None:
        found["gen_ai.response.time_to_first_chunk"] = watch.first_event
    return found | {USAGE_ATTRIBUTES[kind]: count for kind, count in _counts(usage)}


def _counts(usage: Usage | None) -> Iterator[tuple[str, int]]:
    """Yield what can be counted; a total is not, for it says nothing that its parts do not."""
    for kind, count in (usage or {}).items():
        if kind in USAGE_ATTRIBUTES and 0 <= count <= MOST_TOKENS:
            yield kind, count
