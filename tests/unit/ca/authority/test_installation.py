"""What an existing PKI signed is judged, rehearsed, and taken up in its turn."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca.authority import founding, hierarchy
from ca.authority.caretaker import catch_up
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.installation import install
from ca.authority.records import AuthorityKind, AuthorityState
from ca.authority.root_succession import RootSuccession
from ca.authority.store import Store
from ca.authority.succession import Succession
from tests.authority_builder import PASSPHRASE
from tests.certificates import rsa_key
from tests.foreign_pki import ForeignPki, instead, without

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
YEAR: Final = timedelta(days=365)


class Desk:
    """An authority under somebody else's root, which waits for its first intermediate."""

    def __init__(self, directory: Path) -> None:
        config = directory / "ca.toml"
        config.write_text(f'[ca]\nstate_dir = "{directory}/state"\n')
        self.config = AuthorityConfig.load(config)
        self.pki = ForeignPki(rsa_key(2048), at=AT)
        self.csr = founding.create_under(self.config, self.pki.certificate, passphrase=PASSPHRASE, at=AT)
        self.store = Store.open(self.config.database)
        self.succession = Succession(config=self.config, store=self.store, passphrase=PASSPHRASE)
        self.roots = RootSuccession(self.succession)

    def load(self, at: datetime = AT) -> hierarchy.Hierarchy:
        return hierarchy.load(self.config, self.store, passphrase=PASSPHRASE, at=at)

    def states(self, kind: AuthorityKind) -> list[str]:
        return [str(record.state) for record in self.succession.records() if record.kind is kind]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    with closing(made.store):
        yield made


def test_before_its_intermediate_is_here_an_authority_says_what_it_waits_for(desk: Desk) -> None:
    with pytest.raises(AuthorityError, match=r"no intermediate to sign with.*install-intermediate"):
        desk.load()
    assert x509.load_pem_x509_certificates(desk.config.bundle_file.read_bytes()) == [desk.pki.certificate]


def test_the_first_intermediate_signs_at_once(desk: Desk) -> None:
    ours = desk.pki.sign(desk.csr)
    assert install(desk.succession, [ours], at=AT).state is AuthorityState.ACTIVE
    loaded = desk.load()
    assert (loaded.issuer.certificate, loaded.upstream) == (ours, ())


def test_certificates_in_between_are_sent_along(desk: Desk) -> None:
    issuing = desk.pki.below("Policy").below("Issuing")
    ours = issuing.sign(desk.csr)
    install(desk.succession, [desk.pki.certificate, *issuing.between, ours], at=AT)
    loaded = desk.load()
    assert loaded.upstream == issuing.between
    assert len(loaded.chain_der) == 3
    assert loaded.roots == (desk.pki.certificate,)


def test_a_pki_that_names_keys_in_its_own_way_is_followed(desk: Desk) -> None:
    """Go's x509 cuts a SHA-256; RFC 7093 allows it."""
    ours = desk.pki.sign(desk.csr, change=instead(x509.SubjectKeyIdentifier(b"named otherwise"), critical=False))
    install(desk.succession, [ours], at=AT)
    assert desk.load().issuer.certificate == ours
    assert [path.stem for path in desk.config.keys_dir.iterdir()] == [b"named otherwise".hex()]


def test_an_intermediate_for_somebody_elses_key_is_refused(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Desk(tmp_path / "other")
    with closing(other.store), pytest.raises(AuthorityError, match=r"0 of the certificates .* --csr FILE"):
        install(desk.succession, [other.pki.sign(other.csr)], at=AT)


def test_an_intermediate_under_another_root_is_refused(desk: Desk) -> None:
    with pytest.raises(AuthorityError, match="nothing in it leads from"):
        install(desk.succession, [ForeignPki(at=AT).sign(desk.csr)], at=AT)


def test_an_intermediate_that_is_not_what_was_asked_for_changes_nothing(desk: Desk) -> None:
    with pytest.raises(AuthorityError, match="the signed intermediate is refused: the certificate has no NameCons"):
        install(desk.succession, [desk.pki.sign(desk.csr, change=without(x509.NameConstraints))], at=AT)
    assert desk.states(AuthorityKind.INTERMEDIATE) == []
    install(desk.succession, [desk.pki.sign(desk.csr)], at=AT)


def test_an_intermediate_that_lives_too_shortly_for_the_ttl_is_refused(desk: Desk) -> None:
    with pytest.raises(AuthorityError, match=r"svid_ttl_s = 3600 .* set \d+ at most"):
        install(desk.succession, [desk.pki.sign(desk.csr, lifetime=timedelta(hours=5))], at=AT)


def test_an_intermediate_is_installed_once(desk: Desk) -> None:
    ours = desk.pki.sign(desk.csr)
    install(desk.succession, [ours], at=AT)
    with pytest.raises(AuthorityError, match="0 of the certificates"):
        install(desk.succession, [ours], at=AT)


def test_the_next_intermediate_waits_until_it_is_due_and_the_upstream_one_goes_with_the_last_below_it(
    desk: Desk,
) -> None:
    policy = desk.pki.below("Policy")
    install(desk.succession, [policy.sign(desk.csr), *policy.between], at=AT)
    catch_up(desk.succession, at=AT + YEAR * 0.6)  # it is due, and the root key is elsewhere
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["active"]

    at = AT + YEAR * 0.6
    following = install(desk.succession, [desk.pki.sign(desk.roots.new_request(), at=at)], at=at)
    assert following.state is AuthorityState.PREPARED
    handover = AT + YEAR * 0.81
    catch_up(desk.succession, at=handover)
    assert desk.load(handover).issuer_key_id == following.key_id
    assert desk.states(AuthorityKind.UPSTREAM) == ["active"]
    catch_up(desk.succession, at=handover + timedelta(minutes=1))
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["retired", "active"]
    assert desk.states(AuthorityKind.UPSTREAM) == ["retired"]


def test_a_renewed_certificate_of_the_pki_takes_the_place_of_the_one_before(desk: Desk) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    old = desk.pki.below("Policy", key=key, lifetime=timedelta(days=500))
    install(desk.succession, [old.sign(desk.csr), *old.between], at=AT)
    renewed = desk.pki.below("Policy", key=key, lifetime=timedelta(days=1000))
    install(desk.succession, [renewed.sign(desk.roots.new_request()), *renewed.between], at=AT)
    assert desk.load().upstream == renewed.between
    assert desk.states(AuthorityKind.UPSTREAM) == ["active"]


def test_a_second_answer_to_a_second_request_replaces_the_one_that_waits(desk: Desk) -> None:
    install(desk.succession, [desk.pki.sign(desk.csr)], at=AT)
    install(desk.succession, [desk.pki.sign(desk.roots.new_request())], at=AT)
    third = install(desk.succession, [desk.pki.sign(desk.roots.new_request())], at=AT)
    assert desk.states(AuthorityKind.INTERMEDIATE) == ["active", "retired", "prepared"]
    assert third.state is AuthorityState.PREPARED
    assert len(list(desk.config.keys_dir.iterdir())) == 2


def test_the_root_of_the_pki_makes_way_for_its_next_one(desk: Desk) -> None:
    install(desk.succession, [desk.pki.sign(desk.csr)], at=AT)
    following = ForeignPki(name="Next Corp", at=AT)
    csr = desk.roots.publish_foreign(following.certificate, at=AT)
    assert desk.load().roots == (desk.pki.certificate, following.certificate)
    under = install(desk.succession, [following.sign(csr)], at=AT)
    assert under.state is AuthorityState.PREPARED
    desk.roots.activate(at=AT)
    assert desk.load().issuer_key_id == under.key_id
    assert desk.states(AuthorityKind.ROOT) == ["retiring", "active"]


def test_a_root_that_is_known_already_is_not_published_again(desk: Desk) -> None:
    with pytest.raises(AuthorityError, match="a new root has a new key"):
        desk.roots.publish_foreign(desk.pki.certificate, at=AT)


def test_in_an_emergency_the_next_root_of_the_pki_takes_over_at_once(desk: Desk) -> None:
    install(desk.succession, [desk.pki.sign(desk.csr)], at=AT)
    following = ForeignPki(name="Next Corp", at=AT)
    csr = desk.roots.publish_foreign(following.certificate, at=AT)
    install(desk.succession, [following.sign(csr)], at=AT)
    desk.roots.replace_everything(at=AT)
    assert desk.load().roots == (following.certificate,)
    assert desk.states(AuthorityKind.ROOT) == ["retired", "active"]
