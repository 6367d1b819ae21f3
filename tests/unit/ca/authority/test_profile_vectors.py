"""What every verifier of the mesh has to reject, the authority never hands out, whatever its own code made."""

import pytest

from ca.authority import profile
from ca.spiffe import SpiffeId
from tests.certificates import WEB, Leaf, make_root
from tests.svid_vectors.chains import Vector, vectors

# What is wrong with a chain but not with its leaf: judged where signing certificates are made, or by the clock.
_OF_SIGNERS = ("signing-", "decided-signing-", "name-constraints", "path-")
_OF_CLOCKS = ("dates", "decided-skew")


def _is_about_the_leaf(vector: Vector) -> bool:
    if vector.name.endswith((" root", " intermediate")):
        return False
    return not vector.rule.startswith((*_OF_SIGNERS, *_OF_CLOCKS))


def _judge(leaf: Leaf) -> None:
    der = leaf.certificate.tbs_certificate_bytes
    assert der
    profile.require_svid(
        leaf.certificate,
        identity=SpiffeId.parse(WEB),
        public_key_der=profile.public_bytes(leaf.certificate.public_key()),
        issuer=leaf.signers[0],
    )


@pytest.mark.parametrize(
    "vector", [v for v in vectors() if not v.accepted and _is_about_the_leaf(v)], ids=lambda v: v.name
)
def test_a_leaf_that_verifiers_reject_never_leaves(vector: Vector) -> None:
    with pytest.raises(profile.ProfileError):
        _judge(vector.leaf)


def test_a_leaf_as_the_authority_makes_it_leaves() -> None:
    """The control: what the vectors change is all that is wrong."""
    _judge(make_root().intermediate().leaf(WEB))
