"""``ringfence ca rotate root`` is cut off at every point at which it touches the disk, run again, and goes on."""

import os
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ca.authority import hierarchy, root_succession, succession
from ca.authority.records import AuthorityKind
from ca.authority.store import Store, authorities
from node_agent.cli.main import main
from tests.authority_builder import PASSPHRASE, Authority, make_authority


class Cut(BaseException):
    """The process ends here: nothing that catches errors sees it."""


def cut_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, *, call: int, after: bool = False) -> None:
    """Let the ``call``-th call of a function not return."""
    real: Callable[..., Any] = getattr(module, name)
    calls = 0

    def cut(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Cut
        result = real(*arguments, **options)
        if calls == call:
            raise Cut
        return result

    monkeypatch.setattr(module, name, cut)


_POINTS = {
    "before the root key": (root_succession, "write_key", 1, False),
    "after the root key": (root_succession, "write_key", 1, True),
    "after the intermediate's key": (root_succession, "write_key", 2, True),
    "in the transaction that publishes": (authorities, "add", 1, True),
    "before that transaction is counted": (succession, "bump", 1, False),
    "after it is committed, before bundle.pem": (succession, "write_bundle", 1, False),
    "while bundle.pem is written": (os, "replace", 1, False),
    "when it is published": (succession, "write_bundle", 1, True),
    "in the transaction that activates": (authorities, "set_state", 2, True),
    "before that one is counted": (succession, "bump", 2, False),
    "after it is committed": (succession, "write_bundle", 2, False),
    "before old keys are deleted": (succession.Succession, "sweep", 1, False),
}


@pytest.mark.parametrize("point", _POINTS)
def test_a_rotation_that_was_cut_off_anywhere_is_finished_by_running_it_again(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = make_authority(tmp_path)
    command = ["ca", "rotate", "root", "--config", str(authority.config_file)]
    module, name, call, after = _POINTS[point]
    with monkeypatch.context() as patch:
        cut_at(patch, module, name, call=call, after=after)
        with pytest.raises(Cut):
            main(command)
    _signs(authority)

    assert main(command) == 0, capsys.readouterr().err
    states = _roots(authority)
    assert sorted(states) == ["active", "retiring"]
    _signs(authority)
    published = x509.load_pem_x509_certificates(authority.config.bundle_file.read_bytes())
    assert len(published) == 2
    assert authority.hierarchy.roots[0] in published


def _signs(authority: Authority) -> None:
    """A server that starts now would serve, and rewrite bundle.pem."""
    with closing(Store.open(authority.config.database)) as store:
        loaded = hierarchy.load(authority.config, store, passphrase=PASSPHRASE, at=datetime.now(UTC))
    hierarchy.write_bundle(authority.config, loaded.roots)


def _roots(authority: Authority) -> list[str]:
    with closing(Store.open(authority.config.database)) as store:
        return [str(each.state) for each in store.authorities() if each.kind is AuthorityKind.ROOT]
