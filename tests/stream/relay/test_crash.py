"""A bug that ends the relay loop ends the agent: nothing may wait for a loop that turns no more."""

import trio
import trio.testing

from node_agent.relay import Relay
from tests.relay_builder import tcp_pair


async def test_connections_of_a_crashed_relay_can_be_cancelled() -> None:
    crashes: list[BaseException] = []
    relay = Relay(on_crash=crashes.append)
    sockets = [*tcp_pair(), *tcp_pair()]
    _, first, second, _ = sockets
    for sock in (first, second):
        sock.setblocking(False)

    def bug() -> None:
        raise ZeroDivisionError

    with trio.fail_after(30):
        async with trio.open_nursery() as connections:
            connections.start_soon(relay.run_plain, first, second, lambda _pair: None)
            await trio.testing.wait_all_tasks_blocked()
            relay._loop.call_soon(bug)
            while not crashes:
                await trio.sleep(0.01)
            connections.cancel_scope.cancel()

    assert [type(error) for error in crashes] == [ZeroDivisionError]
    relay.close()
    for sock in sockets:
        sock.close()
