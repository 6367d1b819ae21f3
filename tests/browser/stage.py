"""The dashboard in this process, a browser before it, and behind it whatever mesh a test makes up."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from playwright.sync_api import Page

from node_agent.dashboard.server import serve
from node_agent.dashboard.source import Source, asking
from tests.chromium import DEADLINE_S, Chromium
from tests.dashboard_mesh import FakeAgent, FakeMesh

T = TypeVar("T")

MEASURED: Final = 4  # pictures until there are rates, and they have been drawn


def shop() -> FakeMesh:
    """A mesh with one of everything: mutual TLS, plaintext, denials, failures, somebody idle."""
    mesh = FakeMesh()
    for name in ("shop/frontend", "shop/cart", "shop/checkout", "shop/payments", "data/redis", "data/orders-db"):
        mesh.service(name)
    mesh.service("shop/catalog", ready=False)
    mesh.client("batch/legacy", enrolled=False)
    mesh.client("batch/intruder")
    mesh.talks("shop/frontend", "shop/cart", opened=6.0)
    mesh.talks("shop/frontend", "shop/checkout", opened=3.0)
    mesh.talks("shop/cart", "data/redis", opened=8.0)
    mesh.talks("shop/checkout", "shop/payments", opened=3.0)
    mesh.talks("shop/checkout", "data/orders-db", opened=3.0, failed=1.0)
    mesh.talks("batch/legacy", "data/orders-db", opened=1.0, security="none", node="node-2")
    mesh.talks("batch/intruder", "shop/payments", opened=2.0, denied=2.0)
    mesh.record("shop/checkout", "shop/payments")
    mesh.record(
        "batch/intruder",
        "shop/payments",
        close_reason="policy_denied",
        flag="DENY",
        detail="no ALLOW policy of shop/payments matches: shop/callers",
    )
    return mesh


class Stage:
    """Serves; ``show`` lets a test look."""

    def __init__(self, chromium: Chromium, directory: Path) -> None:
        self._chromium = chromium
        self._directory = directory
        self._numbers = itertools.count()
        self._agents: list[FakeAgent] = []
        self._stops: list[Callable[[], None]] = []

    def serve(self, mesh: FakeMesh, *, token: str | None = None) -> tuple[str, FakeAgent]:
        """The address of a dashboard of ``mesh``, and the agent behind it."""
        agent = FakeAgent(mesh, self._directory / f"agent-{next(self._numbers)}.sock")
        agent.__enter__()
        self._agents.append(agent)
        ready = threading.Event()
        ports: list[int] = []
        stop: list[Callable[[], None]] = []

        async def run() -> None:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            ports.append(listeners[0].socket.getsockname()[1])
            with trio.CancelScope() as scope:
                at = trio.lowlevel.current_trio_token()
                stop.append(lambda: at.run_sync_soon(scope.cancel))
                source = Source(asking(agent.socket))
                await serve(source=source, listeners=listeners, token=token, names=(), started=ready.set)

        thread = threading.Thread(target=trio.run, args=(run,))
        thread.start()
        assert ready.wait(DEADLINE_S)

        def end() -> None:
            stop[0]()
            thread.join()

        self._stops.append(end)
        return f"http://127.0.0.1:{ports[0]}/", agent

    def show(self, mesh: FakeMesh, look: Callable[[Page], T], **options: Any) -> T:
        """Let ``look`` do with the page of ``mesh`` what it likes, once rates are shown."""

        def begin(page: Page) -> T:
            drawn(page, MEASURED)
            return look(page)

        return self._chromium.show(self.serve(mesh)[0], begin, **options)

    def open(self, url: str, look: Callable[[Page], T], **options: Any) -> T:
        """The same, for an address of ``serve``, from the first moment on."""
        return self._chromium.show(url, look, **options)

    def stop_serving(self) -> None:
        """End every dashboard."""
        while self._stops:
            self._stops.pop()()

    def close(self) -> None:
        self.stop_serving()
        for agent in self._agents:
            agent.__exit__()


def drawn(page: Page, more: int = 1) -> None:
    """Wait until the page was drawn ``more`` times."""
    before = int(page.locator("body").get_attribute("data-drawn") or 0)
    wanted = before + more
    for _ in range(int(DEADLINE_S * 20)):
        if int(page.locator("body").get_attribute("data-drawn") or 0) >= wanted:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"the page was not drawn {more} times within {DEADLINE_S:g} s")


def node(page: Page, name: str) -> Any:
    """The card of a node, by its id."""
    return page.locator(f'.node[data-id="{name}"]')
