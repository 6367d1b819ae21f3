"""Where the processes of a Workload are."""

import os
import re
from pathlib import Path

import pytest

from node_agent.capture.cgroups import around, find, identifier
from node_agent.model import Cgroup


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for each in (
        "system.slice/web.service/worker",
        "system.slice/system-db.slice/db@main.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/mine.service",
        "one.slice/twice.service",
        "other.slice/twice.service",
    ):
        (tmp_path / each).mkdir(parents=True)
    return tmp_path


def test_a_path_and_a_unit_are_found(root: Path) -> None:
    web = root / "system.slice/web.service"
    assert find(root, Cgroup(path="/system.slice/web.service")) == web
    assert find(root, Cgroup(unit="web.service")) == web
    assert find(root, Cgroup(unit="db@main.service")) == root / "system.slice/system-db.slice/db@main.service"
    assert identifier(web) == os.stat(web).st_ino


@pytest.mark.parametrize(
    ("cgroup", "said"),
    [
        (Cgroup(unit="mine.service"), "unit mine.service is not there"),
        (Cgroup(unit="absent.service"), "unit absent.service is not there; start it"),
        (Cgroup(path="/absent"), "cgroup /absent is not there; start it"),
        (Cgroup(unit="twice.service"), "more than once (o"),
    ],
    ids=["a-users-own", "absent-unit", "absent-path", "ambiguous"],
)
def test_what_is_not_there_once_is_not_guessed(root: Path, cgroup: Cgroup, said: str) -> None:
    with pytest.raises(OSError, match=re.escape(said)):
        find(root, cgroup)


def test_what_a_user_names_is_never_a_systems_unit(root: Path) -> None:
    with pytest.raises(OSError, match="not there"):
        find(root, Cgroup(unit="app.slice"))


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("9:name=systemd:/x\n0::/system.slice/web.service/worker\n", ["worker", "web.service", "system.slice"]),
        ("0::/\n", []),
        ("0::/../../elsewhere\n", []),
        ("1:cpu:/system.slice\n", []),
    ],
    ids=["nearest-first", "root", "outside-of-our-cgroup-namespace", "version-1-alone"],
)
def test_a_process_is_in_its_cgroup_and_in_all_around_it(root: Path, said: str, names: list[str]) -> None:
    assert [each.name for each in around(root, said)] == names
