"""Signing of JWT-SVIDs over a real store: PyJWT verifies what we sign; keys change over and nothing is lost."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca.authority.errors import Refusal
from ca.authority.jwt import JwtSigner
from ca.authority.jwt_rotation import LONGEST_TTL, PUBLISH_AHEAD
from ca.authority.records import AuthorityState
from ca.authority.store import JournalEntry, JwtRecord, Store
from ca.authority.store.jwt_keys import KEEP
from ca.authority.trust_assembly import own_bundle
from ca.jwt_svid import JwtSvid
from ca.messages import RefusalCode
from tests.authority_builder import PASSPHRASE, TRUST_DOMAIN, Authority, make_authority, workload

AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
WEB: Final = workload("web")
LIFETIME: Final = timedelta(days=7)
TTL: Final = timedelta(minutes=5)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def store(authority: Authority) -> Store:
    return Store.open(authority.config.database)


@pytest.fixture
def signer(store: Store) -> JwtSigner:
    made = JwtSigner(store=store, passphrase=PASSPHRASE, ttl=TTL, lifetime=LIFETIME)
    made.tend(at=AT)
    return made


def verified(store: Store, token: str, *, at: datetime = AT, audience: str = "db") -> JwtSvid:
    keys = {key.key_id: key.public_key_der for key in store.jwt_keys.published()}
    return JwtSvid.verify(token, audience=audience, public_key_of=lambda _, key_id: keys.get(key_id), at=at)


def test_another_library_verifies_what_we_sign(store: Store, signer: JwtSigner) -> None:
    signed = signer.sign(WEB, ("db", "cache"), ttl=None, at=AT)
    (key,) = store.jwt_keys.published()
    claims = jwt.decode(
        signed.token,
        load_der_public_key(key.public_key_der),  # type: ignore[arg-type]
        algorithms=["ES256"],
        audience="cache",
        options={"verify_exp": False, "verify_iat": False},
    )
    begin = int(AT.timestamp())
    assert claims == {
        "sub": str(WEB),
        "aud": ["db", "cache"],
        "exp": begin + 300,
        "iat": begin,
        "jti": signed.token_id,
    }
    assert jwt.get_unverified_header(signed.token) == {"alg": "ES256", "kid": key.key_id, "typ": "JWT"}
    assert (signed.issued_at, signed.not_after, signed.key_id) == (AT, AT + TTL, key.key_id)
    assert signed.token not in repr(signed)


def test_every_token_is_another_one(signer: JwtSigner) -> None:
    tokens = {signer.sign(WEB, ("db",), ttl=None, at=AT).token_id for _ in range(50)}
    assert len(tokens) == 50


@pytest.mark.parametrize(
    ("audience", "ttl_s", "says"),
    [
        ((), 300, "JWT-SVID 3.2"),
        (("",), 300, "JWT-SVID 3.2"),
        (("a", "a"), 300, "JWT-SVID 3.2"),
        (("db",), 29, "30 to 3600 s"),
        (("db",), 3601, "30 to 3600 s"),
        (("db",), 0.5, "30 to 3600 s"),
    ],
)
def test_what_is_out_of_bounds_is_a_bad_request(
    signer: JwtSigner, audience: tuple[str, ...], ttl_s: float, says: str
) -> None:
    with pytest.raises(Refusal, match="JWT-SVID") as refusal:
        signer.sign(WEB, audience, ttl=timedelta(seconds=ttl_s), at=AT)
    assert refusal.value.code is RefusalCode.BAD_REQUEST
    assert says in refusal.value.text


def test_without_a_key_nothing_is_signed(store: Store) -> None:
    signer = JwtSigner(store=store, passphrase=PASSPHRASE, ttl=TTL, lifetime=LIFETIME)
    with pytest.raises(Refusal) as refusal:
        signer.sign(WEB, ("db",), ttl=None, at=AT)
    assert refusal.value.code is RefusalCode.UNAVAILABLE


def test_a_key_that_can_not_be_read_says_nothing_of_the_disk(store: Store, signer: JwtSigner) -> None:
    other = JwtSigner(store=store, passphrase=b"another passphrase!", ttl=TTL, lifetime=LIFETIME)
    with pytest.raises(Refusal) as refusal:
        other.sign(WEB, ("db",), ttl=None, at=AT)
    assert refusal.value.code is RefusalCode.UNAVAILABLE
    assert "/" not in refusal.value.text


def test_the_key_is_encrypted_and_its_owners_only(authority: Authority, store: Store, signer: JwtSigner) -> None:
    (key,) = store.jwt_keys.published()
    path = authority.config.keys_dir / f"{key.key_id}.pem"
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_changes_over_while_everything_that_was_signed_stays_good(store: Store, signer: JwtSigner) -> None:
    first = signer.sign(WEB, ("db",), ttl=None, at=AT)
    half, end = AT + LIFETIME / 2, AT + LIFETIME

    signer.tend(at=half)
    assert [key.state for key in store.jwt_keys.read()] == [AuthorityState.ACTIVE, AuthorityState.PREPARED]
    assert signer.sign(WEB, ("db",), ttl=None, at=half).key_id == first.key_id

    last = signer.sign(WEB, ("db",), ttl=LONGEST_TTL, at=end)
    signer.tend(at=end)
    next_one = signer.sign(WEB, ("db",), ttl=None, at=end)
    assert (last.key_id, next_one.key_id != first.key_id) == (first.key_id, True)
    assert verified(store, next_one.token, at=end).key_id == next_one.key_id

    signer.tend(at=last.not_after)
    assert verified(store, last.token, at=last.not_after).key_id == last.key_id
    signer.tend(at=last.not_after + timedelta(minutes=5))
    assert [key.key_id for key in store.jwt_keys.published()] == [next_one.key_id]


def test_the_private_half_of_a_forgotten_key_is_destroyed(
    authority: Authority, store: Store, signer: JwtSigner
) -> None:
    (old,) = store.jwt_keys.published()
    for at in (AT + LIFETIME / 2, AT + LIFETIME, AT + LIFETIME + timedelta(hours=2)):
        signer.tend(at=at)
    assert old not in store.jwt_keys.published()
    assert not (authority.config.keys_dir / f"{old.key_id}.pem").exists()


def test_every_change_of_the_keys_is_a_new_version_and_a_new_sequence_of_the_bundle(
    store: Store, signer: JwtSigner
) -> None:
    seen = []
    for at in (AT, AT + LIFETIME / 2, AT + LIFETIME, AT + LIFETIME + timedelta(hours=2)):
        signer.tend(at=at)
        bundle = own_bundle(store, trust_domain=TRUST_DOMAIN)
        seen.append((store.trust.version(), bundle.sequence, len(bundle.jwt_keys)))
    versions, sequences, counts = zip(*seen, strict=True)
    assert counts == (1, 2, 2, 1)
    assert list(versions) == sorted(set(versions))
    assert sequences[0] < sequences[1] == sequences[2] < sequences[3]  # to activate changes nothing that is published


def test_two_replicas_prepare_one_key(store: Store, authority: Authority) -> None:
    signers = [
        JwtSigner(store=Store.open(authority.config.database), passphrase=PASSPHRASE, ttl=TTL, lifetime=LIFETIME)
        for _ in range(2)
    ]
    for signer in signers:
        signer.tend(at=AT)
    for signer in signers:
        signer.tend(at=AT + LIFETIME - PUBLISH_AHEAD)
    assert [key.state for key in store.jwt_keys.read()] == [AuthorityState.ACTIVE, AuthorityState.PREPARED]
    assert len({signer.sign(WEB, ("db",), ttl=None, at=AT).key_id for signer in signers}) == 1


def test_the_journal_of_tokens_is_read_back_and_pruned_a_month_after_their_end(store: Store, signer: JwtSigner) -> None:
    record = JwtRecord(
        token_id="ab",
        identity=str(WEB),
        node="node-1",
        audience=("db", "caché"),
        issued_at=AT,
        not_after=AT + TTL,
        key_id="k",
        attestation="node_certificate",
        requester="[::1]:1",
    )
    assert store.journal_all([JournalEntry(jwts=(record,))], at=AT) == [True]
    assert store.jwt_keys.issued() == [record]
    assert store.jwt_keys.issued(identity="spiffe://cluster.local/x") == []
    signer.tend(at=AT + TTL + KEEP)
    assert store.jwt_keys.issued(identity=str(WEB)) == [record]
    signer.tend(at=AT + TTL + KEEP + timedelta(seconds=1))
    assert store.jwt_keys.issued() == []
