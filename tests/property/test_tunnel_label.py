"""The name in a ClientHello is looked for in whatever a stranger sends: nothing is raised, nothing else is found."""

from hypothesis import given
from hypothesis import strategies as st

from node_agent.tunnel.label import find_label, label_of, server_name

LABELS = st.binary(min_size=16, max_size=16).map(label_of)
PIECES = st.sampled_from([b"\0\x3a", b"0" * 31, b"0", b"g", b".attach.ringfence.internal", b"."])


def said(label: str) -> bytes:
    """As RFC 6066 has it: the length, then the name."""
    name = server_name(label).encode()
    return len(name).to_bytes(2) + name


@given(st.binary(max_size=4096) | st.lists(PIECES, max_size=12).map(b"".join))
def test_any_bytes_have_a_label_or_none(data: bytes) -> None:
    label = find_label(data)
    assert label is None or said(label) in data


@given(st.binary(max_size=600), LABELS, st.binary(max_size=600))
def test_what_was_said_is_found_whatever_is_around_it(before: bytes, label: str, after: bytes) -> None:
    assert find_label(before) is None
    assert find_label(before + said(label) + after) == label
