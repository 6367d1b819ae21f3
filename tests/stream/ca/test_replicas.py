"""Several authorities on one PostgreSQL, as processes: they share the load, and one that is killed loses nothing."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from ca.client import load_chain
from ca.csr import build_csr, new_key
from ca.errors import CaRefused
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from tests.authority_builder import TRUST_DOMAIN, Authority, attested, make_authority, sign, workload
from tests.authority_load import load
from tests.authority_process import Process, ringfence, running
from tests.postgres_server import PostgresServer

pytestmark = pytest.mark.deadline_s(120)


@pytest.fixture
def authority(tmp_path: Path, postgres: PostgresServer) -> Authority:
    made = make_authority(tmp_path, database_url=postgres.url(postgres.new_database()))
    made.pod("web-1", node="node-1", account="web")
    return made


@asynccontextmanager
async def replicas(authority: Authority, count: int = 2) -> AsyncIterator[list[tuple[Process, int]]]:
    """Start them at the same moment; their logs are read all the time."""
    found: list[tuple[Process, int]] = []
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:

        async def start(each: Authority) -> None:
            found.append(await stack.enter_async_context(running(each)))

        async with trio.open_nursery() as starting:
            for number in range(count):
                starting.start_soon(start, authority if number == 0 else authority.replica(f"-{number}"))
        for process, _port in found:
            nursery.start_soon(process.read_on)
        yield found
        nursery.cancel_scope.cancel()


async def test_two_replicas_share_the_load_and_one_that_is_killed_takes_nothing_along(authority: Authority) -> None:
    async with (
        replicas(authority) as ((first, first_port), (second, second_port)),
        load(authority, [first_port, second_port]) as asked,
    ):
        await asked.more(300)
        before = [len([line for line in each.log if line["event"] == "issued"]) for each in (first, second)]
        assert min(before) > 50, before

        first.process.kill()
        await first.process.wait()
        await asked.more(300)
    assert asked.failures == []

    journal = [each.serial for each in authority.journal()]
    assert set(asked.received) <= set(journal)
    assert len(asked.received) == len(set(asked.received))
    assert len(journal) == len(set(journal))


async def test_a_replica_that_comes_back_carries_its_share_again(authority: Authority) -> None:
    async with replicas(authority) as ((first, first_port), (_second, second_port)):
        own = await attested(authority, authority.client(first_port, second_port), "node-1")
        first.process.send_signal(signal.SIGTERM)
        assert await first.process.wait() == 0
        await sign(authority.client(first_port, second_port), own, workload("web"))

        async with running(authority) as (again, port):
            await sign(authority.client(port), own, workload("web"))
            await again.logged("issued", node="node-1")


async def test_what_one_replica_certified_the_other_renews(authority: Authority) -> None:
    async with replicas(authority) as ((_, first_port), (_, second_port)):
        own = await attested(authority, authority.client(first_port), "node-1")
        key = new_key()
        csr = build_csr(key, SpiffeId.node(TRUST_DOMAIN, "node-1"))
        renewed = await authority.client(second_port).renew_node(csr, own)
        renewed_own = KeyAndChain(key=key, chain=load_chain(renewed.certificates[0].chain_der))
        assert len((await sign(authority.client(first_port), renewed_own, workload("web"))).certificates) == 1


async def test_of_two_nodes_with_one_token_at_two_replicas_exactly_one_joins(authority: Authority) -> None:
    async with replicas(authority) as found:
        for attempt in range(8):
            node = f"node-{attempt}"
            token = authority.token(node)
            joined: list[int] = []
            refused: list[str] = []

            async def join(
                port: int,
                node: str = node,
                token: str = token,
                joined: list[int] = joined,
                refused: list[str] = refused,
            ) -> None:
                try:
                    csr = build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, node))
                    await authority.client(port).attest(token, node, csr)
                except CaRefused as error:
                    refused.append(error.code)
                else:
                    joined.append(port)

            async with trio.open_nursery() as nursery:
                for _process, port in found:
                    nursery.start_soon(join, port)
            assert len(joined) == 1
            assert refused == [RefusalCode.TOKEN_INVALID]
    for attempt in range(8):
        assert len([each for each in authority.journal() if each.node == f"node-{attempt}"]) == 1


def logged(process: Process, event: str) -> bool:
    return any(line["event"] == event for line in process.log)


async def test_while_the_database_is_gone_nothing_is_issued_and_all_goes_on_when_it_is_back(
    authority: Authority, postgres: PostgresServer
) -> None:
    async with replicas(authority) as found:
        ports = [port for _process, port in found]
        async with load(authority, ports) as asked:
            await asked.more(50)
            await trio.to_thread.run_sync(postgres.stop, signal.SIGQUIT)
            try:
                # Until the background duties of both have met it too.
                while not all(logged(process, "trust_not_loaded") for process, _port in found) or not asked.failures:
                    await trio.sleep(0.01)
                with pytest.raises(CaRefused) as caught:
                    await sign(authority.client(ports[0]), asked.own, workload("web"))
                assert caught.value.code == RefusalCode.UNAVAILABLE
                assert caught.value.retry_after_s > 0
            finally:
                postgres.start()  # not in another thread: the server ends with the thread that made it (prctl(2))
            await asked.more(50)
    assert {error.code for error in asked.failures if isinstance(error, CaRefused)} == {RefusalCode.UNAVAILABLE}
    assert all(isinstance(error, CaRefused) for error in asked.failures)
    assert set(asked.received) <= {each.serial for each in authority.journal()}


async def test_the_commands_work_beside_the_replicas(authority: Authority, postgres: PostgresServer) -> None:
    config = authority.config_file
    async with replicas(authority) as ((_, first_port), (_, second_port)):
        made = await trio.to_thread.run_sync(ringfence, "ca", "token", "--config", config, "--node", "node-1")
        assert made.returncode == 0, made.stderr
        csr = build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, "node-1"))
        await authority.client(second_port).attest(made.stdout.strip(), "node-1", csr)
        with pytest.raises(CaRefused):
            await authority.client(first_port).attest(made.stdout.strip(), "node-1", csr)
        shown = await trio.to_thread.run_sync(ringfence, "ca", "status", "--config", config)
        assert "node-1" in shown.stdout


async def test_init_on_a_second_machine_never_overwrites_the_authority(authority: Authority) -> None:
    other = authority.replica("-other")
    done = await trio.to_thread.run_sync(ringfence, "ca", "init", "--config", other.config_file)
    assert done.returncode == 1
    assert "never overwritten" in done.stderr


async def test_no_key_is_in_the_database_in_clear(authority: Authority, postgres: PostgresServer) -> None:
    name = authority.config_file.read_text().partition("postgres@/")[2].partition("?")[0]
    keys = postgres.execute("SELECT encode(encrypted_pem, 'escape') FROM signing_keys", database=name)
    assert len(keys) >= 2
    assert all(str(pem).startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----") for (pem,) in keys)
    assert not list(authority.config.keys_dir.glob("*"))
    assert authority.hierarchy.issuer.certificate.not_valid_after_utc > datetime.now(UTC)
