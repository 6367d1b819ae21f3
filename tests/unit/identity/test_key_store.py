"""The node's key at rest: never in clear on a disk."""

import os
from pathlib import Path

import pytest

from node_agent.errors import AgentError
from node_agent.identity import NodeKeyStore, key_store
from tests.certificates import make_root

NODE = "spiffe://cluster.local/ringfence/node/node-1"


@pytest.fixture
def passphrase_file(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    return path


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_was_saved_is_loaded(
    tmp_path: Path, passphrase_file: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not encrypted:
        monkeypatch.setattr(key_store, "_is_memory", lambda directory: True)
    own = make_root().intermediate().leaf(NODE).own
    store = NodeKeyStore(directory=tmp_path / "a" / "node", passphrase_file=passphrase_file if encrypted else None)
    assert store.load() is None
    for saved in (own, make_root().intermediate().leaf(NODE).own):
        store.save(saved)
        loaded = store.load()
        assert loaded is not None
        assert loaded.chain == saved.chain
        assert loaded.key.private_numbers() == saved.key.private_numbers()
    (file,) = (tmp_path / "a" / "node").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert (b"BEGIN ENCRYPTED PRIVATE KEY" in file.read_bytes()) is encrypted
    assert (b"BEGIN PRIVATE KEY" in file.read_bytes()) is not encrypted


def test_a_directory_on_a_disk_needs_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_store, "_is_memory", lambda directory: False)
    with pytest.raises(AgentError, match=r"node_key_dir.*tmpfs.*node_key_passphrase_file"):
        NodeKeyStore(directory=tmp_path, passphrase_file=None)


def test_memory_is_told_from_a_disk() -> None:
    assert key_store._is_memory(Path("/dev/shm"))
    assert not key_store._is_memory(Path("/proc"))


def test_a_wrong_passphrase_says_what_to_do(tmp_path: Path, passphrase_file: Path) -> None:
    directory = tmp_path / "node"
    NodeKeyStore(directory=directory, passphrase_file=passphrase_file).save(make_root().leaf(NODE).own)
    passphrase_file.write_text("wrong horse")
    with pytest.raises(AgentError, match=r"node\.pem.*node_key_passphrase_file"):
        NodeKeyStore(directory=directory, passphrase_file=passphrase_file).load()


@pytest.mark.parametrize("damage", [lambda pem: b"", lambda pem: pem[: len(pem) // 2], lambda pem: b"\xff" * 100])
def test_a_damaged_file_says_what_to_do(tmp_path: Path, passphrase_file: Path, damage: object) -> None:
    store = NodeKeyStore(directory=tmp_path / "node", passphrase_file=passphrase_file)
    store.save(make_root().leaf(NODE).own)
    path = tmp_path / "node" / "node.pem"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(AgentError, match="remove the file"):
        store.load()


def test_a_key_that_is_not_the_certificates_is_refused(tmp_path: Path, passphrase_file: Path) -> None:
    store = NodeKeyStore(directory=tmp_path / "node", passphrase_file=passphrase_file)
    store.save(make_root().leaf(NODE, public_key=make_root().key.public_key()).own)
    with pytest.raises(AgentError, match="do not belong together"):
        store.load()


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, passphrase_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NodeKeyStore(directory=tmp_path / "node", passphrase_file=passphrase_file)
    first = make_root().leaf(NODE).own
    store.save(first)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(make_root().leaf(NODE).own)
    loaded = store.load()
    assert loaded is not None
    assert loaded.chain == first.chain
    assert len(list((tmp_path / "node").iterdir())) == 1


@pytest.mark.parametrize("content", [None, b"", b"\n"])
def test_a_passphrase_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "passphrase"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AgentError, match="node_key_passphrase_file"):
        NodeKeyStore(directory=tmp_path, passphrase_file=path)


def test_a_directory_that_can_not_be_made_is_named(tmp_path: Path, passphrase_file: Path) -> None:
    with pytest.raises(AgentError, match="node_key_dir"):
        NodeKeyStore(directory=passphrase_file / "node", passphrase_file=passphrase_file)
