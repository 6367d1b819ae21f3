"""The one value that says whom to believe: on the wire, and what it does not take from there."""

from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.errors import WireError
from ca.trust import (
    MAX_BUNDLES,
    JwtKey,
    Revocation,
    RevocationKind,
    Trust,
    TrustBundle,
    serial_hex,
    serial_of,
)
from ca.wire import MAX_FRAME_BYTES, pack, unpack

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_TIMES: Final = st.integers(min_value=0, max_value=2**34).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
_SERIALS: Final = st.integers(min_value=1, max_value=2**160 - 1)
_BUNDLES: Final = st.builds(
    TrustBundle,
    trust_domain=st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True),
    sequence=st.integers(min_value=0, max_value=2**63 - 1),
    refresh_hint_s=st.floats(min_value=0, max_value=1e6),
    x509_der=st.lists(st.binary(min_size=1, max_size=50), max_size=3).map(tuple),
    jwt_keys=st.lists(
        st.builds(JwtKey, key_id=st.text(min_size=1, max_size=20), public_key_der=st.binary(min_size=1, max_size=50)),
        max_size=2,
    ).map(tuple),
)
_WHY: Final = st.text(max_size=100)
_UNTIL: Final = st.none() | _TIMES
_REVOCATIONS: Final = st.one_of(
    st.builds(
        Revocation,
        kind=st.just(RevocationKind.SERIAL),
        value=_SERIALS.map(serial_hex),
        at=_TIMES,
        until=_UNTIL,
        why=_WHY,
    ),
    st.builds(
        Revocation,
        kind=st.just(RevocationKind.IDENTITY),
        value=st.just("spiffe://cluster.local/ns/a/sa/b"),
        at=_TIMES,
        until=_UNTIL,
        why=_WHY,
    ),
    st.builds(
        Revocation,
        kind=st.just(RevocationKind.NODE),
        value=st.text(min_size=1, max_size=20),
        at=_TIMES,
        until=_UNTIL,
        why=_WHY,
        serials=st.lists(_SERIALS, min_size=1, max_size=5).map(tuple),
    ),
)
TRUSTS: Final = st.builds(
    Trust,
    version=st.integers(min_value=0, max_value=2**63 - 1),
    bundles=st.lists(_BUNDLES, min_size=1, max_size=3, unique_by=lambda bundle: bundle.trust_domain).map(tuple),
    revocations=st.lists(_REVOCATIONS, max_size=4).map(tuple),
)


def simple(**fields: Any) -> dict[str, Any]:
    bundle = TrustBundle(trust_domain="cluster.local", sequence=1, refresh_hint_s=300.0, x509_der=(b"root",))
    return Trust(version=5, bundles=(bundle,)).to_wire() | fields


def revocation(**fields: Any) -> dict[str, Any]:
    made = Revocation(kind=RevocationKind.NODE, value="node-1", at=AT, until=None, why="", serials=(1,))
    return made.to_wire() | fields


@given(trust=TRUSTS)
def test_what_is_sent_arrives(trust: Trust) -> None:
    received = Trust.from_wire(unpack(pack(trust.to_wire()), MAX_FRAME_BYTES))
    assert received == trust
    assert received.digest == trust.digest


@given(one=TRUSTS, other=TRUSTS)
def test_digests_are_equal_when_the_trust_is(one: Trust, other: Trust) -> None:
    assert (one.digest == other.digest) == (one == other)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (simple(bundles=[]), "own trust domain"),
        (simple(bundles=simple()["bundles"] * 2), "two bundles"),
        (simple(bundles=simple()["bundles"] * (MAX_BUNDLES + 1)), "'bundles'"),
        (simple(bundles=[5]), "'bundles' has to hold maps"),
        (simple(version=-1), "'version'"),
        (simple(version=True), "'version'"),
        (simple(revocations=[revocation(kind="planet")]), "planet"),
        (simple(revocations=[revocation(kind="serial", value="zz")]), "not a serial number"),
        (simple(revocations=[revocation(kind="identity", value="http://x")]), "spiffe"),
        (simple(revocations=[revocation(serials=b"x" * 21)]), "20 bytes each"),
        (simple(revocations=[revocation(at=10**17)]), "not a time"),
        (simple(revocations=[revocation(until="soon")]), "'until'"),
    ],
)
def test_what_is_not_trust_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(WireError, match=words):
        Trust.from_wire(fields)


_KEYS: Final = ["version", "bundles", "revocations", "kind", "value", "at", "trust_domain", "x509", "jwt"]
_ANYTHING: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inside, max_size=5),
    max_leaves=12,
)


@given(fields=st.dictionaries(st.sampled_from(_KEYS), _ANYTHING))
def test_anything_else_is_a_wire_error_and_nothing_worse(fields: dict[str, Any]) -> None:
    try:
        Trust.from_wire(fields)
    except WireError:
        pass


@pytest.mark.parametrize("text", ["7f", "7F", "0x7f", "00:7f", "00:7F", serial_hex(127)])
def test_a_serial_number_is_read_as_programs_write_it(text: str) -> None:
    assert serial_of(text) == 127


@pytest.mark.parametrize("text", ["", "0", "00:00", "-7f", "7g", "1" + "0" * 40, "7f ", "0x"])
def test_what_is_no_serial_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a serial number"):
        serial_of(text)
