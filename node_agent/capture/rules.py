"""The nftables rules inside a pod: what is redirected where, and why.

One ``inet`` table holds IPv4 and IPv6; it is replaced in one transaction, so a
pod is never without rules while they change.  REDIRECT without a listener is
ECONNREFUSED: with the agent down the pod's connections fail, they do not leak.

* ``prerouting``: what arrives from outside goes to the plaintext listener,
  except the tunnel port, which already is the agent's.
* ``output``: what the application dials goes to the outbound listener, except
  on the loopback interface (a pod talking to itself).
* The agent's own sockets carry a mark and pass.
* The agent connects to the application with the client's address
  (IP_TRANSPARENT).  The application's answers to that foreign address must come
  back to the agent and not leave the pod: the connection is marked when its
  first packet passes, and its answers are routed to the loopback by that mark.
* Redirection and mark live in conntrack, which forgets a half-closed connection
  after a minute (``nf_conntrack_tcp_timeout_close_wait``); its answer would then
  go nowhere.  Ours are remembered as long as open ones.
* A program may send from any address (IP_TRANSPARENT, raw sockets: CAP_NET_RAW is
  enough).  TCP that leaves the pod has to come from one of its own addresses, and
  what claims to be the pod itself may not come from outside.  What happens on the
  loopback is the agent's.  Looked at is the beginning of a connection, or what
  belongs to none.
"""

from typing import Final

from node_agent.config import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, TUNNEL_PORT

TABLE: Final = "ringfence"
AGENT_MARK: Final = 0x539  # Istio's numbers: operators' firewalls already know them
RETURN_MARK: Final = 0x111
MARK_MASK: Final = 0xFFF
RETURN_ROUTE_TABLE: Final = 100
RETURN_RULE_PRIORITY: Final = 32764
_HALF_CLOSED_S: Final = 432_000  # nf_conntrack_tcp_timeout_established: as long as an open one

_REMEMBER_HALF_CLOSED: Final = """\
ct state new meta nfproto ipv4 meta l4proto tcp ct timeout set "half_closed_ip"
        ct state new meta nfproto ipv6 meta l4proto tcp ct timeout set "half_closed_ip6\""""

HALF_CLOSED_TIMEOUTS: Final = f"""\
    ct timeout half_closed_ip {{
        protocol tcp
        l3proto ip
        policy = {{ fin_wait : {_HALF_CLOSED_S}, close_wait : {_HALF_CLOSED_S} }}
    }}
    ct timeout half_closed_ip6 {{
        protocol tcp
        l3proto ip6
        policy = {{ fin_wait : {_HALF_CLOSED_S}, close_wait : {_HALF_CLOSED_S} }}
    }}"""

REMOVE: Final = f"table inet {TABLE}\ndelete table inet {TABLE}\n"

INSTALL: Final = f"""\
{REMOVE}table inet {TABLE} {{
{HALF_CLOSED_TIMEOUTS}
    chain prerouting_nat {{
        type nat hook prerouting priority dstnat; policy accept;
        meta mark & {MARK_MASK:#x} == {AGENT_MARK:#x} return
        tcp dport != {TUNNEL_PORT} redirect to :{INBOUND_PLAINTEXT_PORT}
    }}
    chain output_nat {{
        type nat hook output priority -100; policy accept;
        meta mark & {MARK_MASK:#x} == {AGENT_MARK:#x} return
        oifname "lo" return
        meta l4proto tcp redirect to :{OUTBOUND_PORT}
    }}
    chain prerouting_mark {{
        type filter hook prerouting priority mangle; policy accept;
        iifname != "lo" meta l4proto tcp ct state != established fib saddr type local drop
        {_REMEMBER_HALF_CLOSED}
        meta mark & {MARK_MASK:#x} == {AGENT_MARK:#x} ct mark set {RETURN_MARK:#x}
    }}
    chain output_mark {{
        type route hook output priority mangle; policy accept;
        {_REMEMBER_HALF_CLOSED}
        ct mark {RETURN_MARK:#x} meta mark set ct mark
    }}
    chain postrouting_source {{
        type filter hook postrouting priority srcnat + 10; policy accept;
        oifname != "lo" meta l4proto tcp ct state != established fib saddr type != local drop
    }}
}}
"""
