"""A small DNS server for tests: real messages over UDP and TCP, answers from a table that the test changes."""

import errno
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

_POLL_S: Final = 0.2


class DnsServer:
    """Answers until it is closed.

    ``zone`` maps names to ``(ttl, type, data)``; CNAMEs within it are followed.  What is
    not in it does not exist.  ``mood``: ``good``, ``silent``, ``broken`` (garbage),
    ``refused`` or ``truncated`` (over UDP, so that clients come back by TCP).
    """

    def __init__(self, zone: dict[str, list[tuple[int, str, str]]], sockets: Callable[[], "Sockets"]) -> None:
        self.zone = zone
        self.mood = "good"
        self.asked: list[str] = []
        self._udp, self._tcp = sockets()
        self.port: int = self._udp.getsockname()[1]
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._serve_udp), threading.Thread(target=self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                query, peer = self._udp.recvfrom(4096)
                answer = self._answer(query, is_udp=True)
                if answer is not None:
                    self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError, OSError):
                connection, _ = self._tcp.accept()
                with connection:
                    connection.settimeout(_POLL_S)
                    (length,) = struct.unpack("!H", connection.recv(2))
                    answer = self._answer(connection.recv(length), is_udp=False)
                    if answer is not None:
                        connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, wire: bytes, *, is_udp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name = question.name.to_text().removesuffix(".")
        self.asked.append(f"{name} {question.rdtype.name} {'udp' if is_udp else 'tcp'}")
        if self.mood == "silent":
            return None
        if self.mood == "broken":
            return wire[:2] + b"\xff" * 20
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if self.mood == "refused":
            response.set_rcode(dns.rcode.REFUSED)
        elif self.mood == "truncated" and is_udp:
            response.flags |= dns.flags.TC
        else:
            self._fill(response, name, question.rdtype.name)
        return response.to_wire()

    def _fill(self, response: dns.message.Message, name: str, wanted: str) -> None:
        if name not in self.zone:
            response.set_rcode(dns.rcode.NXDOMAIN)
        while name in self.zone:
            records = self.zone[name]
            name = ""
            for ttl, kind, data in records:
                if kind in (wanted, "CNAME"):
                    owner = next(key for key, value in self.zone.items() if value is records)
                    response.answer.append(dns.rrset.from_text(f"{owner}.", ttl, "IN", kind, data))
                if kind == "CNAME":
                    name = data.removesuffix(".")


Sockets = tuple[socket.socket, socket.socket]


def listen(ip: str, port: int = 0) -> Sockets:
    """A UDP and a listening TCP socket on one port; with ``port`` 0, on one that is free for both."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind((ip, port))
            tcp = socket.create_server((ip, udp.getsockname()[1]))
        except OSError as error:
            udp.close()
            if port == 0 and error.errno == errno.EADDRINUSE:
                continue  # somebody's TCP connection has that port
            raise
        udp.settimeout(_POLL_S)
        tcp.settimeout(_POLL_S)
        return udp, tcp
