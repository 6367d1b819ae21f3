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
  back to the agent and not leave the pod: the socket has another mark, which the
  application's own inherits (tcp_fwmark_accept, fwmark_reflect), and what carries
  it is routed to the loopback.
* What is not redirected is not tracked either: tunnels, and connections to the
  application.  conntrack and its hooks cost a request a twentieth of its time,
  and a connection two entries of three.  Which packets are those is told by what
  only the agent can have made, a socket with its mark: by their source port alone
  a stranger could choose not to be redirected.  Of the way back only what takes
  it: who binds a socket to the pod's device goes another, whatever its mark.
* Redirection lives in conntrack, which forgets a half-closed connection after a
  minute (``nf_conntrack_tcp_timeout_close_wait``); its answer would then go
  nowhere.  Ours are remembered as long as open ones.
* A program may send from any address (IP_TRANSPARENT, raw sockets: CAP_NET_RAW is
  enough).  TCP that leaves the pod has to come from one of its own addresses, and
  what claims to be the pod itself may not come from outside, but for what belongs
  to a tunnel that the agent has dialled.  What happens on the loopback is the
  agent's.
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


def install(*, knows_sockets: bool = True) -> str:
    """The rules of a pod.

    ``knows_sockets``: the kernel has nft_socket; without it the tunnels that the agent dials are tracked, both ways.
    """
    # No SYN: that would find a listener, and a program can give its own the agent's mark.
    answered = (
        f"tcp sport {TUNNEL_PORT} tcp flags & (syn | ack) != syn "
        f"socket mark & {MARK_MASK:#x} == {AGENT_MARK:#x} notrack return"
    )
    dialled = f"tcp dport {TUNNEL_PORT} notrack return"
    return f"""\
{REMOVE}table inet {TABLE} {{
{HALF_CLOSED_TIMEOUTS}
    chain prerouting_raw {{
        type filter hook prerouting priority raw; policy accept;
        iifname "lo" return
        {answered if knows_sockets else ""}
        meta l4proto tcp fib saddr type local drop
        tcp dport {TUNNEL_PORT} notrack
    }}
    chain output_raw {{
        type filter hook output priority raw; policy accept;
        oifname "lo" meta mark & {MARK_MASK:#x} == {RETURN_MARK:#x} notrack return
        oifname != "lo" meta l4proto tcp fib saddr type != local drop
        meta mark & {MARK_MASK:#x} != {AGENT_MARK:#x} return
        {dialled if knows_sockets else ""}
        {"" if knows_sockets else 'oifname != "lo" '}tcp sport {TUNNEL_PORT} notrack
    }}
    chain prerouting_nat {{
        type nat hook prerouting priority dstnat; policy accept;
        {_REMEMBER_HALF_CLOSED}
        meta mark & {MARK_MASK:#x} == {AGENT_MARK:#x} return
        tcp dport != {TUNNEL_PORT} redirect to :{INBOUND_PLAINTEXT_PORT}
    }}
    chain output_nat {{
        type nat hook output priority -100; policy accept;
        {_REMEMBER_HALF_CLOSED}
        meta mark & {MARK_MASK:#x} == {AGENT_MARK:#x} return
        oifname "lo" return
        meta l4proto tcp redirect to :{OUTBOUND_PORT}
    }}
    chain forward_source {{
        type filter hook forward priority filter; policy accept;
        meta l4proto tcp ct state != established fib saddr type != local drop
    }}
}}
"""
