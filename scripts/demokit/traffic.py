"""Proofs of what happens when all is well: identities, ciphertext, whole bytes, load spread."""

import hashlib
import secrets
from collections import Counter
from typing import Any, Final

from demokit.stage import DIGEST_PORT, STORE_PORT, WEB_PODS, WEB_PORT, WEB_V4, WEB_V6, Stage
from demokit.wire import CIPHER_SUITES, TLS_1_3, Wire

_REQUESTS: Final = 30
_STREAM_MIB: Final = 20
CURL: Final = "curl -sS --max-time 10"


def identities(stage: Stage, number: int) -> None:
    """Both ends know who the other is, and the application sees the client's own address."""
    screen = stage.screen
    screen.proof(
        number,
        "Identity at both ends",
        "The programs speak plain TCP and know nothing of certificates. The agents prove, over mutual TLS, which "
        "workload is at each end.",
    )
    cart, store = stage.pods["cart"], stage.pods["store"]
    since = stage.mark()
    asked = stage.typed(
        "cart", f"redis-cli -h store -p {STORE_PORT} client list | tr ' ' '\\n' | grep -E '^(addr|laddr)='"
    )
    seen = dict(line.split("=", 1) for line in asked.stdout.split() if "=" in line)
    screen.check(
        seen.get("addr", "").rpartition(":")[0].strip("[]") in (cart["ipv4"], cart["ipv6"]),
        "Redis sees the client pod's own address, not a proxy's",
        seen.get("addr", "no answer") + f" (pod cart is {cart['ipv4']})",
    )
    for node, direction, end in ((1, "outbound", "source"), (2, "inbound", "destination")):
        records = stage.wait_for_records(node, since, direction=direction, destination_workload="default/store")
        record: dict[str, Any] = records[0] if records else {}
        screen.check(
            record.get("source_identity") == cart["identity"]
            and record.get("destination_identity") == store["identity"]
            and record.get("connection_security_policy") == "mutual_tls"
            and record.get("close_reason") == "ok",
            f"access record of agent-{node}, at the {end}",
            f"{record.get('source_identity')} -> {record.get('destination_identity')}, "
            f"{record.get('connection_security_policy')}, {record.get('close_reason')}",
        )


def ciphertext(stage: Stage, number: int) -> None:
    """What an eavesdropper on the link gets, with and without the mesh."""
    screen = stage.screen
    screen.proof(
        number,
        "Ciphertext on the link",
        "The link between the nodes is recorded while the same request, with a secret in it, is made twice: by a pod "
        "in the mesh and by one that is not.",
    )
    hidden, shown = secrets.token_hex(16), secrets.token_hex(16)
    address = f"http://{stage.pods['web-2']['ipv4']}:{WEB_PORT}/"
    with stage.tapped("ciphertext") as path:
        answers = [
            stage.typed(pod, f"{CURL} -H 'X-Secret: {secret}' {address}").stdout
            for pod, secret in (("cart", hidden), ("legacy", shown))
        ]
        stage.wait_on_wire(path, shown.encode())
    wire = Wire(path)
    screen.check(
        hidden in answers[0] and shown in answers[1],
        "both requests were answered by nginx on the other node",
        "the secret came back in the answer",
    )
    screen.check(
        wire.count(hidden.encode()) == 0 and wire.tunnel_bytes() > len(answers[0]),
        "from the enrolled pod cart, nothing of it can be read on the link",
        f"{wire.count(hidden.encode())} copies of the secret in {wire.packets} packets, "
        f"{wire.tunnel_bytes()} bytes of TLS to and from port 15008",
    )
    hellos = wire.hellos()
    screen.check(
        bool(hellos) and all(hello.version == TLS_1_3 for hello in hellos),
        "the tunnel is TLS 1.3 (read from its ServerHello)",
        ", ".join(
            f"version {hello.version:#06x}, {CIPHER_SUITES.get(hello.cipher_suite, hex(hello.cipher_suite))}"
            for hello in hellos
        )
        or "no ServerHello seen",
    )
    in_clear = wire.opened(port=WEB_PORT)
    screen.check(
        bool(in_clear) and all(flow.source == stage.pods["legacy"]["ipv4"] for flow in in_clear),
        f"no plaintext connection to port {WEB_PORT} from cart, not even a SYN",
        f"{len(in_clear)} SYN in the capture, all from legacy ({stage.pods['legacy']['ipv4']})",
    )
    screen.check(
        wire.count(shown.encode()) >= 2,
        "for contrast, from legacy (not in the mesh) the secret is there for everybody to read",
        f"{wire.count(shown.encode())} copies, in the request and in the answer",
    )


def whole_bytes(stage: Stage, number: int) -> None:
    """A stream arrives whole, and closing one direction leaves the other open."""
    screen = stage.screen
    screen.proof(
        number,
        "TCP carried faithfully",
        f"{_STREAM_MIB} MiB go to sha256sum on the other node, then the client closes its direction only. sha256sum "
        "answers when it has seen the end: the half-close must cross the tunnel, and the answer must come back.",
    )
    source = f"head -c {_STREAM_MIB << 20} /dev/zero | openssl enc -aes-128-ctr -nosalt -K 00 -iv 00 2>/dev/null"
    here = stage.in_pod("cart", "sh", "-c", f"{source} | sha256sum").stdout.split()[:1]
    since = stage.mark()
    there = stage.typed("cart", f"... | nc -N store {DIGEST_PORT}", run=f"{source} | nc -N store {DIGEST_PORT}")
    digest = there.stdout.split()[:1]
    screen.check(
        bool(digest) and digest == here and len(digest[0]) == hashlib.sha256().digest_size * 2,
        "the digest computed over there equals the one computed here",
        f"sha256 {digest[0] if digest else 'missing'}",
    )
    records = stage.wait_for_records(1, since, direction="outbound", service=f"default/store:{DIGEST_PORT}")
    record: dict[str, Any] = records[0] if records else {}
    screen.check(
        record.get("received_bytes") == _STREAM_MIB << 20 and record.get("close_reason") == "ok",
        "its access record",
        f"{record.get('received_bytes')} bytes received from the client, {record.get('sent_bytes')} sent back, "
        f"{record.get('duration_ms')} ms, {record.get('close_reason')}",
    )


def load_spread(stage: Stage, number: int) -> None:
    """One Service, three backends on two nodes, both IP versions."""
    screen = stage.screen
    screen.proof(
        number,
        "Load spread over three backends on two nodes",
        "By the name of the Service, which is its cluster IP. The agent chooses an endpoint for each connection; "
        "this Service asks for round-robin.",
    )
    for option, address in (("-4", WEB_V4), ("-6", WEB_V6)):
        since = stage.mark()
        counts = ask_web(stage, f"{CURL} {option} 'http://web/?[1-{_REQUESTS}]'")
        destination = f"[{address}]:80" if ":" in address else f"{address}:80"
        records = stage.wait_for_records(1, since, _REQUESTS, direction="outbound", original_destination=destination)
        screen.check(
            counts.keys() == set(WEB_PODS) and counts.total() == _REQUESTS,
            f"{counts.total()} of {_REQUESTS} requests to {address} were answered, by each of the three",
        )
        screen.table(spread(stage, counts))
        screen.check(
            len(records) == _REQUESTS
            and {record["connection_security_policy"] for record in records} == {"mutual_tls"},
            "each of them its own connection and access record",
            f"{len(records)} records, {_tally(records, 'connection_security_policy')}",
        )
    idle = stage.ringfence(1, "status")["tunnels"]["idle"]
    screen.check(
        0 < idle < _REQUESTS,
        "a tunnel is used again, without a new handshake",
        f"{2 * _REQUESTS} connections just now, and agent-1 holds {idle} tunnels",
    )


def ask_web(stage: Stage, command: str) -> Counter[str]:
    """Run a curl of several requests in pod cart: how many answers each backend gave."""
    answers = stage.typed("cart", command).stdout.splitlines()
    return Counter(line.split()[0] for line in answers if line.strip())


def spread(stage: Stage, counts: Counter[str]) -> list[str]:
    """A bar for each backend."""
    return [
        f"{name} (node {stage.pods[name]['node']})  {'#' * counts[name]:<{_REQUESTS}} {counts[name]:>3}"
        for name in WEB_PODS
    ]


def _tally(records: list[dict[str, Any]], field: str) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(record[field] for record in records).items())
