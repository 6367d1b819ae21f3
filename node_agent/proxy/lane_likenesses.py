"""Which connections of the same-node lane are told alike: all but numbers known, from the first of them.

The kernel's words for who talks to whom are the key; whatever may change what
is said to such a connection makes all of it void.  Those that did not end well,
or that the policies count one by one, have no likeness: each of them is told by
itself.
"""

from collections.abc import Callable
from typing import Final

from node_agent.capture.lane_end import ENDED_WELL, FIN_CAME, RawEnd
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.alike import Ending, Likeness
from node_agent.telemetry.connection_record import ConnectionRecord

_MOST: Final = 2048  # of some 3 KB each
_SYN_AND_FIN: Final = 2  # among the acknowledged bytes: lane_end.py
_NS: Final = 1e-9
_NS_IN_MS: Final = 1e-6


class Likenesses:
    """``note`` writes into both records, without ids, what they have in common; False if they have no likeness."""

    def __init__(
        self,
        *,
        note: Callable[[ConnectionRecord, ConnectionRecord, RawEnd], bool],
        access_log: AccessLog,
        version: Callable[[], object],
    ) -> None:
        self._note = note
        self._access_log = access_log
        self._version_now = version
        self._version: object = None
        self._known: dict[tuple[object, ...], Likeness | None] = {}

    def follow(self) -> None:
        """Forget what may be said otherwise now; to be called before any of ``ending``, after any change."""
        version = self._version_now()
        if version != self._version or len(self._known) >= _MOST:
            self._version = version
            self._known.clear()

    def ending(self, end: RawEnd) -> Ending | None:
        """What is told of a connection that nobody has looked at before; None: it has to be told by itself."""
        (
            _cookie,
            grant,
            _netns_cookie,
            began_ns,
            established_ns,
            ended_ns,
            acked_bytes,
            received_bytes,
            original_ip_be,
            original_port_be,
            flags,
            client_ip_be,
            server_ip_be,
            client_port,
            server_port,
            error,
            _reserved,
        ) = end
        if error or flags & ~FIN_CAME != ENDED_WELL or not established_ns or acked_bytes < _SYN_AND_FIN:
            return None
        has_fin_come = flags & FIN_CAME != 0
        key = (grant, original_ip_be, original_port_be, client_ip_be, server_ip_be, server_port)
        try:
            alike = self._known[key]
        except KeyError:
            alike = self._known[key] = self._access_log.alike(
                lambda outbound, inbound: self._note(outbound, inbound, end)
            )
        if alike is None or received_bytes < has_fin_come:
            return None
        return Ending(
            alike,
            client_port,
            ended_ns * _NS,
            (ended_ns - began_ns) * _NS_IN_MS,
            (established_ns - began_ns) * _NS_IN_MS,
            received_bytes - has_fin_come,
            acked_bytes - _SYN_AND_FIN,
        )
