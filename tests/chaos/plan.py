"""What the users of a storm will do, decided by a seed before anything starts.  Pure.

Every answer that the simulator may give is a text that exists once, so that what is stored tells which
generation it came from.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from turnkeeper.states import OnBusy
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES

Step: TypeAlias = dict[str, Any]
"""A step of the simulator's script."""
Answering: TypeAlias = Callable[..., Step]
"""Makes the next step with a text of its own."""

TOOLS = ("pay", "look")
"""What every turn may call: one tool that must not run twice, and one that may."""
PROVIDERS = (SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES)
SPARE_ANSWERS = 20
"""How many generations of a turn have words of their own; more than attempts and rescues can ask for."""
LONGEST_TOOL_SECONDS = 0.6
WORDS = ("river", "lake", "brook", "pond", "spring", "delta", "fjord", "creek", "marsh", "ford", "weir", "well")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """A while that a follower stays connected, and the pause before it comes back."""

    events: int
    away_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFollower:
    """Somebody who reads along; after its sittings it stays until the end."""

    late_seconds: float = 0.0
    sittings: tuple[Sitting, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTurn:
    """What a user asks, what the provider will do about it, and who reads along."""

    key: str
    """Its idempotency key, and the name of its script."""
    kind: str
    provider: str = SIMULATOR
    steps: tuple[Step, ...] = ()
    background: bool = False
    fails: bool = False
    """Whether the provider refuses it for good."""
    on_busy: OnBusy = OnBusy.QUEUE
    waits: bool = True
    """Whether the user reads the chat's last answer to the end before asking."""
    think_seconds: float = 0.0
    cancel_after: float | None = None
    """Seconds from the enqueue to the user's cancel."""
    followers: tuple[PlannedFollower, ...] = (PlannedFollower(),)

    def said(self, number: int | None) -> str:
        """Return the words of a generation.

        Args:
            number: The step of the script that the provider's log names, from 1.
        """
        text: str = "" if number is None else (self.steps[number - 1].get("text") or "")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChat:
    """One user's conversation."""

    starts_after: float
    turns: tuple[PlannedTurn, ...]


def plan_load(seed: int, *, seconds: float, chats_per_second: float) -> tuple[PlannedChat, ...]:
    """Decide about every chat of a storm."""
    rng = random.Random(f"{seed}/load")
    count = max(2, round(seconds * chats_per_second))
    return tuple(_chat(rng, number, rng.uniform(0.0, seconds * 0.85)) for number in range(count))


def _chat(rng: random.Random, number: int, starts_after: float) -> PlannedChat:
    turns = tuple(_turn(rng, f"chaos-{number}-{place}", first=place == 0) for place in range(rng.randint(2, 5)))
    return PlannedChat(starts_after=starts_after, turns=turns)


def _turn(rng: random.Random, key: str, *, first: bool) -> PlannedTurn:
    kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    waits = first or rng.random() < 0.6
    return PlannedTurn(
        key=key,
        kind=kind,
        **KINDS[kind][1](rng, _answers(rng, key)),
        on_busy=OnBusy.INTERRUPT if not waits and rng.random() < 0.3 else OnBusy.QUEUE,
        waits=waits,
        think_seconds=rng.uniform(0.0, 0.8),
        cancel_after=rng.uniform(0.0, 4.0) if rng.random() < 0.12 else None,
        followers=_followers(rng),
    )


def _followers(rng: random.Random) -> tuple[PlannedFollower, ...]:
    """Return one who stays, one who comes and goes, and perhaps one who comes late."""
    sittings = tuple(
        Sitting(events=rng.randint(1, 6), away_seconds=rng.uniform(0.0, 1.5)) for _ in range(rng.randint(1, 3))
    )
    late = PlannedFollower(late_seconds=rng.uniform(0.2, 5.0), sittings=sittings[:1])
    return (PlannedFollower(), PlannedFollower(sittings=sittings), *([late] if rng.random() < 0.5 else []))


def _answers(rng: random.Random, key: str) -> Answering:
    """Return what makes steps whose texts are all different, and tell where they stand in the script."""
    made = 0

    def answer(**fields: Any) -> Step:
        nonlocal made
        made += 1
        words = " ".join(rng.choices(WORDS, k=rng.randint(4, 40)))
        pace = {"chunk_chars": rng.randint(6, 24), "chunk_delay_ms": rng.randint(20, 140)}
        return {"type": "answer", "text": f"{key} said {made}: {words}.", **pace} | fields

    return answer


def _with_spares(answer: Answering, *steps: Step) -> tuple[Step, ...]:
    return (*steps, *(answer() for _ in range(SPARE_ANSWERS)))


def _plain(rng: random.Random, answer: Answering) -> dict[str, Any]:
    return {"provider": rng.choice(PROVIDERS), "steps": _with_spares(answer)}


def _faulty(rng: random.Random, answer: Answering) -> dict[str, Any]:
    faults = [_fault(rng, answer) for _ in range(rng.randint(1, 3))]
    return {"provider": rng.choice(PROVIDERS), "steps": _with_spares(answer, *faults)}


def _fault(rng: random.Random, answer: Answering) -> Step:
    kind = rng.choice(["429", "503", "lost_anchor", "error_event", "cut", "reset", "malformed", "stall"])
    match kind:
        case "429":
            return {"type": "status", "status": 429, "headers": {"Retry-After": "1"}}
        case "503":
            return {"type": "status", "status": 503}
        case "lost_anchor":
            return {"type": kind}
        case "stall":
            return answer(type=kind, at=rng.choice(["before_headers", 0, 3]))
        case _:
            return answer(type=kind, at=rng.randint(0, 5))


def _with_tools(rng: random.Random, answer: Answering) -> dict[str, Any]:
    rounds = [answer(calls=_calls(rng)) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.3:
        rounds.insert(rng.randrange(len(rounds) + 1), _fault(rng, answer))
    return {"provider": rng.choice(PROVIDERS), "steps": _with_spares(answer, *rounds)}


def _calls(rng: random.Random) -> list[Step]:
    return [
        {
            "name": rng.choice(["pay", "look"]),
            "arguments": {"seconds": round(rng.uniform(0.0, LONGEST_TOOL_SECONDS), 2), "mark": f"{place}"},
        }
        for place in range(rng.randint(1, 3))
    ]


def _in_background(rng: random.Random, answer: Answering) -> dict[str, Any]:
    fault = {"type": rng.choice(["cut", "reset"]), "at": rng.randint(1, 8)} if rng.random() < 0.4 else {}
    return {"steps": _with_spares(answer, answer(**fault)), "background": True}


def _refused(rng: random.Random, answer: Answering) -> dict[str, Any]:
    refusal = {"type": "status", "status": 400}
    return {"provider": rng.choice(PROVIDERS), "steps": (refusal,) * SPARE_ANSWERS, "fails": True}


Making: TypeAlias = Callable[[random.Random, Answering], dict[str, Any]]
KINDS: Mapping[str, tuple[int, Making]] = MappingProxyType(
    {
        "plain": (30, _plain),
        "faulty": (30, _faulty),
        "tools": (22, _with_tools),
        "background": (15, _in_background),
        "refused": (3, _refused),
    }
)
"""Each kind of turn, how common it is, and what makes it special."""
