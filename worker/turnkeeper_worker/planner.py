"""What the next attempt sends: the anchor or the whole history, repaired, to the provider that the turn names.

What the database knows is read by the claim, or in the transaction that heals or steps on, so that what is sent is
what was true at that moment. The plan itself is pure but for the clock.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from sqlalchemy import Connection

from turnkeeper import limits
from turnkeeper.requests import Fallback
from turnkeeper_worker import chain_health, history, store
from turnkeeper_worker.chain import Anchor, Chained, Credential, Health, Present, plan
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.failures import Signal
from turnkeeper_worker.history import START, Heard, Place
from turnkeeper_worker.providers import Call, Running, ToolSpec
from turnkeeper_worker.replay import Reader, Said, readable_by, repair
from turnkeeper_worker.store import Choice, Claimed, Taken
from turnkeeper_worker.switchboard import Switchboard
from turnkeeper_worker.tools import Toolbox

_UNKNOWN = ProviderConfig(base_url="http://unknown.invalid", store=False)
"""Stands in for a provider that this worker is not configured for; the call fails before it gets there."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a call cannot be made at all."""

    why: str
    """What is missing, and what to do about it."""
    signal: Signal
    provider: str | None
    """Whose failure that is; None where it is no provider's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A turn under our lease with its call, ready to be made."""

    turn: Claimed
    call: Call
    credential: Credential
    terms: str = ""
    """What the response keeps besides the history; see `Anchor.terms`."""
    health: Health = field(default_factory=Health)
    """How chains had held when the attempt was planned."""
    obstacle: Obstacle | None = None
    """What the call would fail of before it is made."""

    @property
    def label(self) -> str:
        """What operators see of it: one line, no words of the chat."""
        turn = self.turn
        chained = "chained" if self.call.is_chained else "full history"
        instead = f" instead of {turn.first_choice.provider}" if turn.first_choice else ""
        who = f"{turn.provider} {self.call.model}{instead}"
        return f"{who}, step {turn.step}, attempt {turn.attempt}, {chained}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the database says of a turn that is planned."""

    heard: Heard
    health: Health
    """How chains have held for the turn's credential."""
    limit: str | None = None
    """The limit that its owner has reached since it was admitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Plans attempts.  Knows the worker's configuration, and nothing of networks."""

    configs: Mapping[str, ProviderConfig]
    keys: Mapping[str, str]
    """A fingerprint of each provider's API key."""
    toolbox: Toolbox
    switchboard: Switchboard = field(default_factory=Switchboard)

    def directory(self) -> str:
        """Return what a claim needs to know of the providers here, in JSON; see `store.claim`."""
        known = {name: self._credential(name, None) for name in self.configs}
        return json.dumps({name: {"model": one.model, "seal": one.seal} for name, one in known.items()})

    def begin(self, connection: Connection, turn: Claimed) -> Attempt:
        """Plan the attempt that a heal, a fall back or the next step has numbered, and record that it begins."""
        attempt = self.plan_anew(connection, turn)
        store.begin(connection, attempt.turn)
        return attempt

    def plan_anew(self, connection: Connection, turn: Claimed) -> Attempt:
        """Plan the attempt that the turn is at, and read what that takes."""
        known = self._read(connection, turn)
        attempt = self.plan(turn, known)
        if attempt is None:
            whole = history.hear(connection, turn.chat_id, seen_by=turn.seq)
            attempt = self.plan(turn, replace(known, heard=whole))
        assert attempt is not None  # noqa: S101 - for the type checker; the whole history is enough for any plan
        return attempt

    def plan_taken(self, taken: Taken) -> Attempt | None:
        """Plan the attempt that was just claimed; None where the claim did not read all that it takes."""
        if _may_be_limited(taken.turn):
            return None
        return self.plan(taken.turn, Known(heard=taken.heard, health=taken.health))

    def plan(self, turn: Claimed, known: Known) -> Attempt | None:
        """Plan the attempt that the turn is at; None where the whole history is needed, and was not read."""
        credential = self._credential(turn.provider, turn.model)
        turn = replace(turn, model=credential.model)
        attempt = self._come_back(turn, credential) or self._ask(turn, credential, known)
        return attempt and replace(attempt, obstacle=self._obstacle(turn, attempt.call, known.limit))

    def config(self, turn: Claimed) -> ProviderConfig | None:
        """Return the configuration of the turn's provider, if this worker has one."""
        return self.configs.get(turn.provider)

    def fallbacks(self, turn: Claimed) -> tuple[Fallback, ...]:
        """Return the models that may still answer instead: the turn's own, else those of its provider."""
        if turn.fallbacks is not None:
            return turn.fallbacks
        config = self.config(turn)
        return config.fallbacks if config else ()

    def choice(self, turn: Claimed, to: Fallback) -> Choice:
        """Return what the turn asks of the first of its fallbacks: what it was enqueued with, where it fits."""
        asked = turn.asked
        here, there = self.configs.get(asked.provider), self.configs.get(to.provider)
        is_alike = here is not None and there is not None and here.api == there.api
        can_run_in_background = there is not None and there.can_run_in_background
        options = to.options if to.options is not None else asked.options if is_alike else {}
        return Choice(
            provider=to.provider,
            model=to.model,
            options=dict(options),
            background=asked.background if can_run_in_background else None,
            fallbacks=self.fallbacks(turn)[1:],
        )

    def _credential(self, provider: str, model: str | None) -> Credential:
        config = self.configs.get(provider)
        return Credential(
            provider=provider,
            base_url=config.base_url if config else "",
            key=self.keys.get(provider, ""),
            model=model or (config.model if config else None),
        )

    def _read(self, connection: Connection, turn: Claimed) -> Known:
        heard = history.hear(connection, turn.chat_id, seen_by=turn.seq, after=_place_of(turn.anchor))
        health = chain_health.health_of(connection, self._credential(turn.provider, turn.model))
        reached = limits.find_reached(connection, turn.owner) if _may_be_limited(turn) else None
        return Known(heard=heard, health=health, limit=None if reached is None else f"{reached}.")

    def _come_back(self, turn: Claimed, credential: Credential) -> Attempt | None:
        """Return to the background response that the attempt before this one left behind."""
        left = turn.checkpoint
        if left is None or left.credential != credential:
            return None
        running = Running(response_id=left.response_id, began_at=left.began_at, cursor=left.cursor)
        call = Call(
            request_id=_request_id(turn),
            model=credential.model or "",
            history=(),
            background=True,
            running=running,
        )
        return Attempt(turn=turn, call=call, credential=credential)

    def _ask(self, turn: Claimed, credential: Credential, known: Known) -> Attempt | None:
        """Ask for a response, with the anchor or the whole history; None where that was not read."""
        config = self.config(turn) or _UNKNOWN
        tools = self.toolbox.only(turn.tools).specs()
        terms = _terms(turn, tools) if config.threads else ""
        said = known.heard.said()
        anchor = _anchor_to_use(turn, credential, config, terms, known, said)
        if anchor is None and known.heard.after != START:
            return None
        # What healed a chain must not fail for another thing that the provider has lost the key of.
        reader = Reader(turn.provider, None if turn.healed else credential.seal)
        call = Call(
            request_id=_request_id(turn),
            model=credential.model or "",
            history=repair(readable_by(said, reader), answered=anchor.calls if anchor else ()),
            previous_response_id=anchor.response_id if anchor else None,
            instructions=turn.instructions,
            options=turn.options,
            tools=tools,
            background=config.background if turn.background is None else turn.background,
            may_chain=not (turn.healed or known.health.is_resting),
            continues=_ends_paused(turn, said),
        )
        return Attempt(turn=turn, call=call, credential=credential, terms=terms, health=known.health)

    def _obstacle(self, turn: Claimed, call: Call, limit: str | None) -> Obstacle | None:
        # What runs at the provider already goes on.
        if not call.is_resumed:
            if limit is not None:
                return Obstacle(limit, Signal.OWN_LIMIT, provider=None)
            if off := self.switchboard.off.get(turn.provider):
                since = f"{off.disabled_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
                return Obstacle(f"It has been off since {since}.", Signal.PROVIDER_DISABLED, turn.provider)
        missing = self._missing(turn)
        return None if missing is None else Obstacle(missing, Signal.UNKNOWN_PROVIDER, turn.provider)

    def _missing(self, turn: Claimed) -> str | None:
        name, config = turn.provider, self.config(turn)
        if config is None:
            return f"The worker has no provider {name}; add [providers.{name}] to its turnkeeper.toml."
        if turn.model is None:
            return f"No model is named; name one in the turn or the chat, or set model in [providers.{name}]."
        if missing := self.toolbox.missing(turn.tools):
            return f"The worker has no tool {missing[0]}; install the package that brings it, or leave it out."
        if turn.background and not config.can_run_in_background:
            return f"The provider {name} has no background responses; set background to false, or name another."
        return None


def _may_be_limited(turn: Claimed) -> bool:
    """Tell whether the turn may have reached a limit: it was admitted as a whole, but not with all its steps."""
    return turn.metered and turn.step > 1


def _place_of(anchor: Anchor | None) -> Place:
    return START if anchor is None else (anchor.seq, anchor.position)


def _anchor_to_use(
    turn: Claimed,
    credential: Credential,
    config: ProviderConfig,
    terms: str,
    known: Known,
    said: Sequence[Said],
) -> Anchor | None:
    """Return the anchor that the call continues from, where nothing speaks against it."""
    present = Present(
        credential=credential,
        kept_for=config.keeps_responses_for,
        terms=terms,
        health=known.health,
        digest=known.heard.digest,
        news=tuple(one.message for one in said),
        now=datetime.now(UTC),
    )
    planned = plan(turn.anchor, present)
    return planned.anchor if isinstance(planned, Chained) else None


def _request_id(turn: Claimed) -> str:
    return f"{turn.id}/{turn.step}.{turn.attempt}"


def _terms(turn: Claimed, tools: Sequence[ToolSpec]) -> str:
    asked = {"instructions": turn.instructions, "options": turn.options, "tools": [asdict(tool) for tool in tools]}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _ends_paused(turn: Claimed, said: Sequence[Said]) -> bool:
    """Tell whether the step before this one was paused, by the model that goes on."""
    if turn.step == 1 or not said:
        return False
    return said[-1].message.role == "assistant" and said[-1].provider == turn.provider
