"""What a rule answers: the kind, whether to retry, and why."""

from dataclasses import dataclass

from turnkeeper.errors import ErrorKind, Situation


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer of the first rule that had one."""

    kind: ErrorKind
    retryable: bool
    rule: str
    """The name of the rule, stable enough to count by."""
    evidence: str = ""
    """What the rule saw, unmasked; it leaves the package only through `mask`."""
    chain_broken: bool = False
    situation: Situation | None = None
    """Set where the kind's own copy would mislead."""
