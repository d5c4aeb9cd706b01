"""The seals on what a client keeps for the provider: made for one API key, and checked when they come back."""

from base64 import b64encode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b

PREFIX = "gAAAAA"
"""How the encrypted content of every provider here begins."""
_NAME_CHARS = 24
"""Of a sealed name; what is longer is cut, and what is shorter is filled up."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The seal of one API key.  It comes from the key alone, so that a restarted simulator knows its own."""

    key: str

    def sign(self, text: str) -> str:
        """Return the signature that goes with *text*, so that a change of it shows.

        >>> Seal("sk-1").sign("Hm") == Seal("sk-1").sign("Hm")
        True
        >>> Seal("sk-1").sign("Hm") in {Seal("sk-1").sign("Hm."), Seal("sk-2").sign("Hm")}
        False
        """
        return b64encode(self._digest(text, size=48)).decode()

    def close(self, name: str) -> str:
        """Return encrypted content that stands for *name*; it says by itself whether it is intact.

        >>> Seal("sk-1").fits(Seal("sk-1").close("rs_1")), Seal("sk-2").fits(Seal("sk-1").close("rs_1"))
        (True, False)
        """
        inside = f"{name.partition('_')[2]:0<{_NAME_CHARS}}"[:_NAME_CHARS]
        return f"{PREFIX}{inside}{self._mark(inside)}"

    def fits(self, sealed: str) -> bool:
        """Tell whether *sealed* was closed with this key, and not changed."""
        inside, mark = sealed[len(PREFIX) :][:_NAME_CHARS], sealed[len(PREFIX) + _NAME_CHARS :]
        return sealed.startswith(PREFIX) and len(inside) == _NAME_CHARS and mark == self._mark(inside)

    def _mark(self, inside: str) -> str:
        return urlsafe_b64encode(self._digest(inside, size=24)).decode()

    def _digest(self, text: str, *, size: int) -> bytes:
        secret = blake2b(self.key.encode("utf-8", "replace"), digest_size=32, person=b"seal").digest()
        return blake2b(text.encode("utf-8", "replace"), digest_size=size, key=secret).digest()
