"""Sockets that belong to a cgroup: made by a process that is in it, and handed to the test.

Which cgroup a socket is of is decided when it is made, by who makes it; where it
is used later is all the same.
"""

import array
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from tests.namespaces import enter_namespace

T = TypeVar("T")


def in_cgroup(cgroup: Path, netns: Path, make: Callable[[], T]) -> T:
    """Run ``make`` in a process of its own, inside cgroup and network namespace; its result may be a socket."""
    ours, theirs = socket.socketpair()
    with ours:
        child = os.fork()
        if not child:
            _serve(theirs, cgroup, netns, make)
        theirs.close()
        with ours:
            message, descriptors = _receive(ours)
        os.waitpid(child, 0)
    kind, value = pickle.loads(message)
    if kind == "error":
        raise value
    if kind != "socket":
        result: T = value
        return result
    made = socket.socket(fileno=descriptors[0])
    made.settimeout(value)
    return cast(T, made)


def _serve(theirs: socket.socket, cgroup: Path, netns: Path, make: Callable[[], Any]) -> None:
    """The child: nothing of it goes back into the test's code."""
    try:
        try:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            enter_namespace(netns)
            made = make()
        except BaseException as error:
            theirs.sendmsg([pickle.dumps(("error", error))])
        else:
            if isinstance(made, socket.socket):
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))]
                theirs.sendmsg([pickle.dumps(("socket", made.gettimeout()))], rights)
            else:
                theirs.sendmsg([pickle.dumps(("value", made))])
    finally:
        os._exit(0)


def _receive(ours: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = ours.recvmsg(65536, socket.CMSG_SPACE(4))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return message, list(descriptors)
