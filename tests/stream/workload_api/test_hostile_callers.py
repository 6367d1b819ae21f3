"""Callers that flood, stall, lie or die: bounded for each workload, and nobody else notices."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.lowlevel
from h2.settings import SettingCodes
from hyperframe.frame import PingFrame
from spiffe._proto import workload_pb2 as real

from node_agent.errors import AgentError
from node_agent.model import Workload
from node_agent.workload_api.budget import BURST, RATE
from node_agent.workload_api.callers import MAX_CALLS_A_WORKLOAD, MAX_CONNECTIONS_A_WORKLOAD, MAX_UNKNOWN_CONNECTIONS
from node_agent.workload_api.grpc import MAX_CALLS
from node_agent.workload_api.process import PeerProcess
from tests.authority_builder import Authority, make_authority, workload
from tests.metrics_text import text_of
from tests.workload_api_builder import WEB, Client, Served, client, pod, served

PERMISSION_DENIED, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED = 7, 8, 4
OTHER: Final = workload("other")
HOLD: Final = """
import socket, sys
held = socket.socket(socket.AF_UNIX); held.connect(sys.argv[1]); sys.stdout.write("connected\\n"); sys.stdout.flush()
sys.stdin.read(1)
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


def mine_is_web(process: PeerProcess) -> Workload | None:
    """This process is one workload, every other process is another."""
    return pod() if process.pid == os.getpid() else pod("uid-2", identity=OTHER)


async def is_closed(stream: trio.SocketStream) -> bool:
    """Read to the end; fails if it never comes."""
    with trio.fail_after(30):
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass
    return True


async def gets_its_svid(program: Client) -> bool:
    call = await program.call("FetchX509SVID")
    return len(real.X509SVIDResponse.FromString(await call.message()).svids) == 1


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.002)


@asynccontextmanager
async def raw(path: Path) -> AsyncIterator[trio.SocketStream]:
    """A connection that says what the test says."""
    stream = await trio.open_unix_socket(os.fspath(path))
    try:
        yield stream
    finally:
        stream.socket.close()


def connections(api: Served) -> int:
    line = next(
        line for line in text_of(api.metrics).splitlines() if line.startswith("ringfence_workload_api_connections ")
    )
    return int(float(line.split()[1]))


async def test_a_thousand_connections_of_one_pod_leave_room_for_the_others(
    tmp_path: Path, authority: Authority
) -> None:
    async with served(tmp_path, authority, mine_is_web) as api:
        api.identities.issue(WEB)
        api.identities.issue(OTHER)
        crowd = []
        for _ in range(1000):
            crowd.append(await trio.open_unix_socket(os.fspath(api.path)))
            if len(crowd) % 50 == 0:
                await trio.lowlevel.checkpoint()
        await until(lambda: connections(api) == MAX_CONNECTIONS_A_WORKLOAD)
        assert await is_closed(crowd[-1])
        said = await trio.to_thread.run_sync(_asked_by_another_process, api.path)
        assert said == str(OTHER)
        assert connections(api) <= MAX_CONNECTIONS_A_WORKLOAD + 1
        for stream in crowd:
            await trio.aclose_forcefully(stream)
        await until(lambda: connections(api) == 0)
        async with client(api.path) as program:
            assert await gets_its_svid(program)


def _asked_by_another_process(path: Path) -> str:
    program = "from spiffe import WorkloadApiClient as C; print(C(default_timeout=120).fetch_x509_svid().spiffe_id)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{path}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


async def test_strangers_share_few_connections(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: None) as api:
        crowd = [await trio.open_unix_socket(os.fspath(api.path)) for _ in range(MAX_UNKNOWN_CONNECTIONS + 1)]
        assert await is_closed(crowd[-1])
        assert connections(api) == MAX_UNKNOWN_CONNECTIONS
        for stream in crowd:
            await trio.aclose_forcefully(stream)


async def test_calls_of_one_workload_are_bounded_over_all_its_connections(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, mine_is_web) as api:
        api.identities.issue()
        async with AsyncExitStack() as programs:
            for _ in range(MAX_CALLS_A_WORKLOAD // MAX_CALLS):
                program = await programs.enter_async_context(client(api.path))
                for _ in range(MAX_CALLS):
                    await (await program.call("FetchX509Bundles")).message()
            one_more = await programs.enter_async_context(client(api.path))
            call = await one_more.call("FetchX509Bundles")
            assert (await call.status())[0] == RESOURCE_EXHAUSTED


async def test_a_flood_of_frames_is_read_slowly_and_another_workload_does_not_wait(
    tmp_path: Path, authority: Authority
) -> None:
    answered = 0
    async with served(tmp_path, authority, mine_is_web) as api, raw(api.path) as flood, trio.open_nursery() as nursery:
        api.identities.issue(OTHER)
        begin = trio.current_time()
        made = Client(flood)
        await made.flush()
        pings = b"".join(PingFrame(0, opaque_data=bytes(8)).serialize() for _ in range(1000))

        async def send() -> None:
            while True:
                await flood.send_all(pings)

        async def take() -> None:
            nonlocal answered
            while data := await flood.receive_some(65536):
                answered += len(data) // 17  # bytes of a PING

        nursery.start_soon(send)
        nursery.start_soon(take)
        said = await trio.to_thread.run_sync(_asked_by_another_process, api.path)
        assert said == str(OTHER)
        await until(lambda: answered > BURST / 2)
        most = BURST + RATE * (trio.current_time() - begin)
        assert answered <= most + 500  # and what one read may bring
        nursery.cancel_scope.cancel()


async def test_who_does_not_read_holds_one_message_and_is_cut(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.workload_api.conversation._TAKE_S", 0.2)
    async with served(tmp_path, authority, lambda _: pod()) as api:
        api.identities.issue()
        async with client(api.path) as program:
            program.makes_room = False
            program.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
            await program.flush()
            call = await program.call("FetchX509SVID")
            with trio.fail_after(30):
                await program.closed.wait()
            assert len(call.buffer) <= 100
        await until(lambda: connections(api) == 0)


async def test_who_connects_and_says_nothing_is_let_go(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.workload_api.conversation._IDLE_S", 0.1)
    async with served(tmp_path, authority, lambda _: pod()) as api:
        api.identities.issue()
        async with raw(api.path) as silent:
            assert await is_closed(silent)
        monkeypatch.setattr("node_agent.workload_api.conversation._IDLE_S", 1.0)  # to call takes longer than to connect
        async with client(api.path) as program:
            stream = await program.call("FetchX509SVID")
            await stream.message()
            await trio.sleep(1.5)
            api.identities.issue()
            await stream.message()  # whoever has a stream is not idle


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(300), bytes(5000), b"\xff" * 99]
)
async def test_garbage_ends_its_connection_only(tmp_path: Path, authority: Authority, garbage: bytes) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api:
        api.identities.issue()
        async with client(api.path) as program, raw(api.path) as liar:
            await liar.send_all(garbage)
            assert await is_closed(liar)
            assert await gets_its_svid(program)


async def test_a_call_ends_when_the_callers_time_is_over(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.issue()
        call = await program.call("FetchX509SVID", headers={"grpc-timeout": "2S"})
        await call.message()
        assert (await call.status())[0] == DEADLINE_EXCEEDED


async def test_a_cancelled_call_gives_its_place_back(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.issue()
        for _ in range(MAX_CALLS_A_WORKLOAD + 5):
            call = await program.call("FetchX509Bundles")
            await call.message()
            number = max(program.calls)
            program.h2.reset_stream(number)
            await program.flush()


async def test_the_connection_ends_with_the_process_that_made_it_whoever_else_holds_it(
    tmp_path: Path, authority: Authority
) -> None:
    """A socket can be handed on; the identity can not."""
    async with served(tmp_path, authority, lambda _: pod()) as api:
        api.identities.issue()
        holder = await trio.lowlevel.open_process(
            [sys.executable, "-c", HOLD, os.fspath(api.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert (await holder.stdout.receive_some()).startswith(b"connected")
        await until(lambda: connections(api) == 1)
        holder.kill()
        await holder.wait()
        await until(lambda: connections(api) == 0)


async def test_the_process_that_is_named_is_the_one_that_connected(tmp_path: Path, authority: Authority) -> None:
    seen: list[tuple[int, int, bool, int | None]] = []

    def look(process: PeerProcess) -> Workload | None:
        seen.append((process.pid, process.uid, process.is_alive(), process.network_namespace()))
        return None

    async with served(tmp_path, authority, look) as api, client(api.path) as program:
        await (await program.call("FetchX509SVID")).status()
    here = os.stat("/proc/self/ns/net").st_ino
    assert set(seen) == {(os.getpid(), os.getuid(), True, here)}


async def test_a_process_that_has_ended_is_in_no_namespace(tmp_path: Path, authority: Authority) -> None:
    """Its pid may be somebody else's next: what is read under it is not believed."""
    processes: list[PeerProcess] = []

    def look(process: PeerProcess) -> Workload | None:
        processes.append(process)
        return None

    async with served(tmp_path, authority, look) as api:
        holder = await trio.lowlevel.open_process(
            [sys.executable, "-c", HOLD, os.fspath(api.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await until(lambda: len(processes) == 1)
        kept = PeerProcess(pid=os.getpid(), uid=0, gid=0, pidfd=os.dup(processes[0].pidfd))
        holder.kill()
        await holder.wait()
        assert not kept.is_alive()
        assert kept.network_namespace() is None  # although /proc has an entry for that pid: ours
        kept.close()


async def test_the_socket_is_for_everybody_and_a_second_agent_is_told(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api:
        assert api.path.stat().st_mode & 0o777 == 0o666
        assert api.path.parent.stat().st_mode & 0o777 == 0o755
        with pytest.raises(AgentError, match="another agent answers") as refusal:
            async with served(tmp_path, authority, lambda _: pod()):
                pass
        assert "[workload_api] socket" in str(refusal.value)
    assert not api.path.exists()
