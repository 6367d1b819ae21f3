"""Fuzz target: trust bundles as another trust domain's endpoint serves them.

Any bytes are a bundle or a ``BundleError``; what was understood is written back
as it was.
"""

import json
from dataclasses import replace

import atheris

with atheris.instrument_imports(include=["ca"]):
    from ca.bundle import BundleError, parse_bundle, parse_bundle_map, write_bundle

from tests.fuzz import harness
from tests.svid_vectors.bundles import bundle_vectors

_TRUST_DOMAIN = "cluster.local"


def target(data: bytes) -> None:
    try:
        bundles = [parse_bundle(data, trust_domain=_TRUST_DOMAIN)]
    except BundleError as error:
        assert str(error).isprintable()
        bundles = []
    try:
        bundles += parse_bundle_map(data).values()
    except BundleError as error:
        assert str(error).isprintable()
    for read in bundles:
        bundle = replace(read, refresh_hint_s=max(read.refresh_hint_s, 1))  # none is written that asks without pause
        assert parse_bundle(write_bundle(bundle), trust_domain=bundle.trust_domain) == bundle


def seeds() -> list[bytes]:
    return [vector.document for vector in bundle_vectors() if len(vector.document) < 16 * 1024]


def _write(document: object) -> bytes:
    return json.dumps(document).encode()


if __name__ == "__main__":
    errors = (ValueError, TypeError, RecursionError)
    harness.main("tests.fuzz.bundles", target, seeds(), harness.message_mutator(json.loads, _write, errors=errors))
