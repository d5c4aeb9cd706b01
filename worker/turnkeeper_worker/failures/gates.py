"""The gates of phrases: under which HTTP status a sentence means what it says.

A gate keeps words out of places where they mean something else: "timeout" in a 400 is the name of a parameter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import TypeAlias

from turnkeeper.errors import ErrorKind, Situation
from turnkeeper_worker.failures.words import Phrase, first_found, start_of

RETRY, STOP = True, False

Gate: TypeAlias = Callable[[int | None], bool]
"""Whether a phrase may speak under this status; None stands for no status, and for a 200 stream."""


def always(_status: int | None) -> bool:
    """Any status."""
    return True


def unless_throttled(status: int | None) -> bool:
    """Not under a 429, where quota and billing are also the words of ordinary throttling."""
    return status != HTTPStatus.TOO_MANY_REQUESTS


def unless_unauthorized(status: int | None) -> bool:
    """Not under a 401: whoever holds a bad key learns nothing true about models."""
    return status != HTTPStatus.UNAUTHORIZED


def unless_elsewhere(status: int | None) -> bool:
    """Not under a 404, which is about an address, nor under a 429, which is about a rate."""
    return status not in {HTTPStatus.NOT_FOUND, HTTPStatus.TOO_MANY_REQUESTS}


def absent(status: int | None) -> bool:
    """Where something is not, or is no longer, there."""
    return status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}


def account(status: int | None) -> bool:
    """Where one vague word about money may decide: a 400 may quote it from the request."""
    return status is None or status in {401, 402, 403} or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def refused(status: int | None) -> bool:
    """Where the request itself was refused."""
    return status is None or status in {400, 403, 404, 405, 410, 415, 422}


def refused_outright(status: int | None) -> bool:
    """The same with a status: without one, these words are too common."""
    return status is not None and refused(status)


def credentials(status: int | None) -> bool:
    """Where a word about credentials speaks of ours; a 400 may quote it from the request."""
    return status is None or status in {401, 403}


def busy(status: int | None) -> bool:
    """Where a shortage may pass; 422 because gateways relabel."""
    return (
        status is None
        or status in {408, 409, 422, 424, 425, 429, 498}
        or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )


def throttled(status: int | None) -> bool:
    """Where a limit may be one of rate."""
    return status is None or status in {400, 403, 413, 422, 429} or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def transport(status: int | None) -> bool:
    """Where a word about the network is not the name of a parameter."""
    return status is None or status in {408, 409, 425, 429} or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def silent(status: int | None) -> bool:
    """Only where no status speaks."""
    return status is None


@dataclass(frozen=True, slots=True)
class PhraseRule:
    """Phrases that mean the same."""

    name: str
    kind: ErrorKind
    retryable: bool
    gate: Gate
    phrases: tuple[Phrase, ...]
    situation: Situation | None = None


class PhraseTable:
    """Rules in their order, of which only those phrases are looked for that begin like a word of the text.

    A sentence shares no word with most of the hundreds of phrases; an index spares it their search.
    """

    def __init__(self, *rules: PhraseRule) -> None:
        self.rules = rules
        self._phrases = [(rule, phrase) for rule in rules for phrase in rule.phrases]
        self._by_start: dict[str, list[int]] = {}
        for place, (_, phrase) in enumerate(self._phrases):
            self._by_start.setdefault(start_of(phrase), []).append(place)

    def __iter__(self) -> Iterator[PhraseRule]:
        return iter(self.rules)

    def find(self, text: str, starts: frozenset[str], status: int | None) -> tuple[PhraseRule, str] | None:
        """Return the first rule that may speak under *status* and has a phrase in *text*, with the words found.

        Args:
            text: In lower case.
            starts: How its words begin, from `starts_in`.
            status: The HTTP status that the gates ask for.
        """
        lists = [self._by_start[start] for start in starts & self._by_start.keys()]
        for place in sorted(chain.from_iterable(lists)):
            rule, phrase = self._phrases[place]
            if phrase[0] in text and rule.gate(status) and (seen := first_found(text, (phrase,))):
                return rule, seen
        return None
