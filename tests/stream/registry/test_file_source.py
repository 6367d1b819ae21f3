"""A real directory, real file events: what the source tells, and what does not stop it."""

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ca.manifests import DirectoryState, ObjectKey, Pod
from node_agent.registry import Update
from node_agent.registry import file_source as module
from node_agent.registry.file_source import FileSource

PATIENCE_S = 40.0


class Told:
    """Everything that the source has told, and a way to wait for it."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.states: list[DirectoryState] = []
        self._news = trio.Event()

    def __call__(self, update: Update, state: DirectoryState) -> None:
        self.updates.append(update)
        self.states.append(state)
        self._news.set()
        self._news = trio.Event()

    @property
    def state(self) -> DirectoryState:
        return self.states[-1]

    @property
    def addresses(self) -> dict[str, str]:
        return {key.name: each.addresses[0] for key, each in self.state.objects.items() if isinstance(each, Pod)}

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await self._news.wait()


@asynccontextmanager
async def following(directory: Path, *, poll_interval_s: float = 0.05) -> AsyncIterator[Told]:
    told = Told()
    async with trio.open_nursery() as nursery:
        await nursery.start(FileSource(directory, poll_interval_s=poll_interval_s).run, told)
        yield told
        nursery.cancel_scope.cancel()


def pod(name: str, ip: str) -> str:
    return f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {ip}}}\n"


def put(directory: Path, name: str, text: str) -> None:
    (directory / f".{name}.new").write_text(text)
    (directory / f".{name}.new").rename(directory / name)


@pytest.fixture(params=["with inotify", "without inotify"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without inotify":

        def refuse(directory: Path) -> None:
            raise OSError(28, "no more watches", str(directory))

        monkeypatch.setattr(module, "DirectoryWatch", refuse)


@pytest.mark.usefixtures("either_way")
async def test_files_that_come_change_and_go_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", pod("a", "10.1.0.1"))
    async with following(tmp_path) as told:
        assert told.addresses == {"a": "10.1.0.1"}, "told before it says that it has started"
        put(tmp_path, "b.yaml", pod("b", "10.1.0.2"))
        await told.until(lambda: told.addresses == {"a": "10.1.0.1", "b": "10.1.0.2"})
        put(tmp_path, "a.yaml", pod("a", "10.1.0.9"))
        await told.until(lambda: told.addresses == {"a": "10.1.0.9", "b": "10.1.0.2"})
        (tmp_path / "a.yaml").write_text(pod("a", "10.1.0.8"))
        await told.until(lambda: told.addresses == {"a": "10.1.0.8", "b": "10.1.0.2"})
        (tmp_path / "b.yaml").unlink()
        await told.until(lambda: told.addresses == {"a": "10.1.0.8"})
        assert told.updates[-1] == Update(deletes=(ObjectKey("Pod", "default", "b"),))


@pytest.mark.usefixtures("either_way")
async def test_only_objects_that_differ_are_told(tmp_path: Path) -> None:
    put(tmp_path, "all.yaml", "".join(pod(f"p{n}", f"10.1.0.{n}") for n in range(1, 100)))
    async with following(tmp_path) as told:
        assert len(told.updates[0].upserts) == 99
        changed = "".join(pod(f"p{n}", f"10.1.{n // 99}.{n}") for n in range(1, 100))
        put(tmp_path, "all.yaml", "# a comment\n" + changed)
        await told.until(lambda: told.addresses["p99"] == "10.1.1.99")
        assert [each.key.name for each in told.updates[-1].upserts] == ["p99"]
        assert told.updates[-1].deletes == ()


@pytest.mark.usefixtures("either_way")
async def test_a_broken_file_is_reported_and_its_last_good_version_stays(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", pod("a", "10.1.0.1"))
    async with following(tmp_path) as told:
        put(tmp_path, "a.yaml", pod("a", "nowhere"))
        await told.until(lambda: bool(told.state.problems))
        assert told.addresses == {"a": "10.1.0.1"}
        assert str(told.state.problems[0]).startswith("a.yaml:5: document 1, status.podIP: must be an IP address")
        put(tmp_path, "a.yaml", pod("a", "10.1.0.2"))
        await told.until(lambda: told.addresses == {"a": "10.1.0.2"} and not told.state.problems)


@pytest.mark.usefixtures("either_way")
async def test_a_directory_that_is_missing_is_waited_for_and_survived(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    async with following(directory) as told:
        assert "No such file or directory" in told.state.problems[0].reason
        directory.mkdir()
        put(directory, "a.yaml", pod("a", "10.1.0.1"))
        await told.until(lambda: not told.state.problems and told.addresses == {"a": "10.1.0.1"})
        directory.rename(tmp_path / "elsewhere")
        await told.until(lambda: bool(told.state.problems))
        assert told.addresses == {"a": "10.1.0.1"}
        directory.mkdir()
        put(directory, "b.yaml", pod("b", "10.1.0.2"))
        await told.until(lambda: told.addresses == {"b": "10.1.0.2"})


@pytest.mark.usefixtures("either_way")
async def test_symbolic_links_are_followed_when_they_are_swapped(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: name -> ..data/name, ..data -> a directory of its own."""
    mount = tmp_path / "mount"
    for version in ("..v1", "..v2"):
        (mount / version).mkdir(parents=True)
        (mount / version / "a.yaml").write_text(pod("a", f"10.1.0.{version[-1]}"))
    (mount / "..data").symlink_to("..v1")
    (mount / "a.yaml").symlink_to("..data/a.yaml")
    async with following(mount) as told:
        assert told.addresses == {"a": "10.1.0.1"}
        (mount / "..tmp").symlink_to("..v2")
        (mount / "..tmp").rename(mount / "..data")
        await told.until(lambda: told.addresses == {"a": "10.1.0.2"})


@pytest.mark.usefixtures("either_way")
async def test_the_directory_itself_may_be_a_link_that_is_swapped(tmp_path: Path) -> None:
    for version in "12":
        (tmp_path / version).mkdir()
        put(tmp_path / version, "a.yaml", pod("a", f"10.1.0.{version}"))
    (tmp_path / "current").symlink_to("1")
    async with following(tmp_path / "current") as told:
        assert told.addresses == {"a": "10.1.0.1"}
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(tmp_path / "current")
        await told.until(lambda: told.addresses == {"a": "10.1.0.2"})
        put(tmp_path / "2", "a.yaml", pod("a", "10.1.0.3"))
        await told.until(lambda: told.addresses == {"a": "10.1.0.3"})


async def test_a_file_that_changes_beyond_the_events_is_found_by_its_signature(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text(pod("a", "10.1.0.1"))
    mount = tmp_path / "mount"
    mount.mkdir()
    (mount / "a.yaml").symlink_to(target)
    async with following(mount) as told:
        target.write_text(pod("a", "10.1.0.2"))
        await told.until(lambda: told.addresses == {"a": "10.1.0.2"})


async def test_with_events_a_file_is_not_read_before_its_writer_closes_it(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", pod("a", "10.1.0.1") + pod("b", "10.1.0.2"))
    async with following(tmp_path) as told:
        with (tmp_path / "a.yaml").open("w") as file:
            file.write(pod("a", "10.1.0.1"))
            file.flush()
            put(tmp_path, "c.yaml", pod("c", "10.1.0.3"))
            await told.until(lambda: "c" in told.addresses)
            assert set(told.addresses) == {"a", "b", "c"}
            file.write(pod("b", "10.1.0.9"))
        await told.until(lambda: told.addresses == {"a": "10.1.0.1", "b": "10.1.0.9", "c": "10.1.0.3"})
        assert all("b" in {key.name for key in state.objects} for state in told.states)


async def test_a_storm_of_changes_ends_in_what_is_on_disk(tmp_path: Path) -> None:
    def storm() -> None:
        for n in range(600):
            name = f"f{n % 40}.yaml"
            if n % 7 == 0 and (tmp_path / name).exists():
                (tmp_path / name).unlink()
            else:
                put(tmp_path, name, pod(f"p{n % 40}", f"10.1.{n % 250 + 1}.1"))
        put(tmp_path, "last.yaml", pod("last", "10.1.0.1"))

    async with following(tmp_path) as told:
        thread = threading.Thread(target=storm)
        thread.start()
        await told.until(lambda: "last" in told.addresses)
        thread.join()
        on_disk = {name for name in os.listdir(tmp_path) if not name.startswith(".")}
        await told.until(lambda: set(told.state.files) == on_disk)
        for name in on_disk - {"last.yaml"}:
            assert told.addresses["p" + name[1:-5]] in (tmp_path / name).read_text()


def watches() -> int:
    """How many inotify descriptors this process has."""
    found = 0
    for each in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{each}") == "anon_inode:inotify"
        except FileNotFoundError:
            pass
    return found


async def test_cancelling_closes_the_watch(tmp_path: Path) -> None:
    before = watches()
    async with following(tmp_path):
        assert watches() == before + 1
    assert watches() == before
