"""Who may be federated, what is taken from them, when they are asked, and what the store remembers."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.authority.federation.intake import accept, read_bootstrap, require_federable
from ca.authority.federation.relation import EndpointUrl, FederatedDomain, Profile, Relation, RelationError
from ca.authority.federation.schedule import next_poll_at
from ca.authority.store import Store
from ca.authority.trust_assembly import assemble
from ca.bundle import BundleError, write_bundle, write_bundle_map
from ca.spiffe import SpiffeId
from ca.trust import JwtKey, TrustBundle
from tests.authority_builder import make_authority
from tests.certificates import TRUST_DOMAIN, Signer, der, make_root, p256, pem, rsa_key

_AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_THEIRS = "other.example"


# -- relations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("https://ca.example", "ca.example", 443, "/"),
        ("https://ca.example:15013/", "ca.example", 15013, "/"),
        ("https://ca.example/bundles/a.json?v=1", "ca.example", 443, "/bundles/a.json?v=1"),
        ("https://10.0.0.1:8443", "10.0.0.1", 8443, "/"),
        ("https://[fd00::1]:8443/x", "fd00::1", 8443, "/x"),
    ],
)
def test_an_endpoint_is_a_https_url(text: str, host: str, port: int, target: str) -> None:
    url = EndpointUrl.parse(text)
    assert url == (host, port, target)
    assert EndpointUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://ca.example/", "https://"),
        ("ca.example", "https://"),
        ("file:///etc/passwd", "https://"),
        ("https://user@ca.example/", "user"),
        ("https://user:secret@ca.example/", "user"),
        ("https:///path", "host"),
        ("https://ca.example:0/", "port 0"),
        ("https://ca.example:99999/", "not a URL"),
        ("https://[fd00::1/", "not a URL"),
        ("https://a..example/", "not a host name"),
        ("https://.example/", "not a host name"),
        ("https://" + "a" * 64 + ".example/", "not a host name"),
        ("https://ca.example/a b", "printable"),
        ("https://ca.example/\r\nHost: evil", "printable"),
        ("https://ca.example/" + "a" * 3000, "2048"),
        ("https://caf\u00e9.example/", "ASCII"),
    ],
)
def test_what_is_no_endpoint_is_refused_without_being_quoted(text: str, says: str) -> None:
    with pytest.raises(RelationError) as caught:
        EndpointUrl.parse(text)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def _relation(trust_domain: str = _THEIRS, *, at: datetime = _AT, host: str = "ca.example") -> Relation:
    return Relation(
        trust_domain=trust_domain,
        url=EndpointUrl.parse(f"https://{host}/"),
        profile=Profile.HTTPS_SPIFFE,
        endpoint_id=SpiffeId.authority(trust_domain),
        added_at=at,
    )


def test_each_profile_has_what_proves_it() -> None:
    relation = _relation()
    assert relation.self_serving
    assert not replace(relation, endpoint_id=SpiffeId.authority("third.example")).self_serving
    assert not replace(relation, profile=Profile.HTTPS_WEB, endpoint_id=None).self_serving
    with pytest.raises(RelationError, match="needs the SPIFFE ID"):
        replace(relation, endpoint_id=None)
    with pytest.raises(RelationError, match="https_web has none"):
        replace(relation, profile=Profile.HTTPS_WEB)
    with pytest.raises(RelationError, match="no path"):
        replace(relation, endpoint_id=SpiffeId(_THEIRS, ""))
    with pytest.raises(RelationError, match="SPIFFE-ID"):
        replace(relation, trust_domain="Other.Example")


def test_neither_our_own_nor_one_twice_nor_too_many_are_federated() -> None:
    require_federable(_THEIRS, own=TRUST_DOMAIN, federated=["third.example"])
    with pytest.raises(RelationError, match="own trust domain"):
        require_federable(TRUST_DOMAIN, own=TRUST_DOMAIN, federated=[])
    with pytest.raises(RelationError, match="already"):
        require_federable(_THEIRS, own=TRUST_DOMAIN, federated=[_THEIRS])
    with pytest.raises(RelationError, match="as many as can be"):
        require_federable(_THEIRS, own=TRUST_DOMAIN, federated=[f"td-{number}" for number in range(63)])


# -- intake ---------------------------------------------------------------------------------------------


def _bundle(*signers: Signer, trust_domain: str = _THEIRS, sequence: int = 1, hint_s: float = 300.0) -> TrustBundle:
    return TrustBundle(
        trust_domain=trust_domain,
        sequence=sequence,
        refresh_hint_s=hint_s,
        x509_der=tuple(der(signer.certificate) for signer in signers),
    )


def _accept(found: TrustBundle, in_force: TrustBundle | None = None, *others: TrustBundle) -> TrustBundle:
    return accept(write_bundle(found), trust_domain=_THEIRS, in_force=in_force, others=others, issuers=())


def test_a_newer_bundle_is_accepted_and_an_older_one_is_not() -> None:
    old, new = (_bundle(make_root(_THEIRS), sequence=number) for number in (5, 6))
    assert _accept(new, old) == new
    assert _accept(old, old) == old
    with pytest.raises(BundleError, match="gone back from 6 to 5"):
        _accept(old, new)


def test_bundles_that_would_not_fit_a_message_to_agents_are_refused() -> None:
    huge = [_bundle(*(make_root(name, key=rsa_key(4096)) for _ in range(64)), trust_domain=name) for name in "abc"]
    with pytest.raises(BundleError, match="all bundles together"):
        _accept(_bundle(make_root(_THEIRS)), None, *huge)


def test_long_names_of_keys_count_too() -> None:
    key = p256().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    keys = tuple(JwtKey(key_id=chr(0x20000 + number) * 256, public_key_der=key) for number in range(64))
    wordy = [replace(_bundle(trust_domain=name), jwt_keys=keys) for name in "abcd"]
    with pytest.raises(BundleError, match="all bundles together"):
        _accept(_bundle(make_root(_THEIRS)), None, *wordy)


def test_a_root_that_could_be_taken_for_ours_or_for_our_intermediate_is_refused() -> None:
    ours = make_root()
    intermediate = ours.intermediate()
    own = _bundle(ours, trust_domain=TRUST_DOMAIN)
    for copied in (ours, intermediate):
        identifier = copied.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        twin = make_root(_THEIRS, names=(), subject=copied.certificate.subject, key_identifier=identifier)
        with pytest.raises(BundleError, match="could not be told apart"):
            accept(
                write_bundle(_bundle(twin)),
                trust_domain=_THEIRS,
                in_force=None,
                others=[own],
                issuers=[ours.certificate, intermediate.certificate],
            )


def test_a_bundle_of_no_roots_is_accepted_and_trusts_nothing() -> None:
    assert _accept(_bundle(sequence=2), _bundle(make_root(_THEIRS))).x509_der == ()


def test_the_first_bundle_may_be_a_jwk_set_a_map_or_pem() -> None:
    root = make_root(_THEIRS)
    bundle = _bundle(root, sequence=7)
    assert read_bootstrap(write_bundle(bundle), trust_domain=_THEIRS) == bundle
    both = write_bundle_map([bundle, _bundle(make_root(), trust_domain=TRUST_DOMAIN)])
    assert read_bootstrap(both, trust_domain=_THEIRS) == bundle
    read = read_bootstrap(pem(root.certificate, root.certificate), trust_domain=_THEIRS)
    assert (read.x509_der, read.sequence) == (bundle.x509_der, 0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a JSON document"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PEM"),
        (pem(make_root().certificate), "other.example"),
        (pem(make_root(_THEIRS).leaf(f"spiffe://{_THEIRS}/a").certificate), "cA"),
        (b'{"trust_domains": {}}', "no bundle of"),
    ],
)
def test_a_first_bundle_that_is_none_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_bootstrap(data, trust_domain=_THEIRS)
    assert says in str(caught.value)


# -- when ------------------------------------------------------------------------------------------------


def test_the_hint_is_followed_up_to_a_tenth_early_within_bounds() -> None:
    def pause_s(hint_s: float | None, failures: int = 0, draw: float = 0.0) -> float:
        at = next_poll_at(at=_AT, refresh_hint_s=hint_s, failures=failures, draw=draw)
        return (at - _AT).total_seconds()

    assert pause_s(120) == 120
    assert pause_s(120, draw=1.0) == pytest.approx(108)
    assert pause_s(0) == 300
    assert pause_s(0.001) == 1
    assert pause_s(10**8) == 86_400


def test_a_failed_poll_waits_for_the_next_interval() -> None:
    for failures in (1, 2, 50):
        assert next_poll_at(at=_AT, refresh_hint_s=60, failures=failures, draw=0.0) == _AT + timedelta(seconds=60)


def test_without_any_bundle_it_is_tried_again_soon_and_ever_less_so() -> None:
    pauses = [
        (next_poll_at(at=_AT, refresh_hint_s=None, failures=failures, draw=0.0) - _AT).total_seconds()
        for failures in range(1, 12)
    ]
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 300


# -- the store -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    authority = make_authority(tmp_path)
    opened = Store.open(authority.config.database)
    yield opened
    opened.close()


def _no_check(_: list[FederatedDomain]) -> None:
    return None


def _names(store: Store) -> list[str]:
    return [bundle.trust_domain for bundle in assemble(store, trust_domain=TRUST_DOMAIN).bundles]


def test_what_is_added_is_trusted_after_our_own_and_what_is_removed_is_not(store: Store) -> None:
    version = store.trust.version()
    bundle = _bundle(make_root(_THEIRS))
    store.federation.add(
        _relation("a.example"), _bundle(make_root("a.example"), trust_domain="a.example"), check=_no_check
    )
    store.federation.add(_relation(), bundle, check=_no_check)
    assert _names(store) == [TRUST_DOMAIN, "a.example", _THEIRS]
    assert store.trust.version() == version + 2
    assert assemble(store, trust_domain=TRUST_DOMAIN).bundles[2] == bundle
    assert store.federation.remove(_THEIRS)
    assert _names(store) == [TRUST_DOMAIN, "a.example"]
    assert store.trust.version() == version + 3
    assert not store.federation.remove(_THEIRS)
    assert store.trust.version() == version + 3


def test_a_relation_without_a_bundle_trusts_nobody_until_one_came(store: Store) -> None:
    relation = replace(_relation(), profile=Profile.HTTPS_WEB, endpoint_id=None)
    version = store.trust.version()
    store.federation.add(relation, None, check=_no_check)
    assert _names(store) == [TRUST_DOMAIN]
    assert store.trust.version() == version
    bundle = _bundle(make_root(_THEIRS))
    assert store.federation.polled(relation, bundle, in_force=None, at=_AT, next_at=_AT + timedelta(seconds=60))
    assert _names(store) == [TRUST_DOMAIN, _THEIRS]
    (domain,) = store.federation.domains()
    assert (domain.relation, domain.bundle, domain.polled_at) == (relation, bundle, _AT)
    assert domain.next_poll_at == _AT + timedelta(seconds=60)


def test_what_the_check_refuses_changes_nothing(store: Store) -> None:
    def refuse(domains: list[FederatedDomain]) -> None:
        raise RelationError(f"{len(domains)} are enough")

    with pytest.raises(RelationError, match="0 are enough"):
        store.federation.add(_relation(), _bundle(make_root(_THEIRS)), check=refuse)
    assert store.federation.domains() == []


def test_the_same_bundle_again_is_no_change_of_the_trust(store: Store) -> None:
    relation, bundle = _relation(), _bundle(make_root(_THEIRS))
    store.federation.add(relation, bundle, check=_no_check)
    version = store.trust.version()
    assert not store.federation.polled(relation, bundle, in_force=bundle, at=_AT, next_at=_AT)
    assert store.trust.version() == version


def test_a_poll_of_a_relation_that_is_gone_or_another_changes_nothing(store: Store) -> None:
    relation, old, new = _relation(), _bundle(make_root(_THEIRS)), _bundle(make_root(_THEIRS), sequence=2)
    store.federation.add(relation, old, check=_no_check)
    store.federation.remove(_THEIRS)
    assert not store.federation.polled(relation, new, in_force=old, at=_AT, next_at=_AT)
    assert store.federation.domains() == []
    again = _relation(at=_AT + timedelta(seconds=1))
    store.federation.add(again, old, check=_no_check)
    assert not store.federation.polled(relation, new, in_force=old, at=_AT, next_at=_AT)
    store.federation.poll_failed(relation, "it is late", next_at=_AT)
    (domain,) = store.federation.domains()
    assert (domain.bundle, domain.failures, domain.problem) == (old, 0, "")


def test_of_two_replicas_that_poll_together_the_later_does_not_undo_the_earlier(store: Store) -> None:
    relation = _relation()
    first, second, third = (_bundle(make_root(_THEIRS), sequence=number) for number in (1, 2, 3))
    store.federation.add(relation, first, check=_no_check)
    assert store.federation.polled(relation, third, in_force=first, at=_AT, next_at=_AT)
    assert not store.federation.polled(relation, second, in_force=first, at=_AT, next_at=_AT)
    assert store.federation.domains()[0].bundle == third


def test_failures_are_counted_and_told_and_leave_the_bundle(store: Store) -> None:
    relation, bundle = _relation(), _bundle(make_root(_THEIRS))
    store.federation.add(relation, bundle, check=_no_check)
    version = store.trust.version()
    for _ in range(2):
        store.federation.poll_failed(relation, "no answer " + "x" * 1000, next_at=_AT + timedelta(seconds=9))
    (domain,) = store.federation.domains()
    assert (domain.bundle, domain.failures, len(domain.problem)) == (bundle, 2, 500)
    assert (store.trust.version(), domain.next_poll_at) == (version, _AT + timedelta(seconds=9))
    store.federation.polled(relation, bundle, in_force=bundle, at=_AT, next_at=_AT)
    assert store.federation.domains()[0].failures == 0
    assert store.federation.domains()[0].problem == ""


def test_one_or_all_can_be_asked_for_at_once(store: Store) -> None:
    for name in ("a.example", "b.example"):
        store.federation.add(_relation(name), None, check=_no_check)
        store.federation.poll_failed(_relation(name), "", next_at=_AT + timedelta(days=1))
    assert store.federation.refresh("a.example", at=_AT) == 1
    assert [domain.next_poll_at == _AT for domain in store.federation.domains()] == [True, False]
    assert store.federation.refresh(None, at=_AT) == 2
    assert store.federation.refresh("c.example", at=_AT) == 0


def test_a_stored_bundle_that_is_accepted_no_longer_is_told_and_trusts_nobody(store: Store) -> None:
    store.federation.add(_relation(), _bundle(make_root(_THEIRS)), check=_no_check)
    with store.database.transaction() as transaction:
        transaction.execute("UPDATE federation SET bundle = ?", (b'{"keys": 1}',))
    (domain,) = store.federation.domains()
    assert domain.bundle is None
    assert "not accepted" in domain.problem
    assert _names(store) == [TRUST_DOMAIN]
