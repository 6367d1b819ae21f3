"""The CA is told that a change of trust is in force when it is, in every process."""

from pathlib import Path

import trio

from tests.authority_builder import Authority, serving
from tests.stream.identity.test_trust_watch import (
    WEB,
    _impatient,
    acknowledged,
    agent,
    authority,
    changed,
    revoke,
)

__all__ = ["_impatient", "authority"]


async def test_a_revocation_is_acknowledged_after_the_other_processes_have_it(
    tmp_path: Path, authority: Authority
) -> None:
    they_have_it = trio.Event()
    asked: list[int] = []
    async with serving(authority) as port, agent(tmp_path, authority, port) as made:
        await made.until(lambda: made.watch.acknowledged)
        before = made.watch.acknowledged

        async def settled() -> None:
            asked.append(made.trust.version)
            await they_have_it.wait()

        made.watch.settled = settled
        await changed(authority, revoke(WEB))
        await made.until(lambda: asked)
        version = made.trust.version
        assert asked == [version]  # this process judges by it already, before it asks the others
        assert made.trust.revocation_of(WEB) is not None
        assert made.watch.acknowledged == before
        assert ("node-1", version) not in acknowledged(authority)

        they_have_it.set()
        await made.until(lambda: ("node-1", version) in acknowledged(authority))
