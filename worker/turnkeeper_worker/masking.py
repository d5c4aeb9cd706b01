"""Secrets taken out of text.  Works on any text, knows nothing of failures.

What is masked: keys by their vendors' prefixes, credentials after `Bearer` or after a telling name, URLs' user
info, query strings and fragments, and any other run of letters and digits too long to be a word.
Each pattern is linear: quantifiers are possessive, and none may start where another could have matched.
"""

import re
from collections.abc import Callable
from typing import Final

MASK: Final = "***"

_URL = re.compile(
    r"""(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}+://)
        (?P<userinfo>[^\s/?\#"'<>`@]{0,512}+@)?
        (?P<place>[^\s?\#"'<>`]*+)
        (?P<query>[?\#][^\s"'<>`]*+)?""",
    re.VERBOSE,
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]*+(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_PREFIXED = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        (?:sk|pk|rk|sess)[-_](?:[\w*\-]|\.(?=[\w*.\-])){3,}+   # OpenAI, Anthropic, OpenRouter, DeepSeek, Stripe
      | (?:xai|gsk|csk|pplx|nvapi|fw|hf|r8|tgp|vck|glpat|github_pat|gh[oprsu]|xox[abeprs]|kod)[-_][\w*\-]{3,}+
      | AIza[\w*\-]{6,}+ | ya29\.(?:[\w*\-]|\.(?=[\w*.\-])){6,}+ | AQ\.[\w\-]{16,}+   # Google
      | (?:AKIA|ASIA|ABSK|AROA|AIDA)[A-Z0-9a-z+/=*]{8,}+             # AWS
      | eyJ[\w\-]{8,}+(?:\.[\w\-]*+){0,2}                            # a JSON Web Token
    )""",
    re.VERBOSE,
)
_SCHEME = re.compile(
    r"\b(?P<scheme>bearer|basic)[\s:]++(?!(?:auth\w*|tokens?|scheme|realm|access|credentials?)\b)[\w.~+/=*\-]{4,}+",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"""(?P<name>(?:\b|_|(?<=-))(?:
          (?:api|access|secret|private|auth|subscription|shared|account)[-_ ]?(?:key|token|secret)(?:[-_ ]id)?
        | (?:client|aws)[-_]secret | password | passwd | pwd | secret | token | authorization | credential
        | signature | sig | x-amz-[a-z\-]{4,30} | cookie | session[-_]?id )
        (?:[ ]provided|[ ]passed)? ["']? \s{0,3}+ [:=] \s{0,3}+ ["']?)
        (?P<value>(?:[^\s"',;&<>(){}\[\].]|\.(?=\w))++)""",
    re.VERBOSE | re.IGNORECASE,
)
# "invalid api key test-key": after such a word, what has a digit, a hyphen or an underscore is no English word.
_SPOKEN = re.compile(
    r"""(?P<name>\b(?:key|token|secret|password|credentials?) (?:[ ]provided)? [:]? \s ["'`]?)
        (?P<value>(?=[a-z]{0,64}+[\d_*-])[\w*\-]{4,}+)""",
    re.VERBOSE | re.IGNORECASE,
)
_SHORTEST: Final = 5
"""The shortest text that any of the patterns matches, such as `sig=a`; statuses and many codes are shorter."""
_LONG_RUN = re.compile(r"[A-Za-z0-9_+=]{32,}+")


def mask(text: str) -> str:
    """Return *text* without secrets; what it says otherwise stays readable.

    >>> mask("Incorrect API key provided: sk-abc123def456.")
    'Incorrect API key provided: ***.'
    >>> mask("GET https://me:pw@host/path?sig=1 failed with Bearer abcdef")
    'GET https://***@host/path?*** failed with Bearer ***'
    """
    if len(text) < _SHORTEST:
        return text
    lowered = text.lower()
    for signs, pattern, replacement in _MASKS:
        for sign in signs:
            if sign in lowered:
                text = pattern.sub(replacement, text)
                break
    return text


def _url(match: re.Match[str]) -> str:
    userinfo = f"{MASK}@" if match["userinfo"] else ""
    query = f"{match['query'][0]}{MASK}" if match["query"] else ""
    return f"{match['scheme']}{userinfo}{match['place']}{query}"


def _long_run(match: re.Match[str]) -> str:
    run = match[0]
    # A long word or a ruler of "=====" holds no secret; letters mixed with digits may.
    is_mixed = any(c.isdigit() for c in run) and any(c.isalpha() for c in run)
    return MASK if is_mixed else run


_MASKS: Final[tuple[tuple[tuple[str, ...], re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (("://",), _URL, _url),
    (("-----begin",), _PRIVATE_KEY, MASK),
    (("",), _PREFIXED, MASK),
    (("bearer", "basic"), _SCHEME, rf"\g<scheme> {MASK}"),
    ((":", "="), _NAMED, rf"\g<name>{MASK}"),
    (("key", "token", "secret", "password", "credential"), _SPOKEN, rf"\g<name>{MASK}"),
    (("",), _LONG_RUN, _long_run),
)
"""In this order: what must stand in the lower-cased text, the pattern, and what takes its place.

The signs spare most texts most of the patterns; a pattern never matches without one of its signs.
"""
