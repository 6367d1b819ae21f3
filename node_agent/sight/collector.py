"""Ask the agents of all other nodes what they see, when somebody looks at the whole mesh.

Where they are: the addresses of the Node manifests, and the port on which this
agent listens itself.  An agent that can not be asked is part of the answer, with
the reason; it never holds up the others for longer than ``_AGENT_S``.

What they answer is carried unread, as text within our own JSON: a wrong or evil
answer can spoil its own place in the picture and nothing else, and costs this
process no parsing.  Its size is bounded, for one agent and for all together.
"""

import json
import os
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import h11
import trio

from ca.http_client import TooLong, exchange
from ca.manifests import Node
from node_agent.errors import ConnectionFailure
from node_agent.identity import handshake_failure
from node_agent.model import join_host_port
from node_agent.sight.endpoint import PATH
from node_agent.sight.peers import NodePeers

_AGENT_S: Final = 3.0  # for connecting, handshake and answer
_AT_A_TIME: Final = 16
_MAX_BYTES: Final = 4 * 1024 * 1024  # of one agent: 5,000 edges are 2 MB
_MAX_ALL_BYTES: Final = 64 * 1024 * 1024
_FRESH_S: Final = 1.0  # whoever asks again within that time gets the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One agent's answer: its sight as JSON text, or why there is none."""

    node: str
    sight: str | None = None
    error: str | None = None


class Collector:
    """Asks all other agents at most once a second, whoever wants to know."""

    def __init__(
        self, *, node: str, trust_domain: str, port: int | None, nodes: Callable[[], Iterable[Node]], peers: NodePeers
    ) -> None:
        """``port`` is where agents serve their sight; None: they are not asked."""
        self._node = node
        self._trust_domain = trust_domain
        self._port = port
        self._nodes = nodes
        self._peers = peers
        self._turn = trio.Lock()
        self._asked_at = -_FRESH_S
        self._seen: tuple[Seen, ...] = ()

    async def collect(self) -> None:
        """Bring ``seen`` up to date."""
        async with self._turn:
            if trio.current_time() - self._asked_at < _FRESH_S:
                return
            others = sorted((each for each in self._nodes() if self._is_of_ours(each)), key=lambda each: each.name)
            seen: dict[str, Seen] = {}
            at_a_time = trio.CapacityLimiter(_AT_A_TIME)
            async with trio.open_nursery() as nursery:
                for other in others:
                    nursery.start_soon(self._ask, other, seen, at_a_time)
            self._seen = tuple(seen[each.name] for each in others)
            self._asked_at = trio.current_time()

    def rows(self) -> Iterator[bytes]:
        """What the others answered last, as the inside of a JSON array."""
        for number, seen in enumerate(self._seen):
            row = {"node": seen.node, "sight": seen.sight, "error": seen.error}
            yield (",\n" if number else "").encode() + json.dumps(row).encode()

    async def _ask(self, other: Node, seen: dict[str, Seen], at_a_time: trio.CapacityLimiter) -> None:
        async with at_a_time:
            error = self._why_not(other)
            if error is None:
                try:
                    with trio.fail_after(_AGENT_S):
                        text = await self._sight_of(other)
                except _Unseen as why:
                    error = str(why)
                except trio.TooSlowError:
                    error = f"no answer within {_AGENT_S:g} s"
                else:
                    held = sum(len(each.sight or "") for each in seen.values())
                    if held + len(text) <= _MAX_ALL_BYTES:
                        seen[other.name] = Seen(node=other.name, sight=text)
                        return
                    error = f"left out: all answers together are longer than {_MAX_ALL_BYTES} bytes"
            seen[other.name] = Seen(node=other.name, error=error)

    def _is_of_ours(self, node: Node) -> bool:
        """Nodes of other trust domains have meshes, and dashboards, of their own."""
        return node.name != self._node and node.trust_domain in ("", self._trust_domain)

    def _why_not(self, other: Node) -> str | None:
        if self._port is None:
            return "agents are not asked: [listen] sight is off at this agent"
        if not other.addresses:
            return "its Node manifest has no InternalIP in status.addresses"
        return None

    async def _sight_of(self, other: Node) -> str:
        assert self._port is not None
        host = other.addresses[0]
        where = join_host_port(host, self._port)
        try:
            transport = await trio.open_tcp_stream(host, self._port)
        except OSError as error:
            raise _Unseen(f"{where}: can not connect: {_why(error)}") from None
        try:
            stream = await self._peers.dial(transport, node=other.name)
            headers = [("Host", where), ("Connection", "close")]
            request = h11.Request(method="GET", target=PATH, headers=headers)
            answer = await exchange(stream, request, max_body_bytes=_MAX_BYTES)
        except ConnectionFailure as failure:
            raise _Unseen(f"{where}: {failure.detail}") from None
        except TooLong:
            raise _Unseen(f"{where}: answered with more than {_MAX_BYTES} bytes") from None
        except h11.RemoteProtocolError:
            raise _Unseen(f"{where}: broke off; its log says whether it refuses this node") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise _Unseen(f"{where}: {_why(error)}") from None
        finally:
            await trio.aclose_forcefully(transport)
        if answer.status != 200:
            raise _Unseen(f"{where}: answered with status {answer.status}")
        try:
            return answer.body.decode("utf-8")
        except UnicodeDecodeError:
            raise _Unseen(f"{where}: answered with something else than UTF-8") from None


class _Unseen(Exception):
    """This agent can not be asked; the text says why."""


def _why(error: BaseException) -> str:
    """In words; trio wraps what really happened in up to two others."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, ssl.SSLError):
        return handshake_failure(cause).detail
    said = cause if isinstance(cause, OSError) else error
    return os.strerror(said.errno) if isinstance(said, OSError) and said.errno else "the connection broke"
