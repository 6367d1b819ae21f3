"""Proofs of what happens in trouble: a backend killed, connections denied, an agent killed."""

import os
import secrets
from pathlib import Path
from typing import Final

from demokit.stage import EJECTED_S, WEB_PORT, Stage
from demokit.traffic import CURL, ask_web, spread
from demokit.wire import TUNNEL_PORT, Wire

_REQUESTS: Final = 30
_SERVING_AGAIN_S: Final = 2.0
_ASK: Final = f"{CURL} 'http://web/?[1-{_REQUESTS}]'"

_STRICT: Final = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
"""


def backend_killed(stage: Stage, number: int) -> None:
    """No client sees an error while a backend dies, is taken out, and comes back."""
    screen = stage.screen
    screen.proof(
        number,
        "A backend dies, is taken out, and comes back",
        "No byte of a request leaves before the destination's agent has said that the application accepted the "
        "connection. So a failed endpoint costs another try, not an error.",
    )
    screen.command("web-2", "kill -9 nginx")
    stage.kill_nginx("web-2")
    since = stage.mark()
    counts = ask_web(stage, _ASK)
    records = stage.wait_for_records(1, since, _REQUESTS, direction="outbound")
    again = [record for record in records if record["attempts"] > 1]
    screen.check(
        counts.total() == _REQUESTS and counts["web-2"] == 0,
        "the clients notice nothing",
        f"{counts.total()} of {_REQUESTS} requests answered, none by web-2",
    )
    screen.table(spread(stage, counts))
    refused = stage.wait_for_records(2, since, len(again), direction="inbound", close_reason="connect_refused")
    screen.check(
        bool(again) and len(refused) == len(again),
        "the records say what it took",
        f"{len(again)} connections went on to another endpoint; agent-2 recorded {len(refused)} times "
        f"connect_refused at web-2",
    )

    since = stage.mark()
    counts = ask_web(stage, _ASK)
    records = stage.wait_for_records(1, since, _REQUESTS, direction="outbound")
    row = _endpoint(stage, "web-2")
    screen.check(
        counts.total() == _REQUESTS
        and all(record["attempts"] == 1 for record in records)
        and row["health"] == "ejected",
        "ejected: nobody tries it any more",
        f"{_REQUESTS} requests, {sum(record['attempts'] for record in records)} attempts; "
        f"`ringfence endpoints web`: {row['address']} is {row['health']} ({row['why']})",
    )

    screen.command("web-2", "nginx")
    stage.start_nginx("web-2")
    stage.wait_until_open("web-2", WEB_PORT)
    screen.say(f"After {EJECTED_S} s, the TrafficPolicy's baseEjectionTime, one connection probes it:")
    stage.wait("the time of web-2 to be up", lambda: _endpoint(stage, "web-2")["health"] == "probing")
    counts = ask_web(stage, _ASK)
    row = _endpoint(stage, "web-2")
    screen.check(
        counts.total() == _REQUESTS and counts["web-2"] > 0 and row["health"] == "healthy",
        "back: it gets its share again",
        f"{counts['web-2']} of {counts.total()} requests answered by web-2, which is {row['health']}",
    )


def _endpoint(stage: Stage, pod: str) -> dict[str, object]:
    """The pod's endpoint that is not healthy, if there is one: curl chooses between IPv4 and IPv6."""
    rows: list[dict[str, object]] = stage.ringfence(1, "endpoints", "web")
    own = [row for row in rows if row["workload"] == f"default/{pod}"]
    return next((row for row in own if row["health"] != "healthy"), own[0])


def denied(stage: Stage, number: int) -> None:
    """Who may not connect is refused, and the record says why."""
    screen = stage.screen
    screen.proof(
        number,
        "Connections denied, and why",
        "PeerAuthentication STRICT: only mutual TLS is accepted. legacy has no identity, so it is refused; cart is "
        "not. Then three impostors knock at the tunnel port itself.",
    )
    screen.command("", "scripts/lab apply -   # PeerAuthentication strict: mtls.mode STRICT")
    stage.lab("apply", "-", stdin=_STRICT)
    secret = secrets.token_hex(16)
    address = stage.pods["web-2"]["ipv4"]
    since = stage.mark()
    refused = stage.typed("legacy", f"{CURL} -H 'X-Secret: {secret}' http://{address}:{WEB_PORT}/{secret}")
    reached = stage.requests_seen_by("web-2", secret)
    screen.check(
        refused.returncode != 0 and reached == 0,
        "the plaintext client is refused and nginx never hears of it",
        f"{_last_line(refused.stderr)}; {reached} such requests at nginx",
    )
    _explained(stage, since, "plaintext_refused")
    allowed = stage.typed("cart", f"{CURL} http://{address}:{WEB_PORT}/")
    screen.check(allowed.returncode == 0, "the enrolled client is served as before", allowed.stdout.strip())

    for what, reason, command in (
        (
            "no certificate",
            "certificate_missing",
            f"openssl s_client -connect {address}:{TUNNEL_PORT} -alpn ringfence/1 </dev/null",
        ),
        (
            "a self-made certificate that claims to be cart",
            "certificate_untrusted",
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k -out c -subj / "
            f"-addext subjectAltName=critical,URI:{stage.pods['cart']['identity']} "
            "-addext keyUsage=critical,digitalSignature "
            f"&& openssl s_client -connect {address}:{TUNNEL_PORT} -alpn ringfence/1 -cert c -key k </dev/null",
        ),
        ("no TLS at all", "not_tls", f"{CURL} http://{address}:{TUNNEL_PORT}/"),
    ):
        since = stage.mark()
        shown = command if len(command) < 100 else "openssl req -x509 ... && openssl s_client ... -cert c -key k"
        screen.say(f"An impostor with {what}:")
        stage.typed("legacy", shown, run=f"cd $(mktemp -d -p {stage.scratch}) && {command}")
        _explained(stage, since, reason)

    stage.lab("delete", "peerauthentication/default/strict")
    served = stage.typed("legacy", f"{CURL} http://{address}:{WEB_PORT}/")
    screen.check(
        served.returncode == 0,
        "without that PeerAuthentication (PERMISSIVE is the default) legacy is served",
        served.stdout.strip() or _last_line(served.stderr),
    )


def _explained(stage: Stage, since: dict[int, int], reason: str) -> None:
    """The denied connection's record at agent-2 says why."""
    records = stage.wait_for_records(2, since, direction="inbound", close_reason=reason)
    record = records[0] if records else {}
    stage.screen.check(
        len(records) == 1,
        f"agent-2 recorded {record.get('close_reason', f'no {reason}')}",
        str(record.get("detail", "")),
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def agent_killed(stage: Stage, number: int) -> None:
    """Without its agent a pod is cut off, not exposed; and the CA is not needed for every connection."""
    screen = stage.screen
    screen.proof(
        number,
        "Fails closed, and comes back",
        "An agent is killed outright, with the link recorded. Its pods must lose their connections rather than send "
        "in clear; nothing may reach them from outside either.",
    )
    secret, marker = secrets.token_hex(16), secrets.token_hex(16)
    with stage.tapped("agent-killed") as path:
        screen.command("", "scripts/lab kill agent-1")
        stage.lab("kill", "agent-1")
        out = stage.typed("cart", f"{CURL} -H 'X-Secret: {secret}' http://web/")
        into = stage.typed("legacy", f"{CURL} -H 'X-Secret: {secret}' http://{stage.pods['web-1']['ipv4']}:{WEB_PORT}/")
        # Sent last and readable: when it is in the capture, everything before it is.
        stage.in_pod(
            "legacy", "curl", "-s", "-H", f"X-Secret: {marker}", f"http://{stage.pods['web-2']['ipv4']}:{WEB_PORT}/"
        )
        stage.wait_on_wire(path, marker.encode())
    wire = Wire(path)
    screen.check(out.returncode == 7, "cart's connect is refused", f"{_last_line(out.stderr)}")
    screen.check(into.returncode == 7, "so is one into a pod of that node", f"{_last_line(into.stderr)}")
    from_cart = wire.opened(source=(stage.pods["cart"]["ipv4"], stage.pods["cart"]["ipv6"]))
    screen.check(
        wire.count(secret.encode()) == 0 and not from_cart and wire.count(marker.encode()) > 0,
        "nothing of cart's was on the link",
        f"{wire.count(secret.encode())} copies of the secret and {len(from_cart)} SYN from cart, "
        f"in {wire.packets} packets",
    )

    waiting = stage.begin("cart", f"until {CURL} -f http://web/ 2>/dev/null; do :; done; cat /proc/uptime")
    screen.command("", "scripts/lab start agent-1")
    stage.lab("start", "agent-1")
    answer, _, uptime = waiting.communicate(timeout=30)[0].strip().partition("\n")
    seconds = float(uptime.split()[0]) - _started_at(stage.ringfence(1, "status")["pid"]) if uptime else float("inf")
    screen.check(
        bool(answer) and seconds <= _SERVING_AGAIN_S,
        "started again, it serves again",
        f"{seconds:.2f} s from the start of its process to the next answer ({answer.strip()})",
    )
    screen.command("", "scripts/lab stop ca")
    stage.lab("stop", "ca")
    served = stage.typed("cart", f"{CURL} http://web/")
    screen.check(
        served.returncode == 0,
        "with the CA down new connections go on, while the certificates last",
        served.stdout.strip() or _last_line(served.stderr),
    )
    stage.lab("start", "ca")


def _started_at(pid: int) -> float:
    """When a process was started, in seconds since boot, as /proc/uptime counts (proc_pid_stat(5), field 22)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")
