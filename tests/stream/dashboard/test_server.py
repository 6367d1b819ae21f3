"""The dashboard's server and command, with an agent that tells of a mesh that does not exist."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from ca.http_client import Answer, exchange
from ca.http_server import HttpServer
from node_agent.dashboard.gate import Gate
from node_agent.dashboard.server import HEADERS, routes
from node_agent.dashboard.source import AgentSilent, Source, asking
from tests.certificates import make_root, pem
from tests.dashboard_mesh import FakeAgent, FakeMesh

STATIC = Path(__file__).parents[3] / "node_agent" / "dashboard" / "static"
TOKEN = "a token of sixteen or more"


def mesh() -> FakeMesh:
    made = FakeMesh()
    made.service("shop/web")
    made.client("shop/cart")
    made.talks("shop/cart", "shop/web", opened=3.0)
    return made


async def ask(source: Source, *targets: str, token: str | None = None) -> list[Answer]:
    """The answers to GET of each target, from a server on a memory of its own."""
    gate = Gate(token=token, names=(), secure=False, now=trio.current_time, draw=lambda: "s")
    server = HttpServer(routes(source, gate, with_login=token is not None), guard=gate.judge, headers=HEADERS)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    answers = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, listeners)
        for target in targets:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                headers = [("Host", f"127.0.0.1:{port}"), ("Connection", "close")]
                request = h11.Request(method="GET", target=target, headers=headers)
                answers.append(await exchange(stream, request, max_body_bytes=1 << 22))
        nursery.cancel_scope.cancel()
    return answers


async def test_the_page_may_load_nothing_from_anywhere_else() -> None:
    names = sorted(each.name for each in STATIC.iterdir())
    answers = await ask(Source(_never), "/", *(f"/static/{name}" for name in names), "/nowhere")

    assert [each.status for each in answers] == [200] * (len(names) + 1) + [404]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in STATIC.iterdir():
        text = path.read_text()
        addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text))
        assert addresses <= {"http://www.w3.org"}, path.name


def test_nothing_in_the_page_makes_markup_of_data() -> None:
    for path in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", path.read_text()
        )
    for path in STATIC.glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=|\sstyle=|javascript:", text), path.name


async def test_questions_are_answered_and_what_is_not_there_is_not_found() -> None:
    async def tell() -> object:
        return mesh().document()

    source = Source(tell)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        while source.picture is None:
            await trio.lowlevel.checkpoint()
        answers = await ask(
            source,
            "/api/mesh",
            "/api/node?id=service/shop/web",
            "/api/node?id=service/shop/none",
            "/api/edge?id=workload/shop/cart%3Eservice/shop/web",
            "/api/edge",
        )
        nursery.cancel_scope.cancel()

    assert [each.status for each in answers] == [200, 200, 404, 200, 404]
    overview = json.loads(answers[0].body)
    assert overview["error"] is None
    assert [each["id"] for each in overview["mesh"]["edges"]] == ["workload/shop/cart>service/shop/web"]


async def test_nothing_can_be_changed() -> None:
    served = routes(
        Source(_never), Gate(token="x" * 16, names=(), secure=False, now=lambda: 0.0, draw=str), with_login=True
    )

    assert {path for path, methods in served.items() if set(methods) != {"GET"}} == {"/login"}


async def _never() -> object:
    raise AgentSilent("nobody was asked")


async def test_an_agent_that_falls_silent_leaves_the_last_picture_with_the_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    answers: list[object] = [mesh().document(), AgentSilent("it is gone"), "nonsense"]

    async def tell() -> object:
        found = answers.pop(0) if answers else mesh().document()
        if isinstance(found, Exception):
            raise found
        return found

    source = Source(tell, now=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await trio.sleep(1)
        assert source.error is None
        picture = source.picture
        assert picture is not None
        await trio.sleep(2)
        said: tuple[object, ...] = (source.error, source.picture, source.age_s)
        assert said == ("it is gone", picture, 3.0)
        await trio.sleep(2)
        assert "check --agent" in str(source.error)
        await trio.sleep(2)
        assert source.error is None
        nursery.cancel_scope.cancel()


async def test_nobody_is_asked_while_nobody_looks(autojump_clock: trio.testing.MockClock) -> None:
    asked = []

    async def tell() -> object:
        asked.append(trio.current_time())
        return mesh().document()

    source = Source(tell, now=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await trio.sleep(100)
        assert 10 < len(asked) < 20
        before = len(asked)
        source.looked_at()
        await trio.sleep(1)
        assert len(asked) == before + 1
        nursery.cancel_scope.cancel()


async def test_a_slow_mesh_is_asked_less_often(autojump_clock: trio.testing.MockClock) -> None:
    async def tell() -> object:
        await trio.sleep(5)
        return mesh().document()

    source = Source(tell, now=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await trio.sleep(6)
        assert source.interval_s == 15.0
        nursery.cancel_scope.cancel()


async def test_an_agent_that_can_not_be_asked_says_how_to_reach_it(tmp_path: Path) -> None:
    with pytest.raises(AgentSilent, match="is the agent running"):
        await asking(tmp_path / "none.sock")()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "dead.sock"))
    with pytest.raises(AgentSilent, match="can not be asked: Connection refused"):
        await asking(tmp_path / "dead.sock")()

    agent = FakeAgent(mesh(), tmp_path / "agent.sock")
    with agent:
        found: Any = await asking(agent.socket)()
        assert found["node"] == "node-1"


@contextmanager
def dashboard(*arguments: str, socket_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`ringfence dashboard` as a process, and the line that it says when it serves."""
    command = [sys.executable, "-m", "node_agent.cli.main", "dashboard", "--agent", str(socket_path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(30, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            guard.cancel()
            process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def test_the_command_says_where_it_serves_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    port = _free_port()
    with dashboard("--address", f"127.0.0.1:{port}", socket_path=tmp_path / "a.sock") as (process, line):
        assert line == f"http://127.0.0.1:{port}/  (Ctrl-C ends it)"
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /api/mesh HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b'"mesh": null' in answer
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--address", "0.0.0.0:15080"], "would see the whole mesh; add --token-file FILE, or listen on 127.0.0.1"),
        (["--address", ":15080"], "--address (every address): "),
        (["--address", "[::]:15080"], "add --token-file"),
        (["--address", "nowhere"], '--address nowhere: expected "host:port"'),
        (["--token-file", "{tmp}/none"], "No such file or directory"),
        (["--token-file", "{tmp}/open"], "others may read it; chmod 600"),
        (["--token-file", "{tmp}/short"], "at least 16 printable characters"),
        (["--token-file", "{tmp}/binary"], "something else than ASCII"),
        (["--tls-cert", "{tmp}/short"], "--tls-cert and --tls-key go together"),
        (["--tls-cert", "{tmp}/short", "--tls-key", "{tmp}/short"], "PEM, leaf first"),
    ],
)
def test_what_can_not_be_used_is_refused_before_anything_listens(
    arguments: list[str], error: str, tmp_path: Path
) -> None:
    for name, content in (("open", TOKEN.encode()), ("short", b"short\n"), ("binary", b"\xff" * 20)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o644 if name == "open" else 0o600)
    arguments = [each.format(tmp=tmp_path) for each in arguments]

    done = subprocess.run(
        [sys.executable, "-m", "node_agent.cli.main", "dashboard", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("ringfence: ")
    assert done.stderr.count("\n") == 1
    assert error in done.stderr


def test_elsewhere_than_on_loopback_it_wants_the_token_and_speaks_tls(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "token").chmod(0o600)
    leaf = make_root().leaf("spiffe://cluster.local/ns/a/sa/b")
    (tmp_path / "cert.pem").write_bytes(pem(leaf.certificate))
    from ca.csr import key_to_pem

    (tmp_path / "key.pem").write_bytes(key_to_pem(leaf.own.key))
    port = _free_port()
    arguments = ["--address", f"0.0.0.0:{port}", "--token-file", str(tmp_path / "token")]
    tls = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    with dashboard(*arguments, *tls, socket_path=tmp_path / "a.sock") as (_, line):
        assert line.startswith(f"https://0.0.0.0:{port}/")
        answers = [
            subprocess.run(
                ["curl", "-sk", "-o", os.devnull, "-w", "%{http_code}", *more, f"https://127.0.0.1:{port}/api/mesh"],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            ).stdout
            for more in ([], ["-H", f"Authorization: Bearer {TOKEN}"], ["-H", "Authorization: Bearer wrong"])
        ]
    assert answers == ["401", "200", "401"]
