"""HTTP statuses that stand in text, told from all the other numbers there by what stands beside them.

A number counts only after a word that announces a status, before its own reason phrase, or alone at the very
beginning.  Stream ids, ports, versions, sizes, exit codes and token counts have no such neighbour.
"""

import re
from http import HTTPStatus
from typing import TypeGuard

_PHRASES = "|".join(re.escape(status.phrase.lower()) for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST)
_ANNOUNCED = re.compile(
    r"""(?:
        (?<!exit\ )\bstatus(?:[\ _-]?code)?\b
      | \bhttp(?:/\d(?:\.\d)?)?(?:\ (?:status|code|error|response))?(?:\ (?:status|code))?\b
      | \b(?:api|server|client|upstream|response|upstream_)\ ?(?:error|code)(?:\ code)?\b
      | \b(?:error\ )?code\b
      | \berror\b
    )[\ '"]{0,3}[:=]?[\ '"(\[]{0,3}(?P<status>[45]\d\d)\b
    (?![.,]?\d|\ ?(?:tokens?|ms|s|bytes|characters|requests)\b)""",
    re.VERBOSE | re.IGNORECASE,
)
_NAMED = re.compile(rf"(?<![\w.:#-])(?P<status>[45]\d\d)[ :,-]{{1,3}}(?:{_PHRASES})\b", re.IGNORECASE)
_LEADING = re.compile(
    r"\s{0,8}[(\[]?(?P<status>[45]\d\d)(?:[)\]:]|,(?= message=)|(?= [A-Z{<]))(?! ?(?:tokens?|ms|s|bytes)\b)"
)
MAX_PLACE = 1_000
"""Characters from the beginning; a status stands early."""
_MAY_HOLD = re.compile(r"[45]\d\d")


def is_error(status: int | None) -> TypeGuard[int]:
    """Say whether *status* is that of an HTTP error.

    >>> [is_error(status) for status in (None, 200, 400, 529, 600)]
    [False, False, True, True, False]
    """
    return status is not None and status // 100 in {4, 5}


def anchored_status(text: str) -> int | None:
    """Return the first HTTP error status that *text* names as one, else None.

    >>> anchored_status("upstream returned status code: 429"), anchored_status("402 Insufficient Balance")
    (429, 402)
    >>> anchored_status("stream ID 401 on port 503, 500 tokens asked") is None
    True
    """
    text = text[:MAX_PLACE]
    if _MAY_HOLD.search(text) is None:
        return None
    found = _LEADING.match(text) or _ANNOUNCED.search(text) or _NAMED.search(text)
    return int(found["status"]) if found else None
