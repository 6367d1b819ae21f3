"""Fuzz target: the certificate that a peer presents.

Any bytes are a certificate of an identity or an ``SvidError``, in text that may
be logged.
"""

from datetime import UTC, datetime

import atheris

with atheris.instrument_imports(include=["ca"]):
    from ca.svid import SvidError, check_dates, check_signing_certificate, identity_of, load_certificate, verify_chain

from tests.certificates import TRUST_DOMAIN, der
from tests.fuzz import der as tree
from tests.fuzz import harness
from tests.svid_vectors.chains import vectors

_AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def target(data: bytes) -> None:
    try:
        certificate = load_certificate(data)
    except SvidError as error:
        assert str(error).isprintable()
        return
    try:
        identity = identity_of(certificate)
        assert str(identity).isascii()
        check_dates(certificate, at=_AT)
    except SvidError as error:
        assert str(error).isprintable()
    try:
        check_signing_certificate(certificate, trust_domain=TRUST_DOMAIN)
    except SvidError as error:
        assert str(error).isprintable()
    try:
        assert verify_chain([certificate, certificate], trust_domain=TRUST_DOMAIN).trust_domain == TRUST_DOMAIN
    except SvidError as error:
        assert str(error).isprintable()


def seeds() -> list[bytes]:
    return [der(vector.leaf.certificate) for vector in vectors()]


if __name__ == "__main__":
    harness.main("tests.fuzz.certificates", target, seeds(), tree.mutate)
