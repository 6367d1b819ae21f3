"""`ringfence dashboard` before a real mesh: two agents, real traffic, policies that deny, an agent that is killed.

With RINGFENCE_SCREENSHOTS=1 in the environment the pictures of the documentation are taken anew.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from playwright.sync_api import Page, expect

from tests.browser.stage import drawn, node
from tests.chromium import IMAGES, SCREENSHOTS, Chromium
from tests.mesh_builder import LAB_NAME, ROOT, Mesh, wait_for

pytestmark = pytest.mark.mesh

# Serves on 8080 as many bytes as it is asked for, and asks others: IP:CONNECTIONS-A-SECOND:BYTES...
_PROGRAM: Final = """\
import socket, sys, threading, time

def answer(connection):
    with connection:
        try:
            connection.sendall(b"x" * int(connection.recv(64) or b"0"))
        except OSError:
            pass

def serve():
    listener = socket.create_server(("", 8080))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()

def ask(ip, rate, size):
    while True:
        try:
            with socket.create_connection((ip, 80), 3) as connection:
                connection.sendall(size.encode())
                while connection.recv(65536):
                    pass
        except OSError:
            pass
        time.sleep(1 / float(rate))

for each in sys.argv[1:]:
    threading.Thread(target=ask, args=each.split(":"), daemon=True).start()
serve()
"""
_POLICIES: Final = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payments-callers, namespace: shop}
spec:
  selector: {matchLabels: {app: payments}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/checkout]}}]}]
"""
_SERVICE: Final = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ipFamilies: [IPv4], ports: [{{port: 80, targetPort: 8080}}]}}
"""
_INTRUSION: Final = "workload/batch/intruder>service/shop/payments"


def build_shop(mesh: Mesh) -> None:
    """Pods of three namespaces on two nodes that talk to each other until they are deleted."""
    places = {"frontend": (1, "shop"), "cart": (1, "shop"), "checkout": (2, "shop"), "payments": (2, "shop")}
    places |= {"catalog": (2, "shop"), "redis": (2, "data"), "orders-db": (1, "data")}
    services = [_SERVICE.format(name=name, namespace=namespace) for name, (_, namespace) in places.items()]
    mesh.apply("---\n".join([_POLICIES, *services]))
    ips = {row["name"]: row["cluster_ips"][0] for row in mesh.ringfence(1, "services")}
    pods = {
        name: mesh.pod(name, node=number, namespace=namespace, service_account=name, labels={"app": name})
        for name, (number, namespace) in places.items()
    }
    pods["legacy"] = mesh.pod("legacy", node=1, namespace="batch", mesh=False)
    pods["intruder"] = mesh.pod("intruder", node=2, namespace="batch", service_account="intruder")
    asks: dict[str, list[tuple[str, float, int]]] = {
        "frontend": [("cart", 6, 2500), ("checkout", 3, 800), ("catalog", 9, 22_000)],
        "cart": [("redis", 8, 900)],
        "checkout": [("payments", 3, 600), ("orders-db", 3, 1500)],
        "catalog": [("orders-db", 2, 4000)],
        "legacy": [("orders-db", 1, 700), ("frontend", 1, 100)],
        "intruder": [("payments", 1.5, 10)],
    }
    for name, pod in pods.items():
        wishes = [f"{ips[service]}:{rate}:{size}" for service, rate, size in asks.get(name, [])]
        pod.spawn(sys.executable, "-c", _PROGRAM, *wishes)


@contextmanager
def dashboard() -> Iterator[str]:
    """The command, asked of agent 1; yields the address that it says."""
    command = [str(ROOT / "scripts/lab"), "ringfence", "1", "dashboard", "--address", "127.0.0.1:15089"]
    environment = {**os.environ, "RINGFENCE_LAB": LAB_NAME}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        guard = threading.Timer(120, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0]
        finally:
            guard.cancel()
            process.terminate()


def states(page: Page) -> dict[str, str]:
    """What is drawn of each edge, by its id."""
    labels: dict[str, str] = page.locator(".edge").evaluate_all(
        "all => Object.fromEntries(all.map((each) => [each.dataset.id, each.dataset.state]))"
    )
    return labels


def total(page: Page) -> int:
    """How many connections the panel of an edge has counted."""
    return int(page.locator("#detail dt:text-is('connections') + dd").inner_text())


def take(page: Page, name: str) -> None:
    """A picture for the documentation, of a mesh that has been looked at for a while."""
    if SCREENSHOTS:
        IMAGES.mkdir(exist_ok=True)
        page.screenshot(path=IMAGES / f"{name}.png")


def test_one_page_shows_the_real_mesh_of_two_nodes(mesh: Mesh) -> None:
    build_shop(mesh)

    def look(page: Page) -> None:
        expect(page.locator("#live-text")).to_have_text("live")
        expected = {
            "service/shop/frontend>service/shop/cart": "mtls",
            "service/shop/frontend>service/shop/catalog": "mtls",
            "service/shop/cart>service/data/redis": "mtls",
            "service/shop/checkout>service/shop/payments": "mtls",
            "service/shop/checkout>service/data/orders-db": "mtls",
            "workload/batch/legacy>service/data/orders-db": "plain",
            "workload/batch/legacy>service/shop/frontend": "denied",
            _INTRUSION: "denied",
        }
        wait_for_page(page, "every edge with its state", lambda: expected.items() <= states(page).items())
        expect(page.locator(".agent[data-health=ok]")).to_have_count(2)
        assert node(page, "workload/batch/legacy").get_attribute("data-mesh") == "none"
        if SCREENSHOTS:
            page.wait_for_timeout(20_000)  # for a history
        take(page, "dashboard-light")

        # It moves: connections that are made while somebody looks are counted.
        node(page, "service/shop/payments").click()
        panel = page.locator("#detail")
        panel.get_by_role("button", name="shop/checkout").click()
        expect(panel).to_contain_text("spiffe://cluster.local/ns/shop/sa/checkout")
        expect(panel).to_contain_text("at node-2")  # where both of them are: told by that agent, over mutual TLS
        before = total(page)
        wait_for_page(page, "more connections", lambda: total(page) > before)

        node(page, "service/shop/payments").click()
        panel.get_by_role("button", name="batch/intruder").click()
        expect(panel.locator("h2")).to_have_text("batch/intruder \u2192 shop/payments")
        expect(panel).to_contain_text("policy_denied")
        expect(panel.locator("h3").first).to_have_text("Denied last")
        expect(panel).to_contain_text("shop/payments-callers")
        expect(panel).to_contain_text("spiffe://cluster.local/ns/batch/sa/intruder")
        page.emulate_media(color_scheme="dark")
        take(page, "dashboard-dark")
        page.keyboard.press("Escape")
        page.keyboard.press("t")
        expect(page.locator("#table-view tbody")).to_have_count(2)
        page.keyboard.press("t")

        mesh.lab("kill", "agent-2")
        expect(page.locator("#live-text")).to_have_text("live, without 1 agent")
        expect(page.locator("#banner")).to_contain_text(
            "node-2: 10.247.0.12:15022: can not connect: Connection refused"
        )
        expect(node(page, "service/shop/payments")).to_be_visible()
        mesh.lab("start", "agent-2")
        expect(page.locator("#live-text")).to_have_text("live")

    try:
        with dashboard() as url, Chromium() as chromium:
            chromium.show(url, look, color_scheme="light")
    finally:
        wait_for("agent 2 to be there for the next test", lambda: _is_running(mesh))


def _is_running(mesh: Mesh) -> bool:
    mesh.lab("start", "agent-2", check=False)
    return any(row["node"] == "node-2" for row in [mesh.ringfence(2, "status")])


def wait_for_page(page: Page, what: str, look: Any) -> None:
    """Like ``wait_for``, but the page goes on meanwhile."""
    for _ in range(15):
        if look():
            return
        drawn(page)
    raise AssertionError(f"waited for {what}: {states(page)}")
