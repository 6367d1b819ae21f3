"""A mesh comes back: a thousand agents ask an authority that was away, all in the same moment.

Each is a node of its own with an address of its own (127.x.y.z), its real TLS
connection for each attempt, the agents' own deadline, and the agents' own
schedule of attempts (``node_agent.identity.rotation``): what is measured is how
long until the last one has what it asked for, and what it took the authority.

Then the worst that silent peers can do: as many connections as it lets in, in
every state in which they hold memory.

Runs in a process of its own and prints one line of JSON.
"""

import argparse
import json
import random
import resource
import ssl
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Final

import trio
import trio.testing

from bench.authority import TRUST_DOMAIN, AuthorityProcess, end_in_order, workload
from bench.testbed import BenchError
from ca.connection import CaConnection
from ca.csr import build_csr, new_key
from ca.messages import ALPN, Issued, RefusalCode, Refused, SignRequest, SignWorkloads
from ca.spiffe import SpiffeId
from ca.tls import strict_context
from node_agent.identity.rotation import LONGEST_PAUSE_WITHOUT_S, Renew, Rotation, WaitFor

_DEADLINE_S: Final = 5.0  # ca.client's for one attempt
_GIVE_UP_S: Final = 180.0
_BUSY: Final = (RefusalCode.UNAVAILABLE, RefusalCode.RATE_LIMITED)


def main() -> None:
    """Measure and print."""
    end_in_order()
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--identities", type=int, default=10, help="of each agent")
    parser.add_argument("--silent", type=int, default=2048, help="connections that say nothing or half of it")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with AuthorityProcess(nodes=options.agents, pods_a_node=options.identities) as authority:
        figures = trio.run(_storm, authority, options.agents, options.identities)
    with AuthorityProcess(nodes=1, pods_a_node=1) as authority:
        figures |= trio.run(_silence, authority, options.silent)
    json.dump(figures, sys.stdout)


class _Agent:
    """One node: its certificate, what it asks for, and how its attempts ended."""

    def __init__(self, authority: AuthorityProcess, number: int, identities: int) -> None:
        self._address = f"127.{1 + number // 250 // 250}.{number // 250 % 250}.{number % 250 + 1}"
        self._port = authority.port
        self._context = strict_context(
            server_side=False, roots=authority.roots(), alpn=ALPN, own=authority.node_credentials(number)
        )
        wanted = [workload(each) for each in range(number * identities, (number + 1) * identities)]
        self._request = SignWorkloads(
            requests=tuple(SignRequest(identity=each, csr_der=build_csr(new_key(), each)) for each in wanted)
        )
        self._rotation = Rotation()
        self._rng = random.Random(number)
        self.outcomes: Counter[str] = Counter()
        self.took_s = 0.0

    async def run(self, began: trio.Event) -> None:
        await began.wait()
        start = trio.current_time()
        while not self.took_s:
            step = self._rotation.next_step(at=datetime.now(UTC), now=trio.current_time(), wanted=False)
            if isinstance(step, WaitFor):
                await trio.sleep(step.seconds)
            elif isinstance(step, Renew):
                outcome, wish_s = await self._attempt()
                self.outcomes[outcome] += 1
                if outcome == "issued":
                    self.took_s = trio.current_time() - start
                self._rotation.failed(
                    now=trio.current_time(),
                    draw=self._rng.random(),
                    longest_pause_s=LONGEST_PAUSE_WITHOUT_S,
                    wish_s=wish_s,
                )

    async def _attempt(self) -> tuple[str, float]:
        try:
            with trio.fail_after(_DEADLINE_S):
                transport = await trio.open_tcp_stream("127.0.0.1", self._port, local_address=self._address)
                connection = await CaConnection.open(
                    transport,
                    self._context,
                    authority=SpiffeId.authority(TRUST_DOMAIN),
                    utc_now=lambda: datetime.now(UTC),
                )
                try:
                    reply = await connection.ask(self._request)
                finally:
                    await connection.close()
        except trio.TooSlowError:
            return "no answer in time", 0.0
        except (OSError, trio.BrokenResourceError) as exc:
            return f"connection: {type(exc.__cause__ or exc).__name__}", 0.0
        if isinstance(reply, Refused):
            return str(reply.code), reply.retry_after_s
        if not isinstance(reply, Issued) or any(item.error for item in reply.certificates):
            return "not what was asked for", 0.0
        return "issued", 0.0


async def _storm(authority: AuthorityProcess, agents: int, identities: int) -> dict[str, float]:
    everyone = [_Agent(authority, number, identities) for number in range(agents)]
    idle_mb, cpu_s, began = authority.rss_mb(), authority.cpu_s(), trio.Event()
    with trio.move_on_after(_GIVE_UP_S):
        async with trio.open_nursery() as nursery:
            for agent in everyone:
                nursery.start_soon(agent.run, began)
            await trio.testing.wait_all_tasks_blocked()
            began.set()
    outcomes = sum((agent.outcomes for agent in everyone), Counter())
    if outcomes["issued"] != agents:
        raise BenchError(f"{agents - outcomes['issued']} of {agents} agents have got nothing: {dict(outcomes)}")
    took = sorted(agent.took_s for agent in everyone)
    busy = sum(outcomes[str(code)] for code in _BUSY)
    others = {name: count for name, count in outcomes.items() if name not in ("issued", *map(str, _BUSY))}
    if others:
        print(f"attempts that ended otherwise: {others}", file=sys.stderr)
    return {
        "agents": agents,
        "identities_each": identities,
        "all_served_s": took[-1],
        "agent_p50_s": took[agents // 2],
        "agent_p99_s": took[agents * 99 // 100],
        "told_to_come_again": busy,
        "other_failures": sum(others.values()),
        "certificates_per_s": agents * identities / took[-1],
        "authority_cpu_s": authority.cpu_s() - cpu_s,
        "authority_idle_rss_mb": idle_mb,
        "authority_peak_rss_mb": authority.peak_rss_mb(),
    }


async def _silence(authority: AuthorityProcess, connections: int) -> dict[str, float]:
    """A quarter has proved a node and sent most of a request; of the others each third is in another state."""
    before_mb = authority.rss_mb()
    nodes = connections // 4
    own = authority.node_credentials(0)
    hello = _hello(strict_context(server_side=False, roots=authority.roots(), alpn=ALPN, own=None))
    open_now: list[trio.abc.Stream] = []
    for number in range(connections):
        address = f"127.200.{number // 32 // 250}.{number // 32 % 250 + 1}"
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", authority.port, local_address=address)
        if number < nodes:
            if number % 16 == 0:
                own = authority.node_credentials(number)
            await _half_a_request(authority, stream, own=own, frame_bytes=1_000_000, sent_bytes=120_000)
        elif number % 3 == 0:
            await stream.send_all(hello[: len(hello) // 2])
        elif number % 3 == 1:
            await _half_a_request(authority, stream, own=None, frame_bytes=32_000, sent_bytes=31_000)
        open_now.append(stream)
    await trio.sleep(0.5)
    held_mb = authority.rss_mb()
    for stream in open_now:
        await trio.aclose_forcefully(stream)
    return {
        "silent_connections": connections,
        "silent_rss_mb": held_mb - before_mb,
        "silent_rss_kb_per_connection": (held_mb - before_mb) * 1000 / connections,
    }


async def _half_a_request(
    authority: AuthorityProcess, transport: trio.abc.Stream, *, own: object, frame_bytes: int, sent_bytes: int
) -> None:
    context = strict_context(server_side=False, roots=authority.roots(), alpn=ALPN, own=own)  # type: ignore[arg-type]
    stream = trio.SSLStream(transport, context, https_compatible=True)
    try:
        await stream.do_handshake()
        await stream.send_all(frame_bytes.to_bytes(4, "big") + bytes(sent_bytes))
    except trio.BrokenResourceError:
        return  # it was over a limit: that is what limits are for


def _hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing).do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


if __name__ == "__main__":
    main()
