"""One connection of one caller: reads, calls, answers.

A task reads, and each call is a task of its own beside it.  Nothing is read
while what was answered has not been taken, so a client that does not read is
not listened to either, and after ``_TAKE_S`` it is cut.  A stream holds one
message at most: a slow reader gets the newest state, not every state.

Who calls is looked up again for each call and each message; when the process
has ended, the connection ends.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

import trio

from node_agent.model import Workload
from node_agent.workload_api.answers import Answers, CallFailed, require_empty
from node_agent.workload_api.caller import Caller
from node_agent.workload_api.callers import UNKNOWN, Group
from node_agent.workload_api.changes import Changes
from node_agent.workload_api.grpc import Called, Cancelled, Event, GrpcConnection, GrpcConnectionError
from node_agent.workload_api.grpc_status import GrpcStatus
from node_agent.workload_api.statistics import Statistics

_log = logging.getLogger("ringfence.workload_api")

_SERVICE: Final = "/SpiffeWorkloadAPI/"
_RECEIVE_BYTES: Final = 4096  # at most 455 frames: what one turn can cost
_FRAME_BYTES: Final = 64  # a budget's unit, if frames are not smaller
_TAKE_S: Final = 30.0  # for a client to take what was sent to it
_IDLE_S: Final = 60.0  # without a call; the client connects again when it has one
_IDLE_UNKNOWN_S: Final = 10.0  # long enough to be told no
_MAX_TIMEOUT_S: Final = 24 * 3600.0

Streaming = Callable[[Workload], bytes]


class Conversation:
    """One connection; ``run`` returns when it is to be closed."""

    def __init__(
        self,
        *,
        stream: trio.SocketStream,
        caller: Caller,
        group: Group,
        answers: Answers,
        changes: Changes,
        statistics: Statistics,
        denied: Callable[[Caller], None],
    ) -> None:
        """``stream``, ``caller`` and ``group`` are closed by whoever made them."""
        self._stream = stream
        self._caller = caller
        self._group = group
        self._answers = answers
        self._changes = changes
        self._statistics = statistics
        self._denied = denied
        self._grpc = GrpcConnection()
        self._calls: dict[int, trio.CancelScope] = {}
        self._sending = trio.Lock()
        self._window = trio.Event()  # set when something was received: a window may be open again
        self._idle = trio.CancelScope()
        self._idle_s = _IDLE_UNKNOWN_S if group.key == UNKNOWN else _IDLE_S
        self._has_key = False
        self._streaming: Mapping[str, Streaming] = {
            f"{_SERVICE}FetchX509SVID": answers.x509_svid,
            f"{_SERVICE}FetchX509Bundles": answers.x509_bundles,
            f"{_SERVICE}FetchJWTBundles": answers.jwt_bundles,
        }

    async def run(self) -> None:
        """Serve until the client ends, misbehaves, stops reading, or is idle for long."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_process, nursery.cancel_scope)
                with self._idle:
                    self._not_idle(False)
                    await self._flush()
                    await self._read(nursery)
                nursery.cancel_scope.cancel()
            with trio.move_on_after(1.0):
                self._grpc.close()
                await self._flush()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client went away or stopped reading: nobody is left to tell

    async def _read(self, nursery: trio.Nursery) -> None:
        while not self._grpc.is_over:
            await trio.lowlevel.wait_readable(self._stream.socket)
            # One connection of a workload after the other: else each would find the budget as the others left it.
            async with self._group.turn:
                await trio.sleep(self._group.budget.spend(0.0, now=trio.current_time()))
                data = await self._stream.receive_some(_RECEIVE_BYTES)
                if not data:
                    return
                events = self._receive(bytes(data))
            for event in events:
                match event:
                    case Called():
                        self._begin(nursery, event)
                    case Cancelled(call=call):
                        if call in self._calls:
                            self._calls[call].cancel()
            self._window.set()
            self._window = trio.Event()
            await self._flush()

    def _receive(self, data: bytes) -> list[Event]:
        """What the bytes complete, paid for; what is broken ends the connection after its last words."""
        events: list[Event] = []
        frames = 0
        try:
            events, frames = self._grpc.receive(data)
        except GrpcConnectionError as error:
            _log.debug("%s: %s", self._caller.process, error)
        self._group.budget.spend(frames + len(data) / _FRAME_BYTES, now=trio.current_time())
        return events

    def _begin(self, nursery: trio.Nursery, called: Called) -> None:
        if not self._group.may_call:
            self._end(called, GrpcStatus.RESOURCE_EXHAUSTED, "this workload has too many calls open")
            return
        scope = self._calls[called.call] = trio.CancelScope()
        if called.timeout_s is not None:
            scope.deadline = trio.current_time() + min(called.timeout_s, _MAX_TIMEOUT_S)
        self._group.calls += 1
        self._not_idle(True)
        nursery.start_soon(self._call, called, scope)

    async def _call(self, called: Called, scope: trio.CancelScope) -> None:
        """Answer one call; whatever happens in it, it ends with a status."""
        status, text = GrpcStatus.OK, ""
        try:
            with scope:
                try:
                    await self._answer(called)
                except CallFailed as error:
                    status, text = error.status, error.text
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                    raise
                except Exception:
                    _log.exception("%s failed", called.path)
                    status, text = GrpcStatus.INTERNAL, "the agent failed; its log says more"
            if scope.cancelled_caught:
                is_late = trio.current_time() >= scope.deadline
                status = GrpcStatus.DEADLINE_EXCEEDED if is_late else GrpcStatus.CANCELLED
            self._end(called, status, text)
            await self._flush()
        finally:
            del self._calls[called.call]
            self._group.calls -= 1
            self._not_idle(bool(self._calls))

    async def _answer(self, called: Called) -> None:
        if not called.has_metadata:
            # Workload Endpoint 3: "Requests not including this metadata key/value MUST be rejected"
            raise CallFailed(
                GrpcStatus.INVALID_ARGUMENT,
                "the metadata workload.spiffe.io: true is missing (SPIFFE Workload Endpoint 3)",
            )
        workload = self._require_workload()
        if (produce := self._streaming.get(called.path)) is not None:
            require_empty(called.message)
            if produce == self._answers.x509_svid:
                await self._answers.wait_for_svid(workload)
            await self._push(called.call, produce, workload)
        elif called.path == f"{_SERVICE}FetchJWTSVID":
            message = await self._answers.jwt_svid(workload, called.message)
            self._require_workload()
            await self._send(called.call, message)
        elif called.path == f"{_SERVICE}ValidateJWTSVID":
            await self._send(called.call, self._answers.validate_jwt_svid(workload, called.message))
        else:
            raise CallFailed(GrpcStatus.UNIMPLEMENTED, "no such method; this is the SPIFFE Workload API")

    async def _push(self, call: int, produce: Streaming, first: Workload) -> None:
        """Send the state now, and again whenever it is another one, until the caller may not have it any more."""
        sent = b""
        while True:
            with self._changes.watched(first.identity) as changed:
                message = produce(self._require_workload())
                digest = hashlib.sha256(message).digest()  # not the message: it has a key in it
                if digest != sent:
                    self._note_key(produce)
                    await self._send(call, message)
                    sent = digest
                del message
                await changed.wait()

    def _require_workload(self) -> Workload:
        workload = self._caller.workload()
        if workload is None:
            self._denied(self._caller)
            raise CallFailed(
                GrpcStatus.PERMISSION_DENIED, "the calling process belongs to no workload that this agent serves"
            )
        return workload

    def _note_key(self, produce: Streaming) -> None:
        if produce == self._answers.x509_svid and not self._has_key:
            self._has_key = True
            _log.info("%s of %s gets its X.509-SVID with the key", self._caller.process, self._caller.name)

    async def _send(self, call: int, message: bytes) -> None:
        self._grpc.send(call, message)
        with trio.move_on_after(_TAKE_S) as taking:
            while True:
                window = self._window
                await self._flush()
                if self._grpc.is_taken(call):
                    break
                await window.wait()
        if taking.cancelled_caught:
            raise trio.TooSlowError

    def _end(self, called: Called, status: GrpcStatus, text: str) -> None:
        self._statistics.count(called.path.removeprefix(_SERVICE), status)
        self._grpc.end(called.call, status, text)

    async def _flush(self) -> None:
        """Write what there is to write, in order; raises TooSlowError when the client does not read."""
        async with self._sending:
            data = self._grpc.data_to_send()
            if data:
                with trio.fail_after(_TAKE_S):
                    await self._stream.send_all(data)

    def _not_idle(self, busy: bool) -> None:
        self._idle.deadline = float("inf") if busy else trio.current_time() + self._idle_s

    async def _end_with_process(self, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(self._caller.process.pidfd)
        scope.cancel()
