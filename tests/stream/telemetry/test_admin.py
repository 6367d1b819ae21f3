"""What the three listeners serve, asked through a real HTTP conversation."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from ca.http_server import HttpServer, Routes
from node_agent.cli.main import main
from node_agent.errors import AgentError, ConfigError
from node_agent.telemetry.admin import AdminSources, Row, admin_routes, readiness_routes
from node_agent.telemetry.unix_socket import UnixListener


class FakeAgent:
    def __init__(self) -> None:
        self.not_ready: list[str] = []
        self.warnings: list[str] = []
        self.level = "info"
        self.modules: dict[str, str] = {}

    def sources(self) -> AdminSources:
        return AdminSources(
            status=lambda: {"node": "n1", "ready": not self.not_ready},
            workloads=lambda: [{"name": "web", "addresses": ("10.0.0.1",)}],
            services=list,
            endpoints=self.endpoints,
            connections=lambda: ({"id": str(number)} for number in range(1000)),
            certs=lambda: [{"identity": Path("/not/json")}],
            ready=lambda: (not self.not_ready, self.not_ready),
            warnings=lambda: self.warnings,
            log_levels=lambda: {"level": self.level, "modules": self.modules},
            set_log_level=self.set_log_level,
        )

    def endpoints(self, service: str | None) -> Iterator[Row]:
        if service not in {None, "default/web"}:
            raise LookupError(f"no service {service}")
        yield {"service": service or "all"}

    def set_log_level(self, level: str | None, module: str | None) -> None:
        if level == "loud":
            raise ConfigError("log level 'loud' is unknown")
        if module is not None:
            self.modules[module] = str(level)
        else:
            self.level = level or "info"


@asynccontextmanager
async def serving(routes: Routes, path: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        with UnixListener(path) as unix:
            await nursery.start(HttpServer(routes).run, [unix.listener])
            yield
            nursery.cancel_scope.cancel()


async def ask(path: Path, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    stream = await trio.open_unix_socket(str(path))
    client = h11.Connection(h11.CLIENT)
    head = h11.Request(method=method, target=target, headers=[("Host", "a"), ("Content-Length", str(len(body)))])
    for part in (head, h11.Data(data=body), h11.EndOfMessage()):
        await stream.send_all(client.send(part) or b"")
    status, answer = 0, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
        elif isinstance(event, h11.EndOfMessage):
            await stream.aclose()
            return status, answer


async def ask_json(path: Path, target: str) -> Any:
    status, answer = await ask(path, "GET", target)
    assert status == 200
    return json.loads(answer)


async def test_the_admin_socket_answers_every_question(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    async with serving(admin_routes(FakeAgent().sources()), path):
        assert await ask_json(path, "/status") == {"node": "n1", "ready": True}
        assert await ask_json(path, "/workloads") == [{"name": "web", "addresses": ["10.0.0.1"]}]
        assert await ask_json(path, "/services") == []
        assert await ask_json(path, "/endpoints") == [{"service": "all"}]
        assert await ask_json(path, "/endpoints?service=default%2Fweb") == [{"service": "default/web"}]
        assert await ask_json(path, "/connections") == [{"id": str(number)} for number in range(1000)]
        assert await ask_json(path, "/certs") == [{"identity": "/not/json"}]

        status, answer = await ask(path, "GET", "/endpoints?service=nope")
        assert (status, json.loads(answer)) == (404, {"error": "no service nope"})


async def test_the_command_line_and_the_socket_understand_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent, path = FakeAgent(), tmp_path / "agent.sock"

    async def ringfence(*arguments: str) -> int:
        return await trio.to_thread.run_sync(main, [*arguments, "--agent", str(path)])

    async with serving(admin_routes(agent.sources()), path):
        assert await ringfence("connections", "--json") == 0
        assert json.loads(capsys.readouterr().out) == [{"id": str(number)} for number in range(1000)]
        assert await ringfence("endpoints", "default/nope") == 1
        assert capsys.readouterr().err == "ringfence: no service default/nope\n"
        assert await ringfence("log-level", "debug") == 0
    assert agent.level == "debug"


async def test_the_log_level_is_changed_only_to_a_known_one(tmp_path: Path) -> None:
    agent, path = FakeAgent(), tmp_path / "agent.sock"
    async with serving(admin_routes(agent.sources()), path):
        changed = (200, b'{"level": "debug", "modules": {}}\n')
        assert await ask(path, "PUT", "/log-level", b'{"level": "debug"}') == changed
        assert await ask(path, "GET", "/log-level") == changed
        for body in (
            b"",
            b"[]",
            b'{"level": 1}',
            b'{"level": "info", "module": 1}',
            b'{"module": "ringfence"}',
            b"\xff",
            b"[" * 60_000,
            b'{"level": "loud"}',
        ):
            status, answer = await ask(path, "PUT", "/log-level", body)
            assert status == 400
            assert "level" in json.loads(answer)["error"]
    assert agent.level == "debug"


async def test_readiness_says_why_not_and_liveness_does_not_care(tmp_path: Path) -> None:
    agent, path = FakeAgent(), tmp_path / "agent.sock"
    async with serving(readiness_routes(agent.sources()), path):
        assert await ask(path, "GET", "/readyz") == (200, b'{"ready": true, "reasons": [], "warnings": []}\n')
        agent.warnings = ["a certificate ends in 27 min"]
        assert await ask(path, "GET", "/readyz") == (
            200,
            b'{"ready": true, "reasons": [], "warnings": ["a certificate ends in 27 min"]}\n',
        )
        agent.warnings = []
        agent.not_ready = ["CA is not reachable"]
        assert await ask(path, "GET", "/readyz") == (
            503,
            b'{"ready": false, "reasons": ["CA is not reachable"], "warnings": []}\n',
        )
        assert await ask(path, "GET", "/livez") == (200, b"ok\n")


async def test_the_socket_file_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    with UnixListener(path):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o755
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_respected(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with UnixListener(path) as dead:
        path.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(path)
    assert dead.listener.socket.fileno() == -1

    with UnixListener(path), pytest.raises(AgentError, match="another agent answers"):
        UnixListener(path)


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(AgentError, match="is not a socket"):
        UnixListener(path)
    assert path.read_text() == "precious"


async def test_an_impossible_path_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="can not listen on"):
        UnixListener(tmp_path / ("x" * 200) / "agent.sock")


async def test_the_end_of_one_agent_leaves_the_socket_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    first = UnixListener(path)
    path.unlink()
    with UnixListener(path):
        first.close()
        assert path.exists()
