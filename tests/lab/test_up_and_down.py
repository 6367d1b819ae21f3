"""What `up` makes and `down` removes, whatever happens in between."""

import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpf import preconditions
from tests.lab.conftest import LabUnderTest

pytestmark = pytest.mark.mesh


def _pids(status: Any) -> set[int]:
    return {status["ca"]["pid"], *(agent["pid"] for agent in status["agents"])}


def test_up_makes_nodes_a_ca_and_a_ready_agent_on_each(lab: LabUnderTest) -> None:
    lab("up", "--nodes", "3")

    status = lab.status()
    assert [node["name"] for node in status["nodes"]] == ["node-1", "node-2", "node-3"]
    assert status["ca"]["running"]
    assert [agent["ready"] for agent in status["agents"]] == [True, True, True]
    assert stat.S_IMODE(lab.state_dir.stat().st_mode) == 0o700
    assert f"{lab.state_dir} tmpfs" in Path("/proc/mounts").read_text()


def test_every_process_is_in_its_own_session_and_its_nodes_network(cluster: LabUnderTest) -> None:
    for agent in cluster.status()["agents"]:
        expected = os.stat(f"/run/netns/rf_{cluster.instance}-node{agent['node']}").st_ino
        assert os.stat(f"/proc/{agent['pid']}/ns/net").st_ino == expected
        assert os.stat(f"/proc/{agent['pid']}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino
        assert os.getsid(agent["pid"]) != os.getsid(0)


def test_down_leaves_no_namespace_no_mount_no_process_and_no_file(cluster: LabUnderTest) -> None:
    cluster.pod("web")
    program = cluster.begin("exec", "web", "--", "sleep", "600")
    pids = _pids(cluster.status())

    cluster("down")

    assert program.wait(60) == -signal.SIGTERM
    cluster.assert_nothing_left(processes=pids)


def test_down_ends_a_program_that_ignores_sigterm(network: LabUnderTest) -> None:
    network.pod("web")
    command = ["exec", "web", "--", "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 600; done"]
    program = network.begin(*command, stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "deaf\n"

    network("down")

    assert program.wait(60) == -signal.SIGKILL
    program.stdout.close()
    network.assert_nothing_left(processes=set())


def test_down_without_a_lab_is_not_an_error(lab: LabUnderTest) -> None:
    assert "there was none" in lab("down")


def test_a_second_up_begins_anew(cluster: LabUnderTest) -> None:
    cluster.pod("web")
    before = _pids(cluster.status())

    cluster("up")

    assert cluster("pods", "--json").strip() == "[]"
    assert all(not Path(f"/proc/{pid}/exe").exists() for pid in before)
    assert cluster.pod("web")["ipv4"] == "10.247.1.2"


@pytest.mark.parametrize("killed_after_s", [0.08, 0.15, 0.3, 0.6, 0.9])
def test_up_killed_on_the_way_leaves_nothing_that_down_and_up_do_not_remove(
    lab: LabUnderTest, killed_after_s: float
) -> None:
    _killed(lab, "up", after_s=killed_after_s)

    lab("down")
    lab.assert_nothing_left(processes=set())
    _killed(lab, "up", after_s=killed_after_s)
    lab("up")
    assert lab.pod("web")["ipv4"] == "10.247.1.2"


@pytest.mark.parametrize("killed_after_s", [0.1, 0.15, 0.2])
def test_a_pod_command_killed_on_the_way_does_not_disturb_the_next(
    network: LabUnderTest, killed_after_s: float
) -> None:
    _killed(network, "pod", "web", "--node", "1", after_s=killed_after_s)

    if network("pods", "--json").strip() != "[]":
        network("delete", "pod/default/web")
    network.pod("other")
    network.pod("web")
    assert "1 received" in network("exec", "web", "--", "ping", "-c", "1", "-W", "5", "10.247.1.2")


def _killed(lab: LabUnderTest, *arguments: str, after_s: float) -> None:
    command = lab.begin(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        command.wait(after_s)
    except subprocess.TimeoutExpired:
        command.kill()
        command.wait()


def test_sigterm_in_the_middle_of_up_removes_what_it_made(lab: LabUnderTest) -> None:
    command = lab.begin("up", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while command.poll() is None and not (lab.state_dir / "agent-1").exists():
        pass
    command.send_signal(signal.SIGTERM)
    output, _ = command.communicate(timeout=30)

    assert "interrupted" in output
    assert command.returncode == 130
    lab.assert_nothing_left(processes=set())


def test_an_up_that_did_not_end_is_not_a_lab(network: LabUnderTest) -> None:
    (network.state_dir / "lab.json").unlink()
    assert "did not end" in network.fails("status")


def test_up_that_fails_says_why_and_leaves_nothing(lab: LabUnderTest) -> None:
    lab.environment["RINGFENCE_LAB_COMMAND"] = "/bin/false"
    error = lab.fails("up")
    assert "ca init" in error
    assert "exit code 1" in error
    lab.assert_nothing_left(processes=set())


def test_another_lab_is_left_alone(lab: LabUnderTest) -> None:
    other = LabUnderTest(instance=f"{lab.instance}x", command=Path("/bin/true"))
    other("up", "--no-agents")
    try:
        lab("up", "--no-agents")
        assert lab.pod("web")["ipv4"] == other.pod("web")["ipv4"]
        lab("down")
        assert len(other.namespaces()) == 5
        assert "web" in other("pods")
    finally:
        other("down")
        Path(f"{other.state_dir}.lock").unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "scripts/lab up"),
        (["pod", "web", "--node", "1"], "scripts/lab up"),
        (["up", "--nodes", "0"], "--nodes 0"),
        (["up", "--workers", "0"], "--workers 0"),
    ],
)
def test_errors_say_what_to_do(lab: LabUnderTest, arguments: list[str], said: str) -> None:
    assert said in lab.fails(*arguments)


def test_a_lab_that_can_not_be_called_so_is_one_line(lab: LabUnderTest) -> None:
    misnamed = LabUnderTest(instance="Bad Name", command=Path(lab.environment["RINGFENCE_LAB_COMMAND"]))
    assert misnamed.fails("status") == "lab: RINGFENCE_LAB='Bad Name': a lab is named with 1 to 12 of a-z and 0-9\n"


def test_a_failed_up_with_wrong_arguments_leaves_the_lab_that_runs(network: LabUnderTest) -> None:
    network.pod("web")
    network.fails("up", "--nodes", "0")
    assert "web" in network("pods")


def test_pods_that_are_cgroups_share_their_nodes_network_and_leave_nothing(lab: LabUnderTest) -> None:
    lab("up", "--no-agents", "--capture", "cgroup")
    before = set(lab.namespaces())
    one, other = lab.pod("one"), lab.pod("other")
    assert set(lab.namespaces()) == before, "no namespace of its own"
    shown = lab("exec", "one", "--", "ip", "-o", "addr", "show", "dev", "lo")
    assert one["ipv4"] in shown
    assert other["ipv6"] in shown
    where = lab("exec", "one", "--", "cat", "/proc/self/cgroup").splitlines()[-1]
    assert where.startswith("0::/rf_")
    assert where.endswith("/node-1/default_one")
    assert lab("exec", "one", "--", "hostname").strip() == "one"

    sleeper = lab.begin("exec", "one", "--", "sleep", "1000")
    lab("delete", "pod/default/one")
    assert sleeper.wait(20) != 0
    assert one["ipv4"] not in lab("exec", "other", "--", "ip", "-o", "addr", "show", "dev", "lo")
    lab("down")
    root = preconditions.cgroup_root()
    assert not (root / where.split("/")[1]).exists()


def test_only_root_may(lab: LabUnderTest) -> None:
    probe = "import os, sys; os.setuid(65534); from labkit.cli import main; sys.exit(main(['status']))"
    python = Path(__file__).resolve().parents[2] / ".venv/bin/python"
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    command = [str(python), "-c", f"import sys; sys.path.insert(0, {str(scripts)!r}); import labkit.cli; {probe}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=lab.environment)
    assert done.returncode == 1
    assert "run it as root" in done.stderr


def test_nodes_of_another_trust_domain_have_a_ca_of_their_own(lab: LabUnderTest) -> None:
    lab("up", "--nodes", "3", "--trust-domain-of", "2=other.example", "--trust-domain-of", "3=other.example")

    status = lab.status()
    assert status["trust_domains"] == ["cluster.local", "other.example"]
    assert [node["trust_domain"] for node in status["nodes"]] == ["cluster.local", "other.example", "other.example"]
    assert [ca["name"] for ca in status["more_cas"]] == ["ca-2"]
    assert status["more_cas"][0]["running"]
    assert "ca-2" in lab("status")
    assert lab.pod("web", node=2)["identity"] == "spiffe://other.example/ns/default/sa/default"
    assert lab.pod("cart", node=1)["identity"] == "spiffe://cluster.local/ns/default/sa/default"
    assert lab("kill", "ca-2") == "ca-2 ended with exit code 137\n"
    lab("start", "ca-2")


@pytest.mark.parametrize(
    ("value", "says"),
    [("3=other.example", "there are nodes 1 to 2"), ("2=Other.Example", "must be 1 to 255 of a-z")],
)
def test_a_trust_domain_that_can_not_be_is_refused_before_anything_is_made(
    lab: LabUnderTest, value: str, says: str
) -> None:
    assert says in lab.fails("up", "--trust-domain-of", value)
    lab.assert_nothing_left(processes=set())


def test_a_lab_of_one_trust_domain_has_nobody_to_federate_with(cluster: LabUnderTest) -> None:
    assert "one trust domain" in cluster.fails("federate")
