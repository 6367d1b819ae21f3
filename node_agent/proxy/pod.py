"""One local workload with its foot in the network: what both stories need of a pod."""

import socket
from types import TracebackType

import trio

from node_agent.capture import Listeners, WorkloadNetwork
from node_agent.model import Workload
from node_agent.relay import reset_on_close


class Pod:
    """A local, enrolled workload that is served.

    ``workload`` is replaced whole when its labels or readiness change; its uid,
    identity and addresses never do.  ``gone`` is set when the pod is, ``closed``
    when nothing of ours is left in it.  Owns network and listeners until ``close``.
    """

    __slots__ = ("closed", "gone", "listeners", "network", "workload")

    def __init__(self, *, workload: Workload, network: WorkloadNetwork, listeners: Listeners) -> None:
        self.workload = workload
        self.network = network
        self.listeners = listeners
        self.gone = trio.Event()
        self.closed = trio.Event()

    def close(self) -> None:
        """Give everything back: an open descriptor would keep the pod's namespace alive."""
        self.listeners.close()
        self.network.close()


class Accepted:
    """An accepted socket that is reset unless somebody takes it over.

    A connection that we could not serve must look refused, not finished.
    """

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock

    def take(self) -> socket.socket:
        """Hand the socket over; from now on the caller closes it."""
        assert self._sock is not None
        sock, self._sock = self._sock, None
        return sock

    def __enter__(self) -> socket.socket:
        assert self._sock is not None
        return self._sock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sock is not None:
            reset_on_close(self._sock)
            self._sock.close()
