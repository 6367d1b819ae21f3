"""Clients that ask an authority without a pause, and remember every certificate that they received."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from ca.client import CaClient, load_chain
from ca.errors import CaError
from ca.tls import KeyAndChain
from tests.authority_builder import Authority, attested, sign, workload


class Load:
    """Clients that ask without a pause, and what they received."""

    def __init__(self, client: CaClient, own: KeyAndChain) -> None:
        self._client = client
        self.own = own
        self.received: list[int] = []
        self.failures: list[CaError] = []

    async def run(self) -> None:
        while True:
            try:
                reply = await sign(self._client, self.own, *[workload("web")] * 5)
            except CaError as error:
                self.failures.append(error)
                await trio.sleep(0.01)
                continue
            self.received += [load_chain(each.chain_der)[0].serial_number for each in reply.certificates]

    async def more(self, count: int) -> None:
        """Wait for so many more certificates."""
        wanted = len(self.received) + count
        while len(self.received) < wanted:
            await trio.sleep(0.005)


@asynccontextmanager
async def load(authority: Authority, ports: Sequence[int]) -> AsyncIterator[Load]:
    own = await attested(authority, authority.client(*ports), "node-1")
    made = Load(authority.client(*ports), own)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()
