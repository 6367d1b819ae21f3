"""Passphrases and keys on disk: closed to others, encrypted, and clear about what is wrong."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from ca.authority.errors import AuthorityError
from ca.authority.keys import KeyFiles, key_path, read_key, read_passphrase, write_durably, write_key
from ca.csr import new_key

PASSPHRASE = b"a passphrase for tests"


def passphrase_file(directory: Path, content: bytes, mode: int = 0o600) -> Path:
    path = directory / "passphrase"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_one_line_end_is_not_part_of_the_passphrase(tmp_path: Path, ending: bytes) -> None:
    assert read_passphrase(passphrase_file(tmp_path, PASSPHRASE + ending)) == PASSPHRASE


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_passphrase_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(AuthorityError, match="chmod 0600"):
        read_passphrase(passphrase_file(tmp_path, PASSPHRASE, mode))


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"x" * 2000])
def test_a_passphrase_that_is_none_is_refused_without_being_quoted(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(AuthorityError, match="openssl rand") as caught:
        read_passphrase(passphrase_file(tmp_path, content))
    assert "short" not in str(caught.value)


def test_no_passphrase_and_no_file_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="passphrase_file under"):
        read_passphrase(None)
    with pytest.raises(AuthorityError, match="umask 077"):
        read_passphrase(tmp_path / "missing")
    with pytest.raises(AuthorityError, match="regular file"):
        read_passphrase(tmp_path)


def test_a_key_comes_back_only_with_its_passphrase(tmp_path: Path) -> None:
    key = new_key()
    write_key(KeyFiles(tmp_path), "ab", key, PASSPHRASE)
    path = key_path(tmp_path, "ab")

    assert path.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    assert read_key(KeyFiles(tmp_path), "ab", PASSPHRASE).private_numbers() == key.private_numbers()
    with pytest.raises(AuthorityError, match="wrong passphrase"):
        read_key(KeyFiles(tmp_path), "ab", b"another passphrase")


def test_a_key_is_never_written_over_another(tmp_path: Path) -> None:
    write_key(KeyFiles(tmp_path), "ab", new_key(), PASSPHRASE)
    before = key_path(tmp_path, "ab").read_bytes()
    with pytest.raises(FileExistsError):
        write_key(KeyFiles(tmp_path), "ab", new_key(), PASSPHRASE)
    assert key_path(tmp_path, "ab").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["ab.pem"]


def test_a_key_in_clear_is_not_used(tmp_path: Path) -> None:
    clear = new_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_durably(key_path(tmp_path, "ab"), clear, mode=0o600)
    with pytest.raises(AuthorityError, match="not encrypted"):
        read_key(KeyFiles(tmp_path), "ab", PASSPHRASE)


def test_a_missing_or_damaged_key_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match=r"ab\.pem"):
        read_key(KeyFiles(tmp_path), "ab", PASSPHRASE)
    key_path(tmp_path, "ab").write_bytes(b"garbage")
    with pytest.raises(AuthorityError, match=r"ab\.pem"):
        read_key(KeyFiles(tmp_path), "ab", PASSPHRASE)
