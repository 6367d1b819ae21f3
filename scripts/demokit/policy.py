"""Proof of AuthorizationPolicy: who is denied, what lives is cut, and why it says it was."""

from typing import Final

from demokit.stage import STORE_PORT, Stage

_REDIS: Final = "redis-cli -h store"
_POLICY: Final = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: store}
spec:
  selector: {matchLabels: {app: store}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
"""
_HELP: Final = (
    "rule 0 of ALLOW policy default/store: add principal cluster.local/ns/default/sa/cart to principals in from[0]"
)


def decides(stage: Stage, number: int) -> None:
    """A policy denies by identity, also what is open already; the command says why and what would help."""
    screen = stage.screen
    screen.proof(
        number,
        "A policy, a denied connection and its explanation",
        "AuthorizationPolicy store: only web may talk to store. It decides on the proven identity, for connections "
        "that are open too; cart has one.",
    )
    since = stage.mark()
    live = stage.begin("cart", f"redis-cli -h store -p {STORE_PORT} subscribe news")
    stage.wait("cart's connection", lambda: _is_open(stage))
    screen.command("", "scripts/lab apply -   # AuthorizationPolicy store: principals [.../sa/web]")
    stage.lab("apply", "-", stdin=_POLICY)
    cut = stage.wait_for_records(2, since, direction="inbound", close_reason="policy_denied")
    live.kill()
    live.communicate()
    screen.check(
        len(cut) == 1 and cut[0]["sent_bytes"] > 0,
        "the live connection is cut",
        f"agent-2 recorded {cut[0]['close_reason']} after {cut[0]['duration_ms']:.0f} ms" if cut else "no such record",
    )

    since = stage.mark()
    refused = stage.typed("cart", f"{_REDIS} ping")
    records = stage.wait_for_records(1, since, direction="outbound", close_reason="policy_denied")
    screen.check(
        "PONG" not in refused.stdout and bool(records),
        "a new one is refused, and cart's own agent knows why",
        str(records[0]["detail"]) if records else "no such record",
    )
    allowed = stage.typed("web-1", f"{_REDIS} ping")
    screen.check(allowed.stdout.strip() == "PONG", "web is served", allowed.stdout.strip())

    screen.command("", "scripts/lab ringfence 1 explain cart store:6379")
    shown = stage.lab("ringfence", "1", "explain", "cart", f"store:{STORE_PORT}").stdout.rstrip().splitlines()
    screen.table(line for line in shown if line)
    answer = stage.ringfence(1, "explain", "cart", f"store:{STORE_PORT}")
    remedies = {line for decision in answer["decisions"] for line in decision["remedies"]}
    screen.check(
        answer["verdict"] == "denied" and remedies == {_HELP},
        "the explanation names the policy, its rule and what would have to change",
    )
    stage.lab("delete", "authorizationpolicy/default/store")
    served = stage.typed("cart", f"{_REDIS} ping")
    screen.check(served.stdout.strip() == "PONG", "without the policy cart is served again", served.stdout.strip())


def _is_open(stage: Stage) -> bool:
    rows = stage.ringfence(2, "connections")
    return any(row["source"] == "default/cart" and row["state"] == "open" and row["sent_bytes"] for row in rows)
