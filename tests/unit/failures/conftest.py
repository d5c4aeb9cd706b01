"""How the tests of this folder write failures: one line each."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from turnkeeper_worker.failures import Classified, ExceptionFact, Failure, classify

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

Ask = Callable[..., Classified]


@pytest.fixture
def ask() -> Ask:
    """Classify a failure: `ask(429, body, retry_after="7")`, `ask(text="…", cls="httpx.ReadError")`."""

    def ask_classifier(
        status: int | None = None,
        body: object = None,
        *,
        text: str = "",
        cls: str = "",
        headers: dict[str, str] | None = None,
        **facts: Any,
    ) -> Classified:
        exceptions = (ExceptionFact(names=(cls,) if cls else (), text=text),) if text or cls else ()
        failure = Failure(status=status, body=body, exceptions=exceptions, headers=headers or {}, **facts)
        return classify(failure, now=NOW)

    return ask_classifier
