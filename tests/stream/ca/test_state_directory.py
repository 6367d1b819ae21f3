"""The state directory of an authority: one server at a time, and nobody else's."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ca.authority.errors import AuthorityError
from ca.authority.store import Store
from tests.authority_builder import Authority, make_authority, serving

_SERVES = """
import sys, time
from pathlib import Path
from ca.authority.store import Store
store = Store.open(Path(sys.argv[1]), serving=True)
print("serves", flush=True)
time.sleep(600)
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


def test_a_second_server_of_one_state_directory_is_refused_until_the_first_has_ended(authority: Authority) -> None:
    command = [sys.executable, "-c", _SERVES, str(authority.config.database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "serves\n"
            with pytest.raises(AuthorityError, match=rf"another .* serves from it, process {first.pid}: stop that one"):
                Store.open(authority.config.database, serving=True)
            Store.open(authority.config.database).close()  # a command works beside it
        finally:
            first.send_signal(signal.SIGKILL)
    with closing(Store.open(authority.config.database, serving=True)):
        pass
    Store.open(authority.config.database, serving=True).close()


async def test_a_state_directory_that_is_open_to_others_is_closed_by_the_server(authority: Authority) -> None:
    for directory in (authority.config.state_dir, authority.config.keys_dir):
        directory.chmod(0o755)
    async with serving(authority):
        for directory in (authority.config.state_dir, authority.config.keys_dir):
            assert directory.stat().st_mode & 0o777 == 0o700
        assert (authority.config.state_dir / "serving.lock").stat().st_mode & 0o777 == 0o600


def test_a_database_that_can_not_be_written_is_not_called_damaged(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "chmod", read_only)
    with pytest.raises(AuthorityError, match="Read-only file system; its directory and disk have to be writable"):
        Store.open(authority.config.database)

    def not_ours(*_: object, **__: object) -> None:
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(Path, "chmod", not_ours)
    with pytest.raises(AuthorityError, match="run this as the authority's own user, or as root"):
        Store.open(authority.config.database)
