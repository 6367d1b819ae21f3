"""Real worker processes, and the parent's side of them: start, state, crash, drain, end."""

import json
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import trio

from ca.manifests import ManifestObject
from ca.spiffe import SpiffeId
from ca.trust import Trust, TrustBundle
from node_agent.config import CaSection, Config, HostPort, NodeSection
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Credentials, Identities
from node_agent.registry import Update
from node_agent.telemetry.log_levels import LogLevels
from node_agent.telemetry.logs import make_stream_locks
from node_agent.workers import messages as say
from node_agent.workers.figures import OPEN, RESIDENT_BYTES
from node_agent.workers.group import State, Workers
from node_agent.workers.ledger import SharedLedger
from node_agent.workers.messages import pack_trust
from node_agent.workers.process import NoAnswer, WorkerProcess
from tests.certificates import TRUST_DOMAIN, der, make_root
from tests.manifest_builder import meshed_namespace, pod

CONFIG = Config(
    agent=NodeSection(node="node-1", trust_domain=TRUST_DOMAIN, workers=2),
    ca=CaSection(address=(HostPort(host="192.0.2.1", port=15012),), bundle_file=Path("/nowhere/bundle.pem")),
)


@dataclass
class Parent:
    """What feeds the workers, and the workers."""

    workers: Workers
    hopeless: list[str] = field(default_factory=list)

    def pids(self) -> list[int]:
        return [cast(int, row["pid"]) for row in self.workers.status(trio.current_time())]

    async def until_ready(self) -> None:
        with trio.fail_after(30):
            while self.workers.not_ready() or self.states() != ["ready", "ready"]:
                await trio.sleep(0.01)

    def states(self) -> list[object]:
        return [row["state"] for row in self.workers.status(trio.current_time())]


class NoIdentities:
    """Nobody has one."""

    async def wait_for(self, identity: SpiffeId) -> Credentials:
        raise ConnectionFailure(CloseReason.IDENTITY_UNAVAILABLE, f"{identity}: none here")


def trust() -> Trust:
    root = der(make_root().certificate)
    bundle = TrustBundle(trust_domain=TRUST_DOMAIN, sequence=1, refresh_hint_s=60.0, x509_der=(root,))
    return Trust(version=1, bundles=(bundle,))


@asynccontextmanager
async def running(objects: Iterable[ManifestObject] = ()) -> AsyncIterator[Parent]:
    packed = pack_trust(trust())
    locks = make_stream_locks()
    hopeless: list[str] = []
    workers = Workers(
        config=CONFIG,
        state=State(objects=lambda: objects, trust=lambda: packed, credentials=list),
        identities=cast(Identities, NoIdentities()),
        stream_locks=locks,
        on_hopeless=hopeless.append,
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(workers.run)
            yield Parent(workers, hopeless)
            nursery.cancel_scope.cancel()
    finally:
        for lock in locks:
            os.close(lock)


def is_gone(pid: int) -> bool:
    """Whether there is not even a zombie of it."""
    return not Path(f"/proc/{pid}").exists()


async def test_workers_are_ready_with_their_state_answer_and_end_when_they_have_drained() -> None:
    objects: tuple[ManifestObject, ...] = (
        meshed_namespace(),
        *(pod(f"web-{number}", f"10.0.0.{number}") for number in range(200)),
    )
    async with running(objects) as parent:
        await parent.until_ready()
        pids = parent.pids()
        await parent.workers.refresh(say.Topic.COUNTS)
        assert parent.workers.figures.count(OPEN) == 0
        assert all(parent.workers.figures.count(RESIDENT_BYTES, worker=number) > 10 << 20 for number in (1, 2))
        await parent.workers.refresh(say.Topic.METRICS)
        names = {family.name for family in parent.workers.figures.families(())}
        assert {"ringfence_connections_open", "ringfence_tunnels_idle", "ringfence_process_open_fds"} <= names
        parent.workers.drain()
        with trio.fail_after(30):
            await parent.workers.pods.wait_until_none()
        assert all(map(is_gone, pids))
        assert parent.workers.crashes == 0


async def test_a_worker_logs_as_it_is_told_also_one_that_is_started_later(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with running() as parent:
        await parent.until_ready()
        parent.workers.set_log_levels(LogLevels(level="error", modules={"ringfence.worker": "debug"}))
        os.kill(parent.pids()[0] or 0, signal.SIGKILL)
        said = ""
        with trio.fail_after(30):
            while "the first state is complete" not in said:
                await trio.sleep(0.01)
                said += capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if "the first state is complete" in line]
    told = json.loads(line)
    assert (told["logger"], told["level"], told["worker"]) == ("ringfence.worker", "debug", 1)


async def test_every_worker_is_profiled_and_looked_into() -> None:
    async with running() as parent:
        await parent.until_ready()
        parent.workers.start_profile(0.2)
        with trio.fail_after(30):
            while True:
                await parent.workers.refresh(say.Topic.PROFILE)
                profiles = parent.workers.figures.debugging(say.Topic.PROFILE)
                if len(profiles) == 2 and not any(each["running"] for each in profiles):
                    break
                await trio.sleep(0.01)
        assert [each["process"] for each in profiles] == ["worker 1", "worker 2"]
        assert [each["pid"] for each in profiles] == parent.pids()
        assert all(each["seconds"] == 0.2 for each in profiles)
        await parent.workers.refresh(say.Topic.STACKS)
        for each in parent.workers.figures.debugging(say.Topic.STACKS):
            assert "Worker.run" in str(each["tasks"])


async def test_a_worker_that_is_killed_is_replaced_and_gets_the_state_of_that_moment() -> None:
    async with running([meshed_namespace()]) as parent:
        await parent.until_ready()
        first, second = parent.pids()
        parent.workers.update(Update(upserts=(pod("late", "10.0.0.1"),)))
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(30):
            while parent.pids()[0] in {first, None}:
                await trio.sleep(0.01)
        await parent.until_ready()
        assert parent.pids()[1] == second
        assert is_gone(first)
        assert parent.workers.crashes == 1
        await parent.workers.settled()


async def test_cancelling_leaves_no_process_behind() -> None:
    async with running() as parent:
        await parent.until_ready()
        pids = parent.pids()
    assert all(map(is_gone, pids))


async def test_a_worker_that_does_not_answer_keeps_its_last_figures_and_nobody_waiting() -> None:
    async with running() as parent:
        await parent.until_ready()
        await parent.workers.refresh(say.Topic.COUNTS)
        first, _ = parent.pids()
        before = parent.workers.figures.count(RESIDENT_BYTES, worker=1)
        os.kill(first, signal.SIGSTOP)
        try:
            with trio.fail_after(30):
                await parent.workers.refresh(say.Topic.COUNTS)
            assert parent.workers.figures.count(RESIDENT_BYTES, worker=1) == before
        finally:
            os.kill(first, signal.SIGCONT)


@asynccontextmanager
async def one_worker() -> AsyncIterator[tuple[WorkerProcess, list[say.Message]]]:
    """A worker process alone, and what it says; its channel ends with the block."""
    worker = WorkerProcess(1, now=0.0)
    said: list[say.Message] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run, lambda _, message, __: said.append(message))
        yield worker, said
        nursery.cancel_scope.cancel()


def post_start(worker: WorkerProcess) -> None:
    locks = make_stream_locks()
    start = say.Start(worker=1, workers=1, run="r.1", config=CONFIG, log_level="info", trust=pack_trust(trust()))
    ledger, counts = SharedLedger.create(1)
    ledger.close()
    worker.channel.post(start, (*locks, counts))
    for fd in (*locks, counts):
        os.close(fd)


async def until(said: list[say.Message], kind: type) -> None:
    with trio.fail_after(30):
        while not any(isinstance(message, kind) for message in said):
            await trio.sleep(0.01)


async def test_a_worker_that_hears_its_messages_one_by_one_waits_for_each() -> None:
    async with one_worker() as (worker, said):
        post_start(worker)
        with pytest.raises(NoAnswer):  # longer than it takes to start
            await worker.ask(say.Topic.LOADS, deadline_s=0.0)
        assert await worker.ask(say.Topic.LOADS, deadline_s=20.0) == []
        worker.channel.post(say.RegistryPart(upserts=(meshed_namespace(),), is_last=True))
        assert await worker.ask(say.Topic.CONNECTIONS, deadline_s=20.0) == []
        worker.channel.post(say.StateComplete())
        await until(said, say.Ready)
        assert worker.exit_code is None


async def test_a_worker_ends_by_itself_when_its_channel_does() -> None:
    async with one_worker() as (worker, said):
        post_start(worker)
        worker.channel.post(say.StateComplete())
        await until(said, say.Ready)
    assert worker.exit_code == 1
    with pytest.raises(NoAnswer):
        await worker.ask(say.Topic.COUNTS, deadline_s=20.0)


async def test_a_worker_that_hangs_is_killed_when_its_channel_has_ended() -> None:
    async with one_worker() as (worker, said):
        post_start(worker)
        worker.channel.post(say.StateComplete())
        await until(said, say.Ready)
        os.kill(worker.pid, signal.SIGSTOP)
    assert worker.exit_code == -signal.SIGKILL
