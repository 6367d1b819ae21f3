"""AuthorizationPolicy with real traffic: who gets through, who is cut, what the records say, and what explain says."""

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.mesh_builder import Mesh, Pod, in_namespace, wait_for

pytestmark = pytest.mark.mesh

_PORT: Final = 8080
_OTHER_PORT: Final = 8090
_ROOT_NAMESPACE: Final = "istio-system"


@dataclass(frozen=True)
class Cast:
    """Two clients of the mesh, one of another namespace, one out of the mesh, and whom they want to talk to."""

    cart: Pod
    thief: Pod
    guest: Pod
    old: Pod
    web: Pod
    service: str


@pytest.fixture(scope="module")
def company(session_mesh: Mesh) -> Iterator[Cast]:
    web = session_mesh.pod("web", node=2, service_account="web", labels={"app": "web"})
    for port in (_PORT, _OTHER_PORT):
        web.serve_echo(port)
    try:
        yield Cast(
            cart=session_mesh.pod("cart", node=1, service_account="cart"),
            thief=session_mesh.pod("thief", node=1, service_account="thief"),
            guest=session_mesh.pod("guest", node=1, namespace="guests", service_account="guest"),
            old=session_mesh.pod("old", node=1, mesh=False),
            web=web,
            service=session_mesh.service("web", app="web", port=80, target_port=_PORT)[0],
        )
    finally:
        session_mesh.reset()


@pytest.fixture
def cast(company: Cast, session_mesh: Mesh) -> Cast:
    session_mesh.begin_test()
    return company


@pytest.fixture
def lab(session_mesh: Mesh) -> Mesh:
    """Without the reset after each test that ``mesh`` has: the company stays."""
    return session_mesh


def _policy(spec: str, *, name: str = "policy", namespace: str = "default", annotations: str = "{}") -> str:
    return (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        f"metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}\nspec: {spec}\n"
    )


_OF_WEB: Final = "selector: {matchLabels: {app: web}}"


def _allow(rule: str) -> str:
    return _policy(f"{{{_OF_WEB}, rules: [{rule}]}}")


def _deny(rule: str, **of_it: str) -> str:
    return _policy(f"{{{_OF_WEB}, action: DENY, rules: [{rule}]}}", **of_it)


def _echoes(client: Pod, ip: str, port: int = _PORT) -> bool:
    """Whether a connection of the client carries bytes both ways."""
    try:
        with client.connect(ip, port) as connection:
            connection.sendall(b"hello")
            return connection.recv(5, socket.MSG_WAITALL) == b"hello"
    except OSError:
        return False


def _who_gets_through(cast: Cast, port: int = _PORT) -> str:
    """The names of the clients that do, by both IP versions alike."""
    found = []
    for name in ("cart", "thief", "guest", "old"):
        client = getattr(cast, name)
        by_version = {_echoes(client, ip, port) for ip in (cast.web.ipv4, cast.web.ipv6)}
        assert len(by_version) == 1, f"{name} gets through by one IP version only"
        found += [name] * by_version.pop()
    return " ".join(found)


_CART: Final = "{from: [{source: {principals: [cluster.local/ns/default/sa/cart]}}]}"
_THE_MESH: Final = "{from: [{source: {namespaces: ['*']}}]}"


@pytest.mark.parametrize(
    ("manifest", "on_port", "on_other_port"),
    [
        (_allow(_CART), "cart", "cart"),
        (_policy("{}", name="nothing"), "", ""),
        (_deny(_CART), "thief guest old", "thief guest old"),
        (_policy("{rules: [{from: [{source: {namespaces: [guests]}}]}]}"), "guest", "guest"),
        (_policy("{rules: [{from: [{source: {notNamespaces: [guests]}}]}]}"), "cart thief old", "cart thief old"),
        (
            _policy("{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}", namespace=_ROOT_NAMESPACE),
            "cart thief guest",
            "cart thief guest",
        ),
        (_allow("{to: [{operation: {ports: ['8090']}}]}"), "", "cart thief guest old"),
        (_allow("{from: [{source: {serviceAccounts: [default/thief]}}]}"), "thief", "thief"),
        (_allow("{when: [{key: source.namespace, values: [default]}]}"), "cart thief", "cart thief"),
        (_allow("{to: [{operation: {methods: [GET]}}]}"), "", ""),
        (_allow(_CART) + "---\n" + _deny("{to: [{operation: {ports: ['8090']}}]}", name="not-8090"), "cart", ""),
    ],
)
def test_those_get_through_that_the_policies_allow_and_no_others(
    lab: Mesh, cast: Cast, manifest: str, on_port: str, on_other_port: str
) -> None:
    with lab.applied(manifest):
        assert _who_gets_through(cast) == on_port
        assert _who_gets_through(cast, _OTHER_PORT) == on_other_port


def test_addresses_are_judged_by_what_the_destination_sees(lab: Mesh, cast: Cast) -> None:
    addresses = f"{cast.old.ipv4}/32, {cast.old.ipv6}, {cast.cart.ipv4}, {cast.cart.ipv6}"
    with lab.applied(_allow(f"{{from: [{{source: {{ipBlocks: [{addresses}]}}}}]}}")):
        assert _who_gets_through(cast) == "cart old"
    with lab.applied(_allow("{from: [{source: {notIpBlocks: [10.247.0.0/16, 'fd52:4647::/32']}}]}")):
        assert _who_gets_through(cast) == ""


def test_both_records_and_the_command_say_who_denied_and_what_would_help(lab: Mesh, cast: Cast) -> None:
    callers = _policy(f"{{{_OF_WEB}, rules: [{_CART}]}}", name="callers")
    with lab.applied(callers + "---\n" + _deny("{to: [{operation: {ports: ['8090']}}]}", name="no-8090")):
        assert not _echoes(cast.thief, cast.service, 80)
        denied = lab.record(1, direction="outbound", source_workload="default/thief")
        for record in (denied, lab.record(2, direction="inbound", source_workload="default/thief")):
            assert (record["close_reason"], record["response_flags"]) == ("policy_denied", "DENY")
            assert record["policy"] is None, "no policy denied it: none allowed it"
            assert "default/callers" in record["detail"]
            assert record["source_identity"] == cast.thief.identity
        assert not _echoes(cast.cart, cast.web.ipv6, _OTHER_PORT)
        for node, direction in ((1, "outbound"), (2, "inbound")):
            record = lab.record(node, direction=direction, source_workload="default/cart")
            assert (record["close_reason"], record["policy"]) == ("policy_denied", "default/no-8090")

        for node, binding in ((1, False), (2, True)):
            answer = lab.ringfence(node, "explain", "thief", "web:80")
            assert (answer["verdict"], answer["binding"], answer["decided_on"]) == ("denied", binding, ["node-2"])
            (remedy,) = {line for each in answer["decisions"] for line in each["remedies"]}
            assert remedy == (
                "rule 0 of ALLOW policy default/callers: "
                "add principal cluster.local/ns/default/sa/thief to principals in from[0]"
            )
            assert lab.ringfence(node, "explain", "cart", "web:80")["verdict"] == "allowed"
            files = {each["policy"]: each["file"] for each in answer["decisions"][0]["policies"]}
            assert files["default/callers"] == "authorizationpolicy.default.callers.yaml"
        past = lab.ringfence(1, "explain", denied["id"])
        assert (past["record"]["close_reason"], past["now"]["allowed"]) == ("policy_denied", False)
        rows = {row["name"]: row for row in lab.ringfence(2, "policies")}
        assert (rows["callers"]["local_workloads"], rows["callers"]["denials"]) == (1, 0)
        assert rows["no-8090"]["denials"] == 1
        assert lab.metric(2, "ringfence_policy_denials_total", policy="default/no-8090") == 1
        assert lab.metric(1, "ringfence_policy_denials_total", policy="default/no-8090") == 0


def test_a_policy_on_trial_denies_nobody_and_tells_whom_it_would_deny(lab: Mesh, cast: Cast) -> None:
    trial = _deny(_CART, name="trial", annotations='{"istio.io/dry-run": "true"}')
    audit = _policy(f"{{{_OF_WEB}, action: AUDIT, rules: [{{}}]}}", name="audit")
    with lab.applied(trial + "---\n" + audit):
        assert _who_gets_through(cast) == "cart thief guest old"
        wait_for("all records", lambda: len(lab.records(2, direction="inbound")) == 8)
        records = lab.records(2, direction="inbound")
        assert {each["audit"] for each in records} == {"default/audit"}
        assert {(each["source_workload"], each["dry_run"]) for each in records} == {
            ("default/cart", "denied by default/trial"),
            ("default/thief", None),
            ("guests/guest", None),
            ("default/old", None),
        }
        assert lab.metric(2, "ringfence_policy_dry_run_denials_total", policy="default/trial") == 2
        assert lab.metric(2, "ringfence_policy_audits_total", policy="default/audit") == 8


# -- live connections ---------------------------------------------------------------


@dataclass
class Stream:
    """A connection to ``serve_echo`` that carries random bytes all the time, and hashes what goes and what comes."""

    connection: socket.socket
    sent: Any = field(default_factory=hashlib.sha256)
    received: Any = field(default_factory=hashlib.sha256)
    echoed_bytes: int = 0
    error: str = ""
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                chunk = os.urandom(32768)
                self.connection.sendall(chunk)
                self.sent.update(chunk)
                left = len(chunk)
                while left and (echoed := self.connection.recv(left)):
                    self.received.update(echoed)
                    left -= len(echoed)
                self.echoed_bytes += len(chunk)
        except OSError as error:
            self.error = type(error).__name__

    def has_gone_on(self) -> None:
        """Wait until more has come back than until now."""
        before = self.echoed_bytes
        wait_for("more bytes", lambda: self.echoed_bytes > before + 100_000 or self.error)


@contextmanager
def _streaming(client: Pod, ip: str) -> Iterator[Stream]:
    with client.connect(ip, _PORT) as connection:
        stream = Stream(connection)
        thread = threading.Thread(target=stream.run)
        thread.start()
        try:
            stream.has_gone_on()
            yield stream
        finally:
            stream.ending.set()
            thread.join()


def _assert_cut(stream: Stream) -> None:
    wait_for("the cut", lambda: stream.error)
    assert stream.error == "ConnectionResetError"


def test_a_change_cuts_what_it_forbids_at_once_and_the_others_lose_no_byte(lab: Mesh, cast: Cast) -> None:
    with _streaming(cast.thief, cast.web.ipv4) as spared, _streaming(cast.old, cast.web.ipv6) as plain:
        with _streaming(cast.cart, cast.web.ipv6) as by_policy, lab.applied(_deny(_CART)):
            _assert_cut(by_policy)
        for node, direction in ((1, "outbound"), (2, "inbound")):
            record = lab.record(node, direction=direction, source_workload="default/cart")
            assert (record["close_reason"], record["policy"]) == ("policy_denied", "default/policy")
            assert record["sent_bytes"] > 0
        spared.has_gone_on()

        # A policy that is about another label, until the destination gets that label.
        of_blue = _deny(_CART, name="of-blue").replace("app: web", "colour: blue")
        with lab.applied(of_blue), _streaming(cast.cart, cast.web.ipv4) as by_label:
            _label(lab, cast.web, "app: web, colour: blue")
            _assert_cut(by_label)
            _label(lab, cast.web, "app: web")

        strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict}\n"
        plain.has_gone_on()
        with lab.applied(strict + "spec: {mtls: {mode: STRICT}}\n"):
            _assert_cut(plain)
        assert lab.record(2, source_workload="default/old")["close_reason"] == "plaintext_refused"
        spared.has_gone_on()
    assert spared.error == ""
    assert spared.sent.digest() == spared.received.digest()


@contextmanager
def _silent_port(pod: Pod, port: int) -> Iterator[None]:
    """Whoever connects to the program in the pod hears nothing."""

    def nft(*arguments: str) -> None:
        in_namespace(pod.netns, lambda: subprocess.run(["nft", *arguments], check=True))

    nft("add table inet rf_test; add chain inet rf_test input { type filter hook input priority filter; }")
    nft(f"add rule inet rf_test input tcp dport {port} drop")
    try:
        yield
    finally:
        nft("delete table inet rf_test")


def test_who_is_forbidden_while_the_program_is_being_connected_gets_that_for_an_answer(lab: Mesh, cast: Cast) -> None:
    port = 8070
    results: list[bool] = []
    with _silent_port(cast.web, port):
        client = threading.Thread(target=lambda: results.append(_echoes(cast.cart, cast.web.ipv4, port)))
        client.start()
        wait_for("it to be judged", lambda: [r for r in lab.ringfence(2, "connections") if r["state"] == "opening"])
        with lab.applied(_deny(_CART)):
            for node, direction in ((1, "outbound"), (2, "inbound")):
                record = lab.record(node, direction=direction, source_workload="default/cart")
                assert (record["close_reason"], record["policy"]) == ("policy_denied", "default/policy")
                assert record["attempts"] == 1
        client.join()
    assert results == [False]


def _label(lab: Mesh, pod: Pod, labels: str) -> None:
    lab.lab(
        "apply",
        "-",
        stdin=f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod.name}, labels: {{{labels}}}}}\n"
        "spec: {serviceAccountName: web}\n",
    )


def test_a_client_with_another_service_account_is_another_one(lab: Mesh, cast: Cast) -> None:
    with lab.applied(_allow(_CART)):
        assert _echoes(cast.cart, cast.web.ipv4)
        with _streaming(cast.cart, cast.web.ipv4) as stream:
            manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: cart}\nspec: {serviceAccountName: %s}\n"
            lab.lab("apply", "-", stdin=manifest % "somebody")
            _assert_cut(stream)
        try:
            wait_for("the new identity to be refused", lambda: _denied_as(lab, cast, "somebody"))
        finally:
            lab.lab("apply", "-", stdin=manifest % "cart")
        wait_for("the old identity to be let in again", lambda: _echoes(cast.cart, cast.web.ipv4))


def _denied_as(lab: Mesh, cast: Cast, account: str) -> bool:
    assert not _echoes(cast.cart, cast.web.ipv4), "never as who it was"
    identity = f"spiffe://cluster.local/ns/default/sa/{account}"
    return bool(lab.records(2, source_identity=identity, close_reason="policy_denied"))


# -- false addresses ------------------------------------------------------------------

# Opens a connection, or sends a single SYN, from an address that is somebody else's; needs no more than CAP_NET_RAW.
_SPOOF: Final = """\
import socket, struct, sys

how, source, destination, port, mark = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5], 0)
is_v6 = ":" in source
family = socket.AF_INET6 if is_v6 else socket.AF_INET
if how == "connect":
    connection = socket.socket(family)
    connection.setsockopt(*((41, 75) if is_v6 else (0, 19)), 1)  # IP_TRANSPARENT
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    connection.bind((source, 0))
    connection.settimeout(0.3)
    connection.connect((destination, port))
    connection.sendall(b"let me in")
    print(connection.recv(9))
    sys.exit()


def sum16(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
tcp = struct.pack("!HHIIBBHHH", 44444, port, 1, 0, 5 << 4, 2, 65535, 0, 0)
pseudo = addresses + (struct.pack("!IHBB", len(tcp), 0, 0, 6) if is_v6 else struct.pack("!BBH", 0, 6, len(tcp)))
tcp = tcp[:16] + struct.pack("!H", sum16(pseudo + tcp)) + tcp[18:]
if is_v6:
    packet = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + addresses + tcp
else:
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + addresses + tcp
raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
raw.sendto(packet, (destination, 0))
"""
_AGENT_MARK: Final = "0x539"  # a program that may bind to any address may also set the mark that passes capture


@contextmanager
def _without_the_labs_own_check(node: int) -> Iterator[None]:
    """As with a network plugin that lets every pod send from any address."""
    chain = ("chain", "inet", "rf_spoof", "prerouting")

    def nft(*arguments: str) -> str:
        run = ["nft", *arguments]
        return in_namespace(
            Mesh.node_netns(node), lambda: subprocess.run(run, check=True, capture_output=True, text=True).stdout
        )

    rule = nft("list", *chain).split("raw;")[-1].split("policy accept;")[-1].strip(" \n\t}")
    nft("flush", *chain)
    try:
        yield
    finally:
        nft("add", "rule", *chain[1:], *rule.split())


def _spoof(pod: Pod, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return pod.run("python3", "-c", _SPOOF, *arguments, check=False)


def test_a_pod_of_the_mesh_can_not_send_from_an_address_that_is_anothers(lab: Mesh, cast: Cast, tmp_path: Path) -> None:
    allowed = f"{cast.old.ipv4}, {cast.old.ipv6}"
    capture = tmp_path / "link.pcap"
    with (
        lab.applied(_allow(f"{{from: [{{source: {{ipBlocks: [{allowed}]}}}}]}}")),
        _without_the_labs_own_check(1),
    ):
        with lab.tapped(capture):
            for source, destination in ((cast.old.ipv4, cast.web.ipv4), (cast.old.ipv6, cast.web.ipv6)):
                for mark in ("0", _AGENT_MARK):
                    done = _spoof(cast.thief, "connect", source, destination, str(_PORT), mark)
                    assert done.returncode != 0, done.stdout
                    _spoof(cast.thief, "raw", source, destination, str(_PORT), mark)
            assert _echoes(cast.old, cast.web.ipv4), "whose address it is gets through"
        assert _syns_from(capture, cast.old, cast.thief) == 1, "that of the connection that it made itself"
    for record in lab.records(2):
        if record["source_workload"] == "default/old":
            assert record["close_reason"] == "ok"


def _syns_from(capture: Path, *pods: Pod) -> int:
    """How many packets with SYN alone, from an address of the pods, are on the link."""
    hosts = " or ".join(f"src host {ip}" for pod in pods for ip in (pod.ipv4, pod.ipv6))
    syn = "(tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn) or (ip6 and ip6[6] == 6 and ip6[53] & 0x12 == 0x02)"
    done = subprocess.run(
        ["tcpdump", "-nr", str(capture), f"({hosts}) and ({syn})"], capture_output=True, text=True, check=True
    )
    return len(done.stdout.splitlines())


def test_an_address_of_the_mesh_allows_nothing_in_plaintext(lab: Mesh, cast: Cast) -> None:
    """The mark passes the thief's own capture: it comes in plaintext, from its own address, which is allowed."""
    with lab.applied(_allow(f"{{from: [{{source: {{ipBlocks: [{cast.thief.ipv4}]}}}}]}}")):
        assert _echoes(cast.thief, cast.web.ipv4), "through its tunnel"
        done = _spoof(cast.thief, "connect", cast.thief.ipv4, cast.web.ipv4, str(_PORT), _AGENT_MARK)
        assert done.returncode != 0, done.stdout
        record = lab.record(2, source_identity=None, source_workload="default/thief")
        assert (record["close_reason"], record["connection_security_policy"]) == ("policy_denied", "none")
        assert "would come through a tunnel" in record["detail"]
