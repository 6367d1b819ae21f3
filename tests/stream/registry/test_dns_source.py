"""Names outside, resolved by asking a real DNS server on loopback."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio

from ca.manifests import ObjectKey
from node_agent.config import HostPort
from node_agent.registry.changes import ResolvedName, Update
from node_agent.registry.dns_lookup import Answer, LookupFailedError, lookup
from node_agent.registry.dns_names import Question, RecordType
from node_agent.registry.dns_source import DnsSource
from tests.dns_server import DnsServer, listen

_A = Question("api.example", RecordType.A)
_AAAA = Question("api.example", RecordType.AAAA)


@pytest.fixture
def server() -> Iterator[DnsServer]:
    made = DnsServer({}, partial(listen, "127.0.0.1"))
    yield made
    made.close()


def _servers(*servers: DnsServer) -> tuple[HostPort, ...]:
    return tuple(HostPort(host="127.0.0.1", port=each.port) for each in servers)


async def _until(look: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not look():
            await trio.sleep(0.01)


async def test_addresses_come_with_the_least_ttl_on_the_way_to_them(server: DnsServer) -> None:
    server.zone["api.example"] = [(30, "CNAME", "cdn.example.")]
    server.zone["cdn.example"] = [(300, "A", "192.0.2.1"), (300, "A", "192.0.2.2"), (60, "AAAA", "2001:db8::1")]
    answer = await lookup(_A, _servers(server))
    assert (sorted(answer.addresses), answer.ttl_s) == (["192.0.2.1", "192.0.2.2"], 30)
    assert await lookup(_AAAA, _servers(server)) == Answer(("2001:db8::1",), 30)


async def test_a_name_without_addresses_of_a_kind_is_an_answer(server: DnsServer) -> None:
    server.zone["api.example"] = [(30, "A", "192.0.2.1")]
    assert (await lookup(_AAAA, _servers(server))).addresses == ()


async def test_addresses_that_nobody_may_connect_to_are_dropped(server: DnsServer) -> None:
    bad = ("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1")
    server.zone["api.example"] = [
        *((30, "A", each) for each in (*bad, "192.0.2.1")),
        *((30, "AAAA", each) for each in ("::1", "fe80::1", "::ffff:127.0.0.1", "::ffff:192.0.2.9")),
    ]
    assert (await lookup(_A, _servers(server))).addresses == ("192.0.2.1",)
    assert (await lookup(_AAAA, _servers(server))).addresses == ("192.0.2.9",)


async def test_a_truncated_answer_is_fetched_by_tcp(server: DnsServer) -> None:
    server.mood = "truncated"
    server.zone["api.example"] = [(30, "A", f"192.0.2.{number}") for number in range(1, 101)]
    assert len((await lookup(_A, _servers(server))).addresses) == 100
    assert server.asked == ["api.example A udp", "api.example A tcp"]


async def test_a_name_that_does_not_exist_is_said_to(server: DnsServer) -> None:
    with pytest.raises(LookupFailedError, match="DNS says that it does not exist"):
        await lookup(_A, _servers(server))


@pytest.mark.parametrize("mood", ["broken", "refused"])
async def test_no_usable_answer_names_the_server(server: DnsServer, mood: str) -> None:
    server.mood = mood
    with pytest.raises(LookupFailedError, match=rf"answer from 127\.0\.0\.1:{server.port}"):
        await lookup(_A, _servers(server))


async def test_the_next_server_is_asked_when_one_refuses(server: DnsServer) -> None:
    other = DnsServer({"api.example": [(30, "A", "192.0.2.1")]}, partial(listen, "127.0.0.1"))
    try:
        server.mood = "refused"
        assert (await lookup(_A, _servers(server, other))).addresses == ("192.0.2.1",)
    finally:
        other.close()


async def test_a_source_tells_what_it_finds_and_what_it_forgets(server: DnsServer) -> None:
    server.zone["api.example"] = [(0, "A", "192.0.2.1")]
    updates: list[Update] = []
    source = DnsSource(servers=_servers(server), draw=lambda: 0.0, on_update=updates.append)
    source.want({"api.example", "nobody.example"})
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        first = ResolvedName(name="api.example", addresses=("192.0.2.1",))
        assert updates == [Update(upserts=(first,))], "known before it says that it has started"
        assert list(source.objects()) == [first]
        assert list(source.problems()) == [("nobody.example", "DNS says that it does not exist")]

        server.zone["api.example"] = [(0, "A", "192.0.2.2")]
        await _until(lambda: len(updates) == 2)
        assert updates[1].upserts == (
            ResolvedName(name="api.example", addresses=("192.0.2.2",), recent=("192.0.2.1",)),
        )

        server.zone["late.example"] = [(60, "A", "192.0.2.3")]
        source.want({"api.example", "late.example"})
        await _until(lambda: len(updates) == 3)
        assert updates[2].upserts == (ResolvedName(name="late.example", addresses=("192.0.2.3",)),)

        source.want(set())
        keys = {ObjectKey("ResolvedName", "", name) for name in ("api.example", "late.example")}
        assert set(updates[3].deletes) == keys
        assert list(source.objects()) == []
        nursery.cancel_scope.cancel()


async def test_a_server_that_fails_takes_nothing_away(server: DnsServer) -> None:
    server.zone["api.example"] = [(0, "A", "192.0.2.1"), (0, "AAAA", "2001:db8::1")]
    updates: list[Update] = []
    source = DnsSource(servers=_servers(server), draw=lambda: 0.0, on_update=updates.append)
    source.want({"api.example"})
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        count = len(updates)
        server.mood = "refused"
        await _until(lambda: any("no usable answer" in why for _, why in source.problems()))
        assert len(updates) == count
        ((_, why),) = source.problems()
        assert why.endswith("its last addresses stay in force for up to an hour")
        server.mood = "good"
        await _until(lambda: not list(source.problems()))
        nursery.cancel_scope.cancel()


async def test_a_source_starts_though_nobody_answers(server: DnsServer) -> None:
    server.mood = "silent"
    source = DnsSource(servers=_servers(server), draw=lambda: 0.0, on_update=lambda _: None)
    source.want({"api.example"})
    async with trio.open_nursery() as nursery:
        with trio.fail_after(30):
            await nursery.start(source.run)
        assert list(source.objects()) == []
        nursery.cancel_scope.cancel()
