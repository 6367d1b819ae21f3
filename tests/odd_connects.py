"""A program that connects in every way that Linux has: ``odd_connects.py IPV4 IPV6 PORT``.

An echo is there.  Prints a JSON object: for each way [address of the peer, its port, what came back].
"""

import array
import contextlib
import ctypes
import errno
import json
import mmap
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Final

Address = tuple[str, int]

_TIMEOUT_S: Final = 60.0
_TCP_FASTOPEN_CONNECT: Final = 30
_MSG_FASTOPEN: Final = 0x20000000
_CHILDREN: Final = 60
_SAID: Final = b"hello"
_SETUP, _ENTER = 425, 426
_OP_CONNECT, _ASYNC, _GET_EVENTS = 16, 1 << 4, 1
_SQES_AT: Final = 0x10000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _socket(address: Address) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    made.settimeout(_TIMEOUT_S)
    return made


def _raw(address: Address) -> bytes:
    """The struct sockaddr."""
    ip, port = address
    if ":" in ip:
        return struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(port), 0, socket.inet_pton(socket.AF_INET6, ip), 0)
    return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), socket.inet_pton(socket.AF_INET, ip))


def _plain(address: Address) -> socket.socket:
    made = _socket(address)
    made.connect(address)
    return made


def _without_blocking(address: Address) -> socket.socket:
    made = _socket(address)
    made.setblocking(False)
    assert made.connect_ex(address) == errno.EINPROGRESS
    select.select([], [made], [], _TIMEOUT_S)
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert made.connect_ex(address) == 0
    made.settimeout(_TIMEOUT_S)
    return made


def _bound_before(address: Address) -> socket.socket:
    """To every address and a port of the kernel's choice, which is there before the destination is known."""
    made = _socket(address)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::" if ":" in address[0] else "0.0.0.0", 0))
    made.connect(address)
    return made


def _fast_open_connect(address: Address) -> socket.socket:
    """The SYN is sent with the first bytes."""
    made = _socket(address)
    made.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
    made.connect(address)
    made.send(_SAID)
    return made


def _fast_open_send(address: Address) -> socket.socket:
    made = _socket(address)
    made.setblocking(True)
    made.sendto(_SAID, _MSG_FASTOPEN, address)
    made.settimeout(_TIMEOUT_S)
    return made


def _again_after_another(address: Address) -> socket.socket:
    """connect(2) with AF_UNSPEC makes a socket new; the first one went to a port where nobody is."""
    made = _socket(address)
    with contextlib.suppress(ConnectionResetError):  # the agent has found out, perhaps before we are told of the accept
        made.connect((address[0], address[1] + 1))
    nowhere = ctypes.create_string_buffer(struct.pack("=H14x", socket.AF_UNSPEC))
    assert _libc.connect(made.fileno(), nowhere, 16) == 0
    made.connect(address)
    return made


def _in_another_thread(address: Address) -> socket.socket:
    made = _socket(address)
    thread = threading.Thread(target=made.connect, args=(address,))
    thread.start()
    thread.join()
    return made


def _passed_before(address: Address) -> socket.socket:
    """Made here, connected by another process, used here again."""
    made = _socket(address)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            made.connect(address)
            theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))])
        os._exit(0)
    theirs.close()
    made.close()
    with ours:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    os.waitpid(child, 0)
    found = socket.socket(fileno=struct.unpack("=i", ancillary[0][2])[0])
    found.settimeout(_TIMEOUT_S)
    return found


def _by_ring(flags: int) -> Callable[[Address], socket.socket]:
    """io_uring(7), without a library: one connect; with ``_ASYNC`` a thread of the kernel does it."""

    def connect(address: Address) -> socket.socket:
        made = _socket(address)
        made.setblocking(True)
        params = ctypes.create_string_buffer(120)
        ring = _checked(_libc.syscall(_SETUP, 4, params))
        (tail_at, _, _, _, _, array_at) = struct.unpack_from("=6I", params, 44)
        (head_at, done_at, _, _, _, entries_at) = struct.unpack_from("=6I", params, 80)
        with mmap.mmap(ring, 4096) as shared, mmap.mmap(ring, 4096, offset=_SQES_AT) as entries:
            raw = ctypes.create_string_buffer(_raw(address))
            entry = struct.pack(
                "=BBHiQQ", _OP_CONNECT, flags, 0, made.fileno(), len(raw) - 1, ctypes.addressof(raw)
            ).ljust(64, b"\0")
            entries[:64] = entry
            struct.pack_into("=I", shared, array_at, 0)
            struct.pack_into("=I", shared, tail_at, 1)
            _checked(_libc.syscall(_ENTER, ring, 1, 1, _GET_EVENTS, None, 0))
            head, done = (struct.unpack_from("=I", shared, at)[0] for at in (head_at, done_at))
            assert done == head + 1
            (result,) = struct.unpack_from("=i", shared, entries_at + 8)
        os.close(ring)
        assert result == 0, os.strerror(-result)
        made.settimeout(_TIMEOUT_S)
        return made

    return connect


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


WAYS: Final[dict[str, Callable[[Address], socket.socket]]] = {
    "plain": _plain,
    "without blocking": _without_blocking,
    "bound before": _bound_before,
    "fast open by connect": _fast_open_connect,
    "fast open by send": _fast_open_send,
    "again after another": _again_after_another,
    "in another thread": _in_another_thread,
    "passed to another process and back": _passed_before,
    "io_uring": _by_ring(0),
    "io_uring, by a thread of the kernel": _by_ring(_ASYNC),
}


def _echo(made: socket.socket, *, has_spoken: bool) -> bytes:
    """What comes back."""
    if not has_spoken:
        made.sendall(_SAID)
    return made.recv(len(_SAID), socket.MSG_WAITALL)


def _storm(address: Address) -> int:
    """Many processes at one time that connect and end, every third without hearing anything; how many succeeded."""
    children = []
    for number in range(_CHILDREN):
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                made = _plain(address)
                code = int(bool(number % 3) and _echo(made, has_spoken=False) != _SAID)
            os._exit(code)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] == 0 for child in children)


def _main() -> None:
    port = int(sys.argv[3])
    found: dict[str, object] = {}
    for ip in sys.argv[1:3]:
        for name, connect in WAYS.items():
            with connect((ip, port)) as made:
                back = _echo(made, has_spoken=connect in (_fast_open_connect, _fast_open_send))
                found[f"{name} to {ip}"] = [*made.getpeername()[:2], back.decode()]
        found[f"storm to {ip}"] = _storm((ip, port))
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
