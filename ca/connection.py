"""One TLS connection from an agent to the CA, after both have proved themselves.

The dates of the CA's chain are compared here, with ``ca.svid.CLOCK_SKEW``:
OpenSSL knows no tolerance.  Every reply says what time it is at the CA, so
that an agent whose clock is wrong can say so with both times.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import trio

from ca.errors import WireError
from ca.messages import ALPN, Reply, Request, parse_reply
from ca.spiffe import SpiffeId
from ca.svid import CLOCK_SKEW, SvidDateError, SvidError, check_dates, identity_of, load_certificate
from ca.tls import check_time_ourselves, verified_chain
from ca.wire import FrameDecoder, encode_frame

_READ_BYTES: Final = 64 * 1024
_MAX_TIME_S: Final = 253_402_300_799  # the end of the year 9999: where datetime ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What time it was here (``ours``) and at the CA (``theirs``) at the same moment, give or take ``within_s``."""

    ours: datetime
    theirs: datetime
    within_s: float

    @property
    def ahead_s(self) -> float:
        """How far our clock is ahead of the CA's; negative when it is behind."""
        return (self.ours - self.theirs).total_seconds()

    @property
    def problem(self) -> str | None:
        """A text with both times when they differ by more than is tolerated."""
        if abs(self.ahead_s) <= CLOCK_SKEW.total_seconds() + self.within_s:
            return None
        return (
            f"this node's clock says {_shown(self.ours)} and the CA's {_shown(self.theirs)}: they are "
            f"{abs(self.ahead_s):.0f} s apart, and {CLOCK_SKEW.total_seconds():.0f} s are tolerated; "
            "set the one that is wrong (NTP)"
        )


class CaConnection:
    """Owns ``stream`` until ``close``; one request at a time."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], utc_now: Callable[[], datetime]) -> None:
        self._stream = stream
        self._utc_now = utc_now
        self._decoder = FrameDecoder()
        self.clock: Clock | None = None

    @classmethod
    async def open(
        cls,
        transport: trio.SocketStream,
        context: ssl.SSLContext,
        *,
        authority: SpiffeId,
        utc_now: Callable[[], datetime],
    ) -> Self:
        """Shake hands over ``transport``, which is closed when that fails.

        Raises:
            SvidError: who answered is not ``authority``, or its certificate is out of date.
            WireError: it does not speak our protocol.
            trio.BrokenResourceError: the handshake failed; the cause says why.
        """
        check_time_ourselves(context)
        stream = trio.SSLStream(transport, context, server_hostname=None)
        try:
            await stream.do_handshake()
            _require(stream, authority, at=utc_now())
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return cls(stream, utc_now)

    async def ask(self, request: Request) -> Reply:
        """Send one request and wait for its reply.

        Raises:
            WireError: what came is not a reply.
            OSError, trio.BrokenResourceError: the connection was lost.
        """
        sent_at = self._utc_now()
        await self._stream.send_all(encode_frame(request.to_wire()))
        while True:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                raise ConnectionAbortedError("it closed the connection without a reply")
            messages = self._decoder.feed(bytes(data))
            if messages:
                self._note_time(messages[0], sent_at)
                return parse_reply(messages[0])

    async def close(self) -> None:
        """Close at once; no close_notify: replies are framed, so nothing can be cut off unseen."""
        await trio.aclose_forcefully(self._stream)

    def _note_time(self, fields: dict[str, Any], sent_at: datetime) -> None:
        """Take the CA's time out of a reply; one without it is an older CA's, or nonsense, and says nothing."""
        theirs = fields.get("time")
        ours = self._utc_now()
        if isinstance(theirs, int | float) and not isinstance(theirs, bool) and 0 <= theirs <= _MAX_TIME_S:
            # A watch is answered long after it was sent: what counts is when the reply arrived.
            within_s = min((ours - sent_at) / timedelta(seconds=1), 5.0)
            self.clock = Clock(ours=ours, theirs=datetime.fromtimestamp(theirs, UTC), within_s=max(within_s, 0.0))


def _require(stream: trio.SSLStream[trio.SocketStream], authority: SpiffeId, *, at: datetime) -> None:
    """Judge who answered: OpenSSL has verified the chain, but for its dates."""
    tls = getattr(stream, "_ssl_object")  # noqa: B009 - trio hands out everything but the chain
    chain = [load_certificate(der) for der in verified_chain(tls)]
    identity = identity_of(chain[0])
    if identity != authority:
        raise SvidError(f"it is {identity}, not {authority}", "ca.messages")
    for certificate in chain:
        try:
            check_dates(certificate, at=at)
        except SvidDateError as error:
            # The CA made its certificate by its own clock, and renews it at half-life.
            raise SvidDateError(f"{error.rule}: is this node's clock right, and the CA's?", error.section) from error
    if stream.selected_alpn_protocol() != ALPN:
        raise WireError(f"does not speak {ALPN}")


def _shown(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
