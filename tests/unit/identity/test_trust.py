"""Whom the agent believes, and what the last run of the agent knew."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from ca.errors import CaProtocolError
from ca.spiffe import SpiffeId
from ca.trust import Revocation, RevocationKind, Trust, TrustBundle, serial_hex
from node_agent.errors import AgentError, CloseReason, ConnectionFailure
from node_agent.identity.trust import Certificate, TrustStore
from node_agent.identity.trust_file import TrustFile
from tests.certificates import TRUST_DOMAIN, der, make_root, pem

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ROOT: Final = make_root().certificate
NEXT_ROOT: Final = make_root().certificate
OTHER: Final = "other.example"
OTHER_ROOT: Final = make_root(OTHER).certificate
WEB: Final = SpiffeId.workload(TRUST_DOMAIN, "default", "web")
FOREIGN: Final = SpiffeId.workload(OTHER, "default", "web")


def store() -> TrustStore:
    return TrustStore(trust_domain=TRUST_DOMAIN, roots=[ROOT])


def bundle(*roots: bytes, trust_domain: str = TRUST_DOMAIN) -> TrustBundle:
    return TrustBundle(trust_domain=trust_domain, sequence=1, refresh_hint_s=300.0, x509_der=roots)


def trust(*revocations: Revocation, version: int = 1, bundles: tuple[TrustBundle, ...] = ()) -> Trust:
    return Trust(version=version, bundles=bundles or (bundle(der(ROOT)),), revocations=revocations)


def revoked(kind: RevocationKind, value: str, *serials: int) -> Revocation:
    return Revocation(kind=kind, value=value, at=AT, until=None, why="stolen", serials=serials)


BY_SERIAL: Final = revoked(RevocationKind.SERIAL, serial_hex(7))
BY_IDENTITY: Final = revoked(RevocationKind.IDENTITY, str(WEB))
BY_NODE: Final = revoked(RevocationKind.NODE, "node-1", 8, 9)


@pytest.mark.parametrize(
    ("revocation", "serial", "words"),
    [
        (BY_SERIAL, 7, "certificate 0000000000000000000000000000000000000007 is revoked since 2026-11-22T12:00:00Z"),
        (BY_IDENTITY, 1, "this identity is revoked since 2026-11-22T12:00:00Z: stolen"),
        (BY_NODE, 9, "issued to node node-1, which is revoked"),
    ],
)
def test_what_is_revoked_is_refused_with_what_since_when_and_why(
    revocation: Revocation, serial: int, words: str
) -> None:
    judge = store()
    judge.require_trusted(WEB, serial)
    judge.take(trust(revocation))
    with pytest.raises(ConnectionFailure, match=words) as caught:
        judge.require_trusted(WEB, serial)
    assert caught.value.reason is CloseReason.IDENTITY_REVOKED
    judge.take(trust(version=2))
    judge.require_trusted(WEB, serial)


def test_other_certificates_and_identities_are_not_touched() -> None:
    judge = store()
    judge.take(trust(BY_SERIAL, BY_NODE))
    judge.require_trusted(WEB, 6)
    judge.require_trusted(WEB, 10)


def test_a_trust_domain_that_is_not_federated_or_no_longer_is_refused() -> None:
    judge = store()
    with pytest.raises(ConnectionFailure, match=r"other\.example is not federated") as caught:
        judge.require_trusted(FOREIGN, 1)
    assert caught.value.reason is CloseReason.TRUST_REMOVED
    both = (bundle(der(ROOT)), bundle(der(OTHER_ROOT), trust_domain=OTHER))
    assert judge.take(trust(bundles=both)) is True
    judge.require_trusted(FOREIGN, 1)
    assert judge.roots(OTHER) == (OTHER_ROOT,)
    assert judge.roots() == (ROOT,)
    assert judge.take(trust(version=2)) is True
    assert judge.why_not(Certificate(identity=FOREIGN, serial=1)) is not None


def test_only_a_change_of_roots_asks_for_new_contexts() -> None:
    judge = store()
    assert judge.take(trust()) is False
    assert judge.take(trust(BY_IDENTITY, version=2)) is False
    assert judge.take(trust(version=3, bundles=(bundle(der(ROOT), der(NEXT_ROOT)),))) is True


def test_those_who_are_told_of_a_change_see_the_new_trust() -> None:
    judge = store()
    seen: list[int] = []
    judge.on_changed.append(lambda: seen.append(judge.version))
    judge.take(trust(version=4))
    assert seen == [4]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (trust(bundles=(bundle(der(OTHER_ROOT), trust_domain=OTHER),)), "the CA serves trust domain 'other.example'"),
        (trust(bundles=(bundle(),)), "an empty trust bundle"),
        (trust(bundles=(bundle(b"no certificate"),)), "a bad root"),
        (trust(bundles=(bundle(der(OTHER_ROOT)),)), "a bad root"),
    ],
)
def test_trust_that_can_not_be_used_changes_nothing(bad: Trust, words: str) -> None:
    judge = store()
    judge.take(trust(BY_IDENTITY, version=3))
    with pytest.raises(CaProtocolError, match=words):
        judge.take(bad)
    assert judge.version == 3
    assert judge.why_not(Certificate(identity=WEB, serial=1)) is not None


def test_roots_that_come_with_a_certificate_count_until_the_ca_has_told_its_trust() -> None:
    judge = store()
    assert judge.learn_roots((ROOT,)) is False
    assert judge.learn_roots((ROOT, NEXT_ROOT)) is True
    assert judge.roots() == (ROOT, NEXT_ROOT)
    judge.take(trust())
    assert judge.learn_roots((ROOT, NEXT_ROOT)) is False
    assert judge.roots() == (ROOT,)


# -- the file -----------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def file(directory: Path, *, configured: bytes = pem(ROOT)) -> TrustFile:
    return TrustFile(directory=directory, configured_pem=configured)


def test_the_next_run_trusts_what_the_last_one_did(directory: Path) -> None:
    rotated = trust(BY_IDENTITY, version=9, bundles=(bundle(der(NEXT_ROOT)),))
    file(directory).save(rotated)
    judge = store()
    assert file(directory).restore(judge) is True
    assert judge.trust == rotated
    assert (directory / "trust").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in directory.iterdir()] == ["trust"]


def test_the_first_run_has_nothing_to_restore(directory: Path) -> None:
    assert file(directory).restore(store()) is False


def test_a_bundle_file_that_the_operator_has_changed_since_counts_and_revocations_stay(directory: Path) -> None:
    file(directory).save(trust(BY_IDENTITY, version=9, bundles=(bundle(der(NEXT_ROOT)),)))
    judge = store()
    assert file(directory, configured=pem(ROOT) + b"\n").restore(judge) is True
    assert judge.roots() == (ROOT,)
    assert judge.version == 0  # the CA tells it all
    assert judge.why_not(Certificate(identity=WEB, serial=1)) is not None


def test_something_older_than_what_is_in_force_is_never_restored(directory: Path) -> None:
    file(directory).save(trust(version=2, bundles=(bundle(der(NEXT_ROOT)),)))
    judge = store()
    judge.take(trust(BY_IDENTITY, version=3))
    assert file(directory).restore(judge) is False
    assert judge.version == 3
    assert judge.roots() == (ROOT,)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80", b"\x81\xa5trust\x80"])
def test_a_damaged_file_is_as_good_as_none(directory: Path, content: bytes) -> None:
    file(directory).save(trust())
    (directory / "trust").write_bytes(content)
    judge = store()
    assert file(directory).restore(judge) is False
    assert judge.roots() == (ROOT,)


def test_a_file_that_others_may_write_stops_the_agent(directory: Path) -> None:
    file(directory).save(trust())
    (directory / "trust").chmod(0o622)
    with pytest.raises(AgentError, match=r"\[agent\] state_dir: .*trust can be written by others.*chmod go-w"):
        file(directory).restore(store())
    directory.chmod(0o777)
    with pytest.raises(AgentError, match="can be written by others"):
        file(directory)


def test_a_file_of_somebody_else_stops_the_agent(directory: Path) -> None:
    file(directory).save(trust())
    os.chown(directory / "trust", 65534, 65534)
    with pytest.raises(AgentError, match="can be written by others than root"):
        file(directory).restore(store())


def test_a_state_dir_that_can_not_be_made_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(AgentError, match=r"\[agent\] state_dir: "):
        file(tmp_path / "state" / "below")


def test_what_could_not_be_written_leaves_what_was_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(directory).save(trust(version=5))

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file(directory).save(replace(trust(), version=6))
    judge = store()
    assert file(directory).restore(judge)
    assert judge.version == 5
    assert [each.name for each in directory.iterdir()] == ["trust"]
