"""scripts/lab up --ca-replicas: further processes of the CA, on a PostgreSQL of the lab's own."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.lab.conftest import LabUnderTest

pytestmark = pytest.mark.mesh


def postgres_dir(lab: LabUnderTest) -> Path:
    return Path(f"{lab.state_dir}.postgres")


def server_pid(lab: LabUnderTest) -> int:
    return int((postgres_dir(lab) / "data/postmaster.pid").read_text().split()[0])


def test_each_replica_is_a_process_with_an_address_that_all_agents_know(lab: LabUnderTest) -> None:
    assert "a CA of 2 replicas" in lab("up", "--ca-replicas", "2")
    found = lab.status()
    assert [each["name"] for each in found["ca_replicas"]] == ["ca-replica-2"]
    addresses = [found["ca"]["address"], *(each["address"] for each in found["ca_replicas"])]
    assert len(set(addresses)) == 2
    agent = (lab.state_dir / "agent-1/agent.toml").read_text()
    assert all(f'"{each}"' in agent for each in addresses)
    configs = [(lab.state_dir / name / "ca.toml").read_text() for name in ("ca", "ca-replica-2")]
    assert all(f"host={postgres_dir(lab)}" in each for each in configs)
    assert "ca-replica-2" in lab("status")


def test_a_replica_is_stopped_killed_and_started_like_any_process(lab: LabUnderTest) -> None:
    lab("up", "--ca-replicas", "2")
    assert lab("kill", "ca-replica-2") == f"ca-replica-2 ended with exit code {128 + signal.SIGKILL}\n"
    assert lab.status()["ca"]["running"]
    assert not lab.status()["ca_replicas"][0]["running"]
    assert "runs with pid" in lab("start", "ca-replica-2")
    assert lab("stop", "ca") == "ca ended with exit code 0\n"


def test_down_takes_the_database_along(lab: LabUnderTest) -> None:
    lab("up", "--ca-replicas", "2")
    server = server_pid(lab)
    lab("down")
    lab.assert_nothing_left(processes={server})
    assert not postgres_dir(lab).exists()
    assert str(postgres_dir(lab)) not in Path("/proc/mounts").read_text()


def test_up_after_an_up_that_was_killed_begins_with_a_database_of_its_own(lab: LabUnderTest) -> None:
    with lab.begin("up", "--ca-replicas", "2", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while not postgres_dir(lab).exists() and killed.poll() is None:
            pass
        killed.kill()
    lab("up", "--ca-replicas", "2")
    assert lab.status()["ca_replicas"][0]["running"]


@pytest.mark.parametrize("count", ["0", "9"])
def test_a_number_of_replicas_that_can_not_be_is_refused(lab: LabUnderTest, count: str) -> None:
    assert f"--ca-replicas {count}: must be 1 to 8" in lab.fails("up", "--ca-replicas", count)
