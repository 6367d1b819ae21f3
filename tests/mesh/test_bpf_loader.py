"""Point 1 of the BPF work: load, replace, unload; killed at any step it is the old version or the new one."""

import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from bpf import compiler, loader, pins, preconditions, status, syscalls
from bpf.errors import BpfError, VerifierRefusal
from bpf.loader import load
from bpf.pins import Pins
from bpf.plan import CAPTURE, FEATURES, Feature, MapRow, Program, hook
from bpf.unloader import unload
from tests.mesh_builder import ROOT, wait_for
from tests.pin_places import empty_cgroup, pin_root

pytestmark = pytest.mark.mesh

_RINGFENCE: Final = str(ROOT / ".venv/bin/ringfence")
_PORTS: Final = {1: 21001, 2: 21002}
_SOURCE: Final = """
BPF_HASH(seen, __u64, __u64, 16);
int first(struct bpf_sock_addr *ctx)
{
    __u64 key = ctx->type, one = VERSION;
    seen.update(&key, &one);
    ctx->user_port = __builtin_bswap16(PORT);
    return 1;
}
int second(struct bpf_sock_addr *ctx)
{
    ctx->user_port = __builtin_bswap16(PORT);
    return 1;
}
"""


def _source(version: int) -> str:
    return _SOURCE.replace("VERSION", str(version)).replace("PORT", str(_PORTS[version]))


def _feature(**changes: Any) -> Feature:
    values: dict[str, Any] = {
        "name": "version",
        "min_kernel": (5, 8),
        "needs": "links",
        "sources": ("version.c",),
        "maps": (MapRow(name="seen"),),
        "programs": (Program(function="first", hook="connect4"), Program(function="second", hook="connect6")),
    }
    return Feature(**values | changes)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield from _sources(tmp_path)


def _sources(tmp_path: Path) -> Iterator[Path]:
    """Sources of two versions, which send every connect to a port of their own."""
    for version in _PORTS:
        where = tmp_path / f"v{version}"
        where.mkdir()
        shutil.copy(compiler.SOURCE_DIR / "maps.h", where)
        (where / "version.c").write_text(_source(version))
    yield tmp_path


@pytest.fixture
def root() -> Iterator[Path]:
    with pin_root("loader") as where:
        yield where


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with empty_cgroup("loader") as where:
        yield where


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text is compiled once: a test loads two dozen times."""

    @cache
    def compiled(sources: tuple[str, ...], functions: tuple[str, ...], where: Path) -> compiler.Compiled:
        return compiler.compile_sources(sources, functions, directory=where)

    def compile_sources(
        sources: Any, functions: Any, *, directory: Path = compiler.SOURCE_DIR, defines: Any = compiler.NO_DEFINES
    ) -> compiler.Compiled:
        assert not defines
        return compiled(tuple(sources), tuple(functions), directory)

    monkeypatch.setattr(loader, "compile_sources", compile_sources)


def _load(root: Path, directory: Path, version: int, **more: Any) -> loader.Loaded:
    return load(root, features=(_feature(),), directory=directory / f"v{version}", **more)


def _attach(root: Path, cgroup: Path) -> None:
    """What an agent does: hold the dispatchers at a cgroup, by pinned links."""
    target = os.open(cgroup, os.O_RDONLY)
    (Pins(root).links / "test").mkdir(exist_ok=True)
    for name in ("connect4", "connect6"):
        program = syscalls.open_pin(Pins(root).dispatcher(name))
        link = syscalls.create_link(program=program, target=target, attach_type=hook(name).attach_type)
        syscalls.pin(link, Pins(root).links / "test" / name)
        os.close(program)
        os.close(link)
    os.close(target)


@contextmanager
def _listeners() -> Iterator[None]:
    with ExitStack() as stack:
        for port in _PORTS.values():
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
            stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
        yield


def _versions(cgroup: Path) -> list[int | None]:
    """Which version answers for IPv4 and for IPv6, asked by a process in the cgroup; None: a connect is refused."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            answers = []
            for family, ip in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with socket.socket(family) as sock:
                    try:
                        sock.connect((ip, 9))
                        answers.append(sock.getpeername()[1])
                    except OSError:
                        answers.append(0)
            os.write(writer, bytes(next((v for v, port in _PORTS.items() if port == each), 0) for each in answers))
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as file:
        return [each or None for each in file.read()]


def _killed_at(number: int, work: Any) -> bool:
    """Run ``work(progress)`` in a child that is killed before its step ``number``; False if it has not that many."""
    child = os.fork()
    if not child:
        steps = 0

        def progress(_step: str) -> None:
            nonlocal steps
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)
            steps += 1

        try:
            work(progress)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, how = os.waitpid(child, 0)
    assert not (os.WIFEXITED(how) and os.WEXITSTATUS(how)), "the load itself failed"
    return os.WIFSIGNALED(how)


def _ids(root: Path) -> list[tuple[int, int]]:
    """Every object that is pinned below: the command that finds it by its number, and the number."""
    found = []
    for path in root.rglob("*"):
        if path.is_dir():
            continue
        fd = syscalls.open_pin(path)
        if "/links/" in str(path):
            found.append((30, syscalls.link_info(fd).id))
        elif path.name.endswith("-dispatcher") or "/programs/" in str(path):
            found.append((13, syscalls.program_info(fd).id))
        else:
            found.append((14, syscalls.map_info(fd).id))
        os.close(fd)
    return found


def _exists(command: int, number: int) -> bool:
    try:
        os.close(syscalls._bpf(command, number.to_bytes(4, "little") + bytes(8)))
    except FileNotFoundError:
        return False
    return True


def test_the_command_loads_what_the_agent_needs_and_unload_leaves_nothing(root: Path) -> None:
    def ours_of_a_name() -> list[Path]:  # other labs come and go beside us
        everything = [*root.parent.iterdir(), *preconditions.cgroup_root().iterdir()]
        return [each for each in everything if root.name in each.name]

    before = ours_of_a_name()
    assert not before
    for generation in (1, 2, 3):
        done = subprocess.run(
            [_RINGFENCE, "bpf", "load", "--pins", str(root)], capture_output=True, text=True, check=True
        )
        assert f"generation {generation}: capture" in done.stdout
    shown = status.collect(root)
    assert shown["problem"] is None
    assert shown["features"] == [{"name": each.name, "on": True, "reason": None} for each in FEATURES]
    rows = {row.name for each in FEATURES for row in each.maps}
    assert {each["name"] for each in shown["maps"]} == rows
    entries = {each["name"]: each["entries"] for each in shown["maps"]}
    assert set(entries.values()) == {0, None}
    for name in ("workloads", "listeners", "originals", "flows", "pods", "passes", "pod_addresses", "lanes"):
        assert entries[name] == 0, "counted, and empty"
    ours = _ids(root)
    assert len(ours) > 20
    using = pins.use(Pins(root))
    refused = subprocess.run(
        [_RINGFENCE, "bpf", "unload", "--pins", str(root)], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "an agent uses" in refused.stderr
    os.close(using)
    subprocess.run([_RINGFENCE, "bpf", "unload", "--pins", str(root)], capture_output=True, check=True)

    assert ours_of_a_name() == before
    wait_for("programs, maps and links to be gone", lambda: not any(_exists(*each) for each in ours))
    gone = subprocess.run(
        [_RINGFENCE, "bpf", "status", "--pins", str(root)], capture_output=True, text=True, check=False
    )
    assert gone.returncode == 1
    assert "nothing is loaded; run `ringfence bpf load`" in gone.stdout


def _run(program: int, packet: bytes) -> int:
    """BPF_PROG_RUN: what a program answers to a packet."""
    data = ctypes.create_string_buffer(packet, len(packet))
    attributes = ctypes.create_string_buffer(
        struct.pack("IIIIQQIIIIQQ", program, 0, len(packet), 0, ctypes.addressof(data), 0, 1, 0, 0, 0, 0, 0), 80
    )
    syscalls._bpf(10, attributes)
    (answer,) = struct.unpack_from("I", attributes.raw, 4)
    return int(answer)


def test_a_hook_without_a_program_lets_nothing_through(root: Path) -> None:
    capture = tuple(each for each in FEATURES if each.name == CAPTURE)
    load(root, features=capture)
    packet = bytes(12) + b"\x08\x00" + b"\x45" + bytes(59)  # Ethernet, IPv4
    dispatcher = syscalls.open_pin(Pins(root).dispatcher("ingress"))
    slots = syscalls.Map(syscalls.open_pin(Pins(root).slots("ingress")))

    assert _run(dispatcher, packet) == 1, "the guard passes what is for no listening socket"
    assert slots.delete(bytes(4))
    assert _run(dispatcher, packet) == 0
    slots.close()
    os.close(dispatcher)
    load(root, features=capture)
    dispatcher = syscalls.open_pin(Pins(root).dispatcher("ingress"))
    assert _run(dispatcher, packet) == 1
    os.close(dispatcher)


def test_a_first_load_that_is_killed_has_loaded_nothing_or_everything(root: Path, directory: Path) -> None:
    _load(root, directory, 1)
    unload(root)
    number = 0
    while _killed_at(number, lambda progress: _load(root, directory, 1, progress=progress)):
        shown = status.collect(root)
        assert shown["loaded"] == (number > 0 and Pins(root).root.exists())
        if shown["loaded"]:
            assert [each["name"] for each in shown["features"]] == ["version"]
            assert len(list(Pins(root).slot(0).rglob("programs/*"))) == 2
        number += 1
    assert number > 12
    assert _load(root, directory, 1).replaced
    assert not Pins(root).staging.exists()
    unload(root)


@pytest.mark.parametrize("with_other_dispatchers", [False, True], ids=["same-hooks", "other-hooks"])
def test_a_replacement_that_is_killed_is_the_old_version_or_the_new_one(
    root: Path, directory: Path, cgroup: Path, monkeypatch: pytest.MonkeyPatch, with_other_dispatchers: bool
) -> None:
    kept: list[list[int | None]] = []
    number, killed = 0, True
    _load(root, directory, 2)
    with _listeners():
        while killed:
            unload(root)
            _load(root, directory, 1)
            _attach(root, cgroup)
            assert _versions(cgroup) == [1, 1]
            with monkeypatch.context() as patch:
                if with_other_dispatchers:
                    _change_dispatchers(patch)
                killed = _killed_at(number, lambda progress: _load(root, directory, 2, progress=progress))
            kept.append(_versions(cgroup))
            number += 1
        assert number > 12
        # Old, old, ..., old, new, ..., new: both hooks change between the same two steps.
        assert kept == sorted(kept)
        assert [1, 1] in kept
        assert kept[-2:] == [[2, 2], [2, 2]]
        assert all(one == other for one, other in kept)

        _killed_at(5, lambda progress: _load(root, directory, 1, progress=progress))
        assert _versions(cgroup) == [2, 2]
        assert _load(root, directory, 1).generation > 2
        assert _versions(cgroup) == [1, 1], "what a killed load left is no obstacle"
        unload(root)


def _change_dispatchers(patch: pytest.MonkeyPatch) -> None:
    """Dispatchers that do the same by other instructions, so that every link has to be updated."""
    original = compiler.compile_sources

    def changed(sources: Any, functions: Any, **more: Any) -> compiler.Compiled:
        found = original(sources, functions, **more)
        if tuple(sources) != ("dispatch.c",):
            return found
        no_operation = bytes.fromhex("bf66000000000000")  # r6 = r6, after r6 was set
        longer = {name: code[:8] + no_operation + code[8:] for name, code in found.functions.items()}
        return compiler.Compiled(functions=longer, maps=found.maps, descriptors=found.descriptors)

    patch.setattr(loader, "compile_sources", changed)


def test_an_unload_that_is_killed_is_finished_by_the_next(root: Path, directory: Path, cgroup: Path) -> None:
    number, killed = 0, True
    while killed:
        _load(root, directory, 1)
        _attach(root, cgroup)
        ours = _ids(root)
        killed = _killed_at(number, lambda progress: unload(root, progress=progress))
        unload(root)
        assert not [each for each in root.parent.iterdir() if each.name.startswith(root.name)]
        wait_for("programs, maps and links to be gone", lambda: not any(_exists(*each) for each in ours))  # noqa: B023
        number += 1
    assert number > 3


def test_maps_are_kept_while_they_mean_the_same(root: Path, directory: Path) -> None:
    _load(root, directory, 1)
    before = _map_id(root, 0)
    _load(root, directory, 2)
    assert _map_id(root, 1) == before

    larger = (directory / "v1").rename(directory / "larger")
    (larger / "version.c").write_text(_source(1).replace("__u64, 16)", "__u64, 32)"))
    load(root, features=(_feature(),), directory=larger)
    assert _map_id(root, 0) != before, "another size is another map"


def _map_id(root: Path, slot: int) -> int:
    fd = syscalls.open_pin(Pins(root).map(slot, "seen"))
    try:
        return syscalls.map_info(fd).id
    finally:
        os.close(fd)


def test_what_is_not_ours_is_not_touched(root: Path, directory: Path) -> None:
    root.mkdir()
    foreign = syscalls.create_map(type=syscalls.MapType.ARRAY, key_bytes=4, value_bytes=40, max_entries=1, name="their")
    syscalls.pin(foreign, root / "state")
    os.close(foreign)
    before = sorted(root.iterdir())

    for work in (lambda: _load(root, directory, 1), lambda: unload(root, force=True)):
        with pytest.raises(BpfError, match="'their', not rf_state .* nothing was touched"):
            work()
    assert sorted(root.iterdir()) == before
    (root / "more").mkdir()
    with pytest.raises(BpfError, match=r"not ringfence's \(it holds more\); nothing was touched"):
        _load(root, directory, 1)


def test_a_program_that_the_verifier_refuses_changes_nothing_and_its_log_is_told(root: Path, directory: Path) -> None:
    _load(root, directory, 1)
    bad = directory / "bad"
    bad.mkdir()
    shutil.copy(compiler.SOURCE_DIR / "maps.h", bad)
    (bad / "version.c").write_text(_source(1).replace("return 1;", "return *(int *)(long)ctx->family;"))

    with pytest.raises(VerifierRefusal, match="feature version: .* nothing was changed") as refused:
        load(root, features=(_feature(),), directory=bad)

    assert "R" in refused.value.log
    assert len(refused.value.log.splitlines()) > 5
    assert status.collect(root)["generation"] == 1


def test_a_warning_of_the_compiler_is_an_error_with_its_text(root: Path, directory: Path) -> None:
    (directory / "v1" / "version.c").write_text(_source(1).replace("return 1;", "int unused; return 1;", 1))

    with pytest.raises(BpfError, match=r"(?s)version.c can not be compiled.*unused variable 'unused'"):
        _load(root, directory, 1)
    assert not root.exists()


def test_a_feature_that_the_kernel_is_too_old_for_is_off_and_status_says_why(root: Path, directory: Path) -> None:
    both = (_feature(), _feature(name="later", min_kernel=(99, 0), needs="something new", programs=(), maps=()))

    done = load(root, features=both, directory=directory / "v1", kernel=(6, 1))

    assert done.off == {"later": "needs Linux 99.0 (something new), this is 6.1"}
    assert status.collect(root)["features"] == [
        {"name": "version", "on": True, "reason": None},
        {"name": "later", "on": False, "reason": "needs Linux 99.0 (something new), this is 6.1"},
    ]
    load(root, features=(_feature(),), directory=directory / "v1", kernel=(4, 19))
    assert status.collect(root)["features"][0]["reason"] == "needs Linux 5.8 (links), this is 4.19"


def test_two_loaders_at_once_wait_for_each_other(root: Path) -> None:
    command = [_RINGFENCE, "bpf", "load", "--pins", str(root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(each.communicate(timeout=300)[0] for each in both)

    assert [each.returncode for each in both] == [0, 0]
    assert "generation 1:" in said
    assert "generation 2:" in said


def test_the_maps_of_another_abi_are_named_to_who_asks(
    root: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _load(root, directory, 1)
    state = pins.open_state(Pins(root))
    assert state is not None
    now = pins.State.read(state)
    pins.State(active_slot=now.active_slot, abi=(1, 2), generation=now.generation).write(state)
    before = _map_id(root, 0)

    assert "loaded by another version" in status.collect(root)["problem"]
    _load(root, directory, 2)
    assert _map_id(root, 1) != before, "maps of other structures are not kept"
    state.close()


def test_the_library_is_there_without_the_compiler() -> None:
    """The agent's door to the kernel costs no bcc."""
    text = "import sys, bpf.pins, bpf.syscalls, bpf.abi; sys.exit('bcc' in sys.modules)"
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True)
