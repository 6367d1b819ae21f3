"""The table of live connections: found from the first moment, cut with the reason first, gone at the end."""

import trio
import trio.testing

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason
from node_agent.model import ObjectName, Workload
from node_agent.proxy.live import LiveConnections
from node_agent.telemetry.access_log import AccessLog
from node_agent.telemetry.connection_record import ConnectionRecord
from node_agent.telemetry.metrics import Metrics


class _Stories:
    """Connections that do nothing until they are cut or told to end."""

    def __init__(self) -> None:
        self.live = LiveConnections()
        self.log = AccessLog(metrics=Metrics(), node="node-1")
        self.ended: dict[str, ConnectionRecord] = {}

    async def run(self, name: str, uid: str, end: trio.Event) -> None:
        with self.log.connection("outbound") as record, self.live.track(record, uid):
            await end.wait()
        self.ended[name] = record


async def test_cut_ends_the_connections_of_one_workload_with_the_reason() -> None:
    stories = _Stories()
    async with trio.open_nursery() as nursery:
        end = trio.Event()
        for name, uid in (("a1", "a"), ("a2", "a"), ("b1", "b")):
            nursery.start_soon(stories.run, name, uid, end)
        await trio.testing.wait_all_tasks_blocked()
        assert len(stories.live.connections) == 3

        stories.live.cut_workload("a", CloseReason.WORKLOAD_REMOVED, "default/a was removed")
        await trio.testing.wait_all_tasks_blocked()
        assert {name: record.close_reason for name, record in stories.ended.items()} == {
            "a1": CloseReason.WORKLOAD_REMOVED,
            "a2": CloseReason.WORKLOAD_REMOVED,
        }
        assert stories.ended["a1"].detail == "default/a was removed"
        assert len(stories.live.connections) == 1
        end.set()
    assert stories.ended["b1"].close_reason is None
    assert not stories.live.connections


async def test_a_connection_in_a_scope_that_is_used_again_is_cut_by_it_and_only_while_it_lives() -> None:
    live, log = LiveConnections(), AccessLog(metrics=Metrics(), node="node-1")
    with trio.CancelScope() as scope:
        with log.connection("outbound") as record, live.track(record, "a", scope) as first:
            await trio.lowlevel.checkpoint()
        first.cut(CloseReason.DRAINED, "too late")
        assert not scope.cancel_called
        with log.connection("outbound") as record, live.track(record, "a", scope) as second:
            second.cut(CloseReason.DRAINED, "the agent goes down")
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert (record.close_reason, record.detail) == (CloseReason.DRAINED, "the agent goes down")
    assert not live.connections
    assert not log.open_connections


async def test_a_workload_that_is_gone_ends_the_connections_from_and_to_it_wherever_it_was() -> None:
    stories = _Stories()
    gone, other = _workload("gone"), _workload("other")
    async with trio.open_nursery() as nursery:
        end = trio.Event()
        for name, source, destination in (("from", gone, other), ("to", other, gone), ("neither", other, other)):
            nursery.start_soon(stories.run, name, "local", end)
            await trio.testing.wait_all_tasks_blocked()
            (record,) = [each._record for each in stories.live.connections if each._record.source is None]
            record.note(source=source, destination=destination)
        nursery.start_soon(stories.run, "unknown", "local", end)
        await trio.testing.wait_all_tasks_blocked()

        stories.live.cut_removed([gone])
        await trio.testing.wait_all_tasks_blocked()
        why = (CloseReason.WORKLOAD_REMOVED, "default/gone was removed")
        assert {name: (each.close_reason, each.detail) for name, each in stories.ended.items()} == {
            "from": why,
            "to": why,
        }
        end.set()


def _workload(name: str) -> Workload:
    return Workload(
        uid=name,
        name=ObjectName("default", name),
        service_account="default",
        node="node-1",
        addresses=(),
        identity=SpiffeId.workload("cluster.local", "default", "default"),
        enrolled=True,
    )


async def test_first_reason_stands() -> None:
    stories = _Stories()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stories.run, "a", "a", trio.Event())
        await trio.testing.wait_all_tasks_blocked()
        stories.live.cut_workload("a", CloseReason.WORKLOAD_REMOVED, "first")
        stories.live.cut_all(CloseReason.DRAINED, "second")
    assert (stories.ended["a"].close_reason, stories.ended["a"].detail) == (CloseReason.WORKLOAD_REMOVED, "first")


async def test_waiting_for_none_returns_when_the_last_has_ended_even_if_others_came() -> None:
    stories = _Stories()
    await stories.live.wait_until_none()
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        first, second = trio.Event(), trio.Event()

        async def wait() -> None:
            await stories.live.wait_until_none()
            done.set()

        nursery.start_soon(stories.run, "first", "a", first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        nursery.start_soon(stories.run, "second", "a", second)
        await trio.testing.wait_all_tasks_blocked()
        first.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        second.set()
    assert done.is_set()


async def test_cut_before_the_block_waits_for_anything_ends_its_first_wait() -> None:
    """Registered, then judged: a change that comes in between finds it."""
    live = LiveConnections()
    log = AccessLog(metrics=Metrics(), node="node-1")
    with log.connection("inbound") as record, live.track(record, "a"):
        live.cut_all(CloseReason.DRAINED, "")
        await trio.sleep_forever()
    assert record.close_reason is CloseReason.DRAINED
