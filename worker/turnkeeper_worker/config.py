"""The worker's configuration: one frozen class, read once, handed down as plain values."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RetryPolicy(BaseModel):
    """When a failed attempt is followed by another, and how soon."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backoff_base_seconds: Seconds = 1.0
    """The ceiling of the first backoff; it doubles with each attempt."""
    backoff_cap_seconds: Seconds = 60.0
    """No backoff is longer; a provider's hint may be."""
    max_attempts: PositiveInt = 12
    """Attempts per step, the first included; a heal does not count."""
    max_attempts_by_kind: dict[str, PositiveInt] = Field(default_factory=dict)
    """Smaller budgets for single kinds, such as `{"timeout": 6}`."""
    turn_deadline_seconds: Seconds = 3600.0
    """No retry starts later than this after the turn first ran."""
    max_hint_seconds: Seconds = 900.0
    """A provider that asks for more ends the turn with a time to try after."""

    @property
    def turn_deadline(self) -> timedelta:
        """The deadline as a duration."""
        return timedelta(seconds=self.turn_deadline_seconds)

    @property
    def max_hint(self) -> timedelta:
        """The longest hint that is waited for."""
        return timedelta(seconds=self.max_hint_seconds)


ApiName = Literal["openai-responses"]
