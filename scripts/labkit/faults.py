"""Cut the link between two nodes, and heal it.

Both nodes drop what comes from and goes to the other, its pods included: a cable
pulled, not a connection refused.
"""

from labkit import layout, netns, state, topology
from labkit.errors import LabError


def cuts() -> list[list[int]]:
    """The pairs of nodes that are cut, each in order."""
    found: list[list[int]] = state.read_json(layout.CUTS_FILE, [])
    return found


def cut(lab: state.Lab, one: int, other: int) -> bool:
    """Drop everything between two nodes; False when they are cut already."""
    pair = _pair(lab, one, other)
    already = cuts()
    for here, there in (pair, pair[::-1]):
        with netns.inside(layout.node_netns(here)):
            topology.nft(_rules(there))
    if pair in already:
        return False
    state.write_json(layout.CUTS_FILE, sorted([*already, pair]))
    return True


def heal(lab: state.Lab, one: int, other: int) -> bool:
    """Undo a cut; False when there is none."""
    pair = _pair(lab, one, other)
    for here, there in (pair, pair[::-1]):
        with netns.inside(layout.node_netns(here)):
            topology.nft(f"table inet {_table(there)}\ndelete table inet {_table(there)}\n")
    already = cuts()
    if pair not in already:
        return False
    state.write_json(layout.CUTS_FILE, [each for each in already if each != pair])
    return True


def _pair(lab: state.Lab, one: int, other: int) -> list[int]:
    lab.require_node(one, ca_too=True)
    lab.require_node(other, ca_too=True)
    if one == other:
        raise LabError(f"a link has two ends: {one} and {other} are the same node")
    return sorted((one, other))


def _table(there: int) -> str:
    return f"rf_cut_{there}"


def _rules(there: int) -> str:
    v4 = ", ".join([layout.link_v4(there), *([layout.pods_v4(there)] if there else [])])
    v6 = ", ".join([layout.link_v6(there), *([layout.pods_v6(there)] if there else [])])
    table = _table(there)
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
  chain incoming {{
    type filter hook prerouting priority -350
    iifname "{layout.NODE_LINK}" ip saddr {{ {v4} }} drop
    iifname "{layout.NODE_LINK}" ip6 saddr {{ {v6} }} drop
  }}
  chain outgoing {{
    type filter hook postrouting priority 350
    oifname "{layout.NODE_LINK}" ip daddr {{ {v4} }} drop
    oifname "{layout.NODE_LINK}" ip6 daddr {{ {v6} }} drop
  }}
}}
"""
