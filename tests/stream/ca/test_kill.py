"""kill -9 of an authority with SQLite, again and again at moments that nobody chose."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.authority_builder import make_authority
from tests.authority_load import load
from tests.authority_process import running

_ROUNDS = 12


@pytest.mark.deadline_s(120)
async def test_whenever_it_is_killed_every_certificate_that_left_is_recorded_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    authority = make_authority(tmp_path)
    authority.pod("web-1", node="node-1", account="web")
    received: list[int] = []

    for _round in range(_ROUNDS):
        async with running(authority) as (server, port), trio.open_nursery() as nursery:
            nursery.start_soon(server.read_on)
            async with load(authority, [port]) as asked:
                await asked.more(rng.randrange(1, 60))
                await trio.sleep(rng.uniform(0.0, 0.02))  # anywhere between two answers
                server.process.kill()
                await server.process.wait()
            received += asked.received
            nursery.cancel_scope.cancel()

        with closing(sqlite3.connect(authority.config.state_dir / "authority.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            journal = [int(serial, 16) for (serial,) in connection.execute("SELECT serial FROM certificates")]
        assert set(received) <= set(journal)

    assert len(received) == len(set(received)) > _ROUNDS
