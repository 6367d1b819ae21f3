"""A typing error and a restart together do not open what a policy closes."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ca.manifests import DirectoryState
from node_agent.registry import Update
from node_agent.registry.file_source import FileSource
from node_agent.registry.good_copies import GoodCopies

PATIENCE_S = 40.0
DENY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {action: DENY, rules: [{}]}
"""
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.1.0.1}\n"


class Agent:
    """The source of one agent's life, and what it has told."""

    def __init__(self) -> None:
        self.states: list[DirectoryState] = []

    def __call__(self, _: Update, state: DirectoryState) -> None:
        self.states.append(state)

    @property
    def names(self) -> set[str]:
        return {key.name for key in self.states[-1].objects}

    @property
    def problems(self) -> list[str]:
        return [problem.path for problem in self.states[-1].problems]


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    (tmp_path / "manifests").mkdir()
    return tmp_path / "manifests"


@asynccontextmanager
async def running(manifests: Path) -> AsyncIterator[Agent]:
    """An agent from its start to its end; the next one has the same state directory."""
    agent = Agent()
    source = FileSource(manifests, poll_interval_s=0.02, copies=GoodCopies(manifests.parent / "state" / "manifests"))
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run, agent)
        yield agent
        nursery.cancel_scope.cancel()


def write(path: Path, text: str) -> None:
    path.with_name(".new").write_text(text)
    path.with_name(".new").rename(path)


async def until_told(agent: Agent, *, names: set[str]) -> None:
    with trio.fail_after(PATIENCE_S):
        while agent.names != names:
            await trio.sleep(0.01)


async def test_a_policy_that_was_good_is_in_force_after_a_restart_with_a_broken_file(manifests: Path) -> None:
    write(manifests / "a.yaml", f"{POD}---\n{DENY}")
    async with running(manifests) as agent:
        assert agent.names == {"a", "closed"}
    write(manifests / "a.yaml", DENY.replace("rules", "rule"))
    for _ in range(2):  # the copy outlives an agent that used it
        async with running(manifests) as agent:
            assert agent.names == {"a", "closed"}
            assert agent.problems == ["spec.rule"], "it is said all the same"

    async with running(manifests) as agent:
        write(manifests / "a.yaml", POD.replace("name: a", "name: b"))
        await until_told(agent, names={"b"})
    write(manifests / "a.yaml", "nonsense")
    async with running(manifests) as agent:
        assert agent.names == set(), "the version without policies was the last good one"


async def test_a_change_while_the_agent_runs_is_kept_too(manifests: Path) -> None:
    async with running(manifests) as agent:
        write(manifests / "late.yaml", DENY)
        await until_told(agent, names={"closed"})
        write(manifests / "late.yaml", DENY.replace("closed", "later"))
        await until_told(agent, names={"later"})
    write(manifests / "late.yaml", "\t")
    async with running(manifests) as agent:
        assert agent.names == {"later"}


async def test_what_was_removed_while_no_agent_ran_does_not_come_back(manifests: Path) -> None:
    write(manifests / "a.yaml", DENY)
    async with running(manifests):
        pass
    (manifests / "a.yaml").unlink()
    async with running(manifests) as agent:
        assert agent.names == set()
    write(manifests / "a.yaml", "nonsense")
    async with running(manifests) as agent:
        assert agent.names == set()


async def test_files_without_policies_are_not_kept(manifests: Path) -> None:
    write(manifests / "pods.yaml", POD)
    async with running(manifests):
        pass
    assert not (manifests.parent / "state").exists()


async def test_copies_are_for_the_agent_alone(manifests: Path) -> None:
    write(manifests / "a.yaml", DENY)
    async with running(manifests):
        pass
    kept = manifests.parent / "state" / "manifests"
    assert [each.name for each in kept.iterdir()] == ["a.yaml"]
    assert (kept.stat().st_mode & 0o777, (kept / "a.yaml").stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize("which", ["the copy", "its directory"])
async def test_a_copy_that_others_can_write_is_not_believed(
    manifests: Path, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(manifests / "a.yaml", DENY)
    async with running(manifests):
        pass
    kept = manifests.parent / "state" / "manifests"
    (kept if which == "its directory" else kept / "a.yaml").chmod(0o777)
    write(manifests / "a.yaml", "nonsense")
    async with running(manifests) as agent:
        assert agent.names == set()
    assert "can be written by others" in caplog.text


async def test_a_copy_that_can_not_be_kept_is_said_and_stops_nothing(
    manifests: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (manifests.parent / "state").write_text("a file where a directory should be")
    write(manifests / "a.yaml", DENY)
    async with running(manifests) as agent:
        assert agent.names == {"closed"}
    assert "no copy of this good version could be kept" in caplog.text


async def test_a_copy_that_was_cut_short_is_not_used(manifests: Path) -> None:
    write(manifests / "a.yaml", DENY)
    async with running(manifests):
        pass
    kept = manifests.parent / "state" / "manifests" / "a.yaml"
    os.truncate(kept, 60)
    write(manifests / "a.yaml", "nonsense")
    async with running(manifests) as agent:
        assert agent.names == set()
