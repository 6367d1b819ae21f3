"""The authority as a process: its commands, its signals, and what kill -9 leaves behind."""

import json
import signal
import socket
from pathlib import Path

import pytest
import trio

from ca.client import load_chain
from ca.errors import CaError
from ca.messages import Issued, parse_reply
from ca.wire import FrameDecoder, encode_frame
from tests.authority_builder import (
    PASSPHRASE,
    Authority,
    attested,
    connected,
    make_authority,
    sign,
    sign_request,
    tcp,
    workload,
)
from tests.authority_process import ringfence, running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


async def test_sigterm_answers_what_has_arrived_closes_what_idles_and_exits_0(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    # Both fit one TLS record, so the second has arrived when the first is answered.
    frames = [encode_frame(sign_request("web", count=count).to_wire()) for count in (1, 30)]
    assert sum(map(len, frames)) < 16 * 1024
    async with (
        running(authority) as (server, port),
        tcp(port),
        connected(authority, port, authority.node_credentials("node-1")) as stream,
    ):
        await stream.send_all(b"".join(frames))
        await server.logged("issued", node="node-1")
        server.process.send_signal(signal.SIGTERM)

        decoder, replies = FrameDecoder(), []
        while data := await stream.receive_some(65536):
            replies += [parse_reply(fields) for fields in decoder.feed(bytes(data))]
        assert [len(reply.certificates) for reply in replies if isinstance(reply, Issued)] == [1, 30]
        await server.logged("stopped")
        assert await server.process.wait() == 0


async def test_kill_9_while_issuing_loses_no_record_of_a_certificate_that_left(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    received: set[int] = set()
    async with running(authority) as (server, port):
        client = authority.client(port)
        own = await attested(authority, client, "node-1")
        received.add(own.chain[0].serial_number)

        async def ask_for_ever() -> None:
            while True:
                try:
                    reply = await sign(client, own, *[workload("web")] * 5)
                except CaError:
                    return
                received.update(load_chain(each.chain_der)[0].serial_number for each in reply.certificates)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask_for_ever)
            while len(received) < 100:
                await trio.sleep(0.005)
            server.process.kill()

    journalled = {each.serial for each in authority.journal()}
    assert received <= journalled

    async with running(authority) as (server, port):
        await sign(authority.client(port), own, workload("web"))


async def test_token_and_status_work_while_the_server_runs(authority: Authority) -> None:
    config = authority.config_file
    async with running(authority) as (_server, port):
        made = await trio.to_thread.run_sync(ringfence, "ca", "token", "--config", config, "--node", "node-1")
        assert made.returncode == 0, made.stderr
        token = made.stdout.removesuffix("\n")
        assert token not in "\n".join(path.read_bytes().hex() for path in authority.config.state_dir.glob("*.db*"))

        pending = json.loads(
            (await trio.to_thread.run_sync(ringfence, "ca", "status", "--config", config, "--json")).stdout
        )
        assert [each["node"] for each in pending["tokens_pending"]] == ["node-1"]

        await attested(authority, authority.client(port), "node-2")
        after = json.loads(
            (await trio.to_thread.run_sync(ringfence, "ca", "status", "--config", config, "--json")).stdout
        )
    assert [each["node"] for each in after["nodes"]] == ["node-2"]
    assert after["certificates_issued"] == 2
    assert [each["kind"] for each in after["authorities"]] == ["root", "intermediate"]
    shown = ringfence("ca", "status", "--config", config)
    assert "node-2" in shown.stdout
    assert "intermediate" in shown.stdout


async def test_a_peer_can_not_forge_a_line_of_the_log(authority: Authority) -> None:
    async with running(authority) as (server, port):
        forged = 'x"}\n{"event": "forged"}'
        with pytest.raises(CaError):
            await authority.client(port).attest("token", forged, b"csr")
        line = await server.logged("refused")
    assert line["code"] == "bad_request"
    assert all(each["event"] != "forged" for each in server.log)


def test_init_makes_an_authority_once(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_bytes(PASSPHRASE)
    config = tmp_path / "ca.toml"
    config.write_text(f'[ca]\nstate_dir = "{tmp_path}/state"\n')

    first = ringfence("ca", "init", "--config", config, "--passphrase-file", passphrase)
    assert first.returncode == 0, first.stderr
    assert str(tmp_path / "state" / "bundle.pem") in first.stdout

    second = ringfence("ca", "init", "--config", config, "--passphrase-file", passphrase)
    assert second.returncode == 1
    assert "never overwritten" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["init"], "passphrase_file"),
        (["serve"], "passphrase_file"),
        (["token", "--node", "n"], "ringfence ca init"),
        (["status"], "ringfence ca init"),
    ],
)
def test_a_command_that_can_not_be_obeyed_says_why_in_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    config = tmp_path / "ca.toml"
    config.write_text(f'[ca]\nstate_dir = "{tmp_path}/state"\n')
    done = ringfence("ca", *arguments, "--config", config)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        authority = make_authority(tmp_path, port=taken.getsockname()[1])
        done = ringfence("ca", "serve", "--config", authority.config_file)
    assert done.returncode == 1
    assert f"port {authority.config.port}" in done.stderr
