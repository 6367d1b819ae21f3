"""What can go wrong between an agent and the CA.

``CaError`` is a component error: the agent keeps its last good certificates,
backs off and shows the text in readiness.  It never stops the agent.
"""


class WireError(ValueError):
    """Bytes from the other side are not a well-formed message: close the connection."""


class CaError(Exception):
    """A request to the CA did not end with what was asked for."""


class CaUnreachable(CaError):
    """No answer: not connected, not in time, not a CA that our bundle vouches for, or cut off."""


class CaProtocolError(CaError):
    """The CA answered with something that this version does not understand."""


class CaRefused(CaError):
    """The CA answered no.

    ``code`` is a ``ca.messages.RefusalCode``; ``retry_after_s`` is the CA's own
    wish, 0.0 when it has none.
    """

    def __init__(self, code: str, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code}: {text}" if text else code)
        self.code = code
        self.text = text
        self.retry_after_s = retry_after_s

    @property
    def busy(self) -> bool:
        """Whether it is not about what was asked for, but about now: there are too many requests, or it can not."""
        return self.code in ("unavailable", "rate_limited")
