"""The two ways in which the authority says no.

``AuthorityError`` is for its operator: the CA can not do what it was told, and
the text says what is wrong, where, and what to do.  ``Refusal`` is for whoever
asked over the network: this request is refused, and the text names the rule.
"""

from typing import Final

from ca.messages import RefusalCode, Refused

_MAX_TEXT: Final = 1000  # an identity may have 2048 characters; the reply says enough without all of it


class AuthorityError(Exception):
    """The authority can not run or obey: for the operator's eyes."""


class StoreError(AuthorityError):
    """The database can not be used now; what was asked of it is not reported as done."""


class StoreConflict(StoreError):
    """A constraint of the database refused the change, such as a serial that is there already."""


class ConfigError(AuthorityError):
    """ca.toml is wrong; the text names file, key and remedy, ``section`` and ``key`` what it is about, if known."""

    def __init__(self, text: str, *, section: str = "", key: str | None = None) -> None:
        super().__init__(text)
        self.section = section
        self.key = key


class Refusal(Exception):
    """One request, or one identity of a request, is refused; ``text`` never holds a secret."""

    def __init__(self, code: RefusalCode, text: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
        self.retry_after_s = retry_after_s

    def reply(self) -> Refused:
        """What goes over the wire."""
        return Refused(code=self.code, text=self.text, retry_after_s=self.retry_after_s)
