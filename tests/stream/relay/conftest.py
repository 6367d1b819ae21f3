"""One set of certificates for all, one relay loop for each test."""

from collections.abc import Iterator

import pytest

from tests.relay_builder import RelayBench, TlsPairs


@pytest.fixture(scope="session")
def tls_pairs() -> TlsPairs:
    return TlsPairs()


@pytest.fixture
def bench(tls_pairs: TlsPairs) -> Iterator[RelayBench]:
    made = RelayBench(tls_pairs)
    yield made
    made.close()
