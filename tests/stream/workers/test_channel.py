"""One end of the socket pair: order, descriptors, big messages, ends."""

import contextlib
import itertools
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from ca.errors import WireError
from node_agent.workers import messages as say
from node_agent.workers.channel import Channel, Received
from tests.manifest_builder import pod
from tests.property.test_worker_messages import CONFIG


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Channel, Channel]]:
    """The parent's and the worker's end; both write."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent, worker = Channel(one, receives=say.ToParent), Channel(other, receives=say.ToWorker)

    async def write(channel: Channel) -> None:
        with contextlib.suppress(OSError):  # the other end has gone
            await channel.write()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, parent)
            nursery.start_soon(write, worker)
            yield parent, worker
            nursery.cancel_scope.cancel()
    finally:
        parent.close()
        worker.close()


def part(count: int) -> say.RegistryPart:
    return say.RegistryPart(upserts=tuple(pod(f"web-{number}", "10.0.0.1") for number in range(count)), is_last=True)


async def test_messages_arrive_in_order_also_those_made_when_their_turn_comes() -> None:
    async with pair() as (parent, worker):
        parent.post(say.LogLevel(level="1"))
        parent.post_lazily(say.LogLevel(level=str(number)) for number in (2, 3))
        parent.post_frame(say.encode_message(say.LogLevel(level="4")))
        received: list[str] = []
        while len(received) < 4:
            received += [message.level for message, _ in await worker.receive()]
        assert received == ["1", "2", "3", "4"]


async def test_descriptors_arrive_with_their_message_and_refer_to_the_same_file() -> None:
    async with pair() as (parent, worker):
        start = say.Start(worker=1, workers=1, run="r", config=CONFIG, log_level="info", trust=b"")
        passed = [os.memfd_create(name) for name in ("one", "two", "three")]
        parent.post(part(2000))  # more than one write takes
        parent.post(start, passed)
        inodes = [os.fstat(fd).st_ino for fd in passed]
        for fd in passed:
            os.close(fd)  # posted is posted
        parent.post(say.Drain())
        received: list[Received] = []
        while len(received) < 3:
            received += await worker.receive()
        assert [type(each.message) for each in received] == [say.RegistryPart, say.Start, say.Drain]
        assert [len(each.descriptors) for each in received] == [0, 3, 0]
        assert [os.fstat(fd).st_ino for fd in received[1].descriptors] == inodes
        assert not any(os.get_inheritable(fd) for fd in received[1].descriptors)
        for fd in received[1].descriptors:
            os.close(fd)


async def test_whoever_posts_does_not_wait_for_a_reader() -> None:
    async with pair() as (parent, worker):
        for _ in range(12):
            parent.post(say.LogLevel(level="x" * 1_000_000))  # together more than the kernel keeps
        with trio.move_on_after(0.05) as not_flushed:
            await parent.flush()
        assert not_flushed.cancelled_caught
        received = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent.flush)
            while received < 12:
                received += len(await worker.receive())


async def test_the_end_of_the_other_side_is_an_empty_answer_after_its_last_message() -> None:
    async with pair() as (parent, worker):
        worker.post(say.Ready())
        await worker.flush()
        worker.close()
        assert [type(message) for message, _ in await parent.receive()] == [say.Ready]
        assert await parent.receive() == []
        parent.post(say.Drain())  # nobody is there: no error here, where nobody could do anything about it


async def test_descriptors_that_did_not_find_their_way_are_closed(open_descriptors: Iterator[int]) -> None:
    before = next(open_descriptors)
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent = Channel(one, receives=say.ToParent)
    start = say.Start(worker=1, workers=1, run="r", config=CONFIG, log_level="info", trust=b"")
    lock = os.memfd_create("lock")
    parent.post(start, [lock] * 3)
    parent.close()
    parent.post(start, [lock] * 3)
    os.close(lock)
    other.close()
    assert next(open_descriptors) == before


@pytest.fixture
def open_descriptors() -> Iterator[int]:
    """Counts this process's descriptors, each time it is asked."""
    return (len(os.listdir("/proc/self/fd")) for _ in itertools.count())


async def test_what_is_no_message_of_the_other_side_is_refused() -> None:
    async with pair() as (parent, worker):
        parent.post(say.Ready())  # a worker's word
        with pytest.raises(WireError):
            await worker.receive()


async def test_a_message_without_its_descriptors_is_refused() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    worker = Channel(other, receives=say.ToWorker)
    with one:
        start = say.Start(worker=1, workers=1, run="r", config=CONFIG, log_level="info", trust=b"")
        one.sendall(say.encode_message(start))
        with pytest.raises(WireError, match="descriptors"):
            await worker.receive()
    worker.close()


async def test_descriptors_arrive_at_a_process_that_has_none_left() -> None:
    """A worker with as many connections as it may have must still be able to take in a pod, and the next one."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    parent, worker = Channel(one, receives=say.ToParent), Channel(other, receives=say.ToWorker, spare_descriptors=3)
    start = say.Start(worker=1, workers=1, run="r", config=CONFIG, log_level="info", trust=b"")
    lock = os.memfd_create("lock")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    arrived: list[Received] = []

    async def receive() -> None:
        arrived.extend(await worker.receive())

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent.write)
            for turn in range(2):
                with trio.fail_after(30):
                    async with trio.open_nursery() as receiving:
                        receiving.start_soon(receive)
                        await trio.testing.wait_all_tasks_blocked()  # it has its spare ones
                        parent.post(start, [lock] * 3)
                        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
                        with contextlib.suppress(OSError):
                            while True:
                                taken.append(os.dup(lock))
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                assert [len(each.descriptors) for each in arrived] == [3] * (turn + 1)
            nursery.cancel_scope.cancel()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in [lock, *taken, *(fd for each in arrived for fd in each.descriptors)]:
            os.close(fd)
        parent.close()
        worker.close()
