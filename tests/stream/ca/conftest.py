"""One PostgreSQL for all tests of the authority; each has a database of its own in it."""

from collections.abc import Iterator

import pytest

from ca.authority.store.location import PostgresAddress
from tests.postgres_server import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Running; a test that stops it starts it again."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def address(postgres: PostgresServer) -> PostgresAddress:
    """An empty database."""
    return PostgresAddress.parse(postgres.url(postgres.new_database()), password_file=None, private=False)
