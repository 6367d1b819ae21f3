"""stop, kill, start, restart, cut, heal, tap, logs, ringfence."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.conftest import LabUnderTest

pytestmark = pytest.mark.mesh


@pytest.mark.parametrize("name", ["ca", "agent-2"])
def test_stop_and_kill_report_the_exit_code_and_start_starts(cluster: LabUnderTest, name: str) -> None:
    assert cluster("stop", name) == f"{name} ended with exit code 0\n"
    assert "does not run" in cluster.fails("stop", name)
    assert "runs with pid" in cluster("start", name)
    assert "runs already" in cluster.fails("start", name)
    assert cluster("kill", name) == f"{name} ended with exit code {128 + signal.SIGKILL}\n"
    cluster("restart", name)
    assert "ended with exit code 0" in cluster("restart", name)


def test_status_shows_what_does_not_run_and_how_it_ended(cluster: LabUnderTest) -> None:
    cluster("kill", "agent-1")
    agent = cluster.status()["agents"][0]
    assert (agent["running"], agent["pid"], agent["exit_code"], agent["ready"]) == (False, None, 137, False)
    assert "ended with exit code 137" in cluster("status")


def test_a_number_that_another_process_has_now_is_not_taken_for_the_agent(cluster: LabUnderTest) -> None:
    cluster("kill", "agent-1")
    (cluster.state_dir / "agent-1/pid").write_text("1 0\n")
    assert not cluster.status()["agents"][0]["running"]
    assert "does not run" in cluster.fails("kill", "agent-1")


def test_an_agent_that_ends_at_start_shows_the_end_of_its_log(cluster: LabUnderTest) -> None:
    cluster("stop", "agent-1")
    (cluster.state_dir / "agent-1/join-token").write_text("something else\n")
    error = cluster.fails("start", "agent-1")
    assert "exit code 1" in error
    assert "no join token" in error


def test_agents_that_have_not_the_manifests_are_named(cluster: LabUnderTest) -> None:
    agent = cluster.status()["agents"][1]
    subprocess.run(["kill", "-STOP", str(agent["pid"])], check=True)
    error = cluster.fails("pod", "web", "--node", "1", "--timeout", "0.5")
    assert "agent-2 does not answer" in error


def test_an_unknown_process(cluster: LabUnderTest) -> None:
    assert "ca, agent-1, agent-2" in cluster.fails("stop", "agent-3")


def test_cut_drops_both_families_between_the_pods_and_nodes_until_healed(network: LabUnderTest) -> None:
    one, two = network.pod("one"), network.pod("two", node=2)
    pairs = [("one", two["ipv4"]), ("one", two["ipv6"]), ("node-2", one["ipv4"]), ("node-1", "10.247.0.12")]

    def reached() -> list[bool]:
        ping = ["--", "ping", "-c", "1", "-W", "0.4"]
        return [network.run("exec", source, *ping, target).returncode == 0 for source, target in pairs]

    assert reached() == [True] * 4
    assert network("cut", "2", "1") == "cut: node 2 and node 1\n"
    assert "already" in network("cut", "1", "2")
    assert network.status()["cuts"] == [[1, 2]]
    assert reached() == [False] * 4
    assert "1 received" in network("exec", "node-1", "--", "ping", "-c", "1", "10.247.0.10")
    network("heal", "1", "2")
    assert "was not cut" in network("heal", "1", "2")
    assert reached() == [True] * 4
    assert "same node" in network.fails("cut", "1", "1")
    assert "nodes 0 to 2" in network.fails("cut", "1", "9")


def test_tap_records_whole_packets_from_the_moment_it_says_so(network: LabUnderTest, tmp_path: Path) -> None:
    network.pod("one")
    network.pod("two", node=2)
    file = tmp_path / "link.pcap"
    tap = network.begin("tap", str(file), "--seconds", "6", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert tap.stdout is not None
    assert tap.stdout.readline() == "recording\n"
    begin = time.monotonic()
    pattern = "5249" * 8
    network("exec", "one", "--", "ping", "-c", "1", "-s", "1300", "-p", pattern, "10.247.2.2")
    assert "0 packets dropped" in tap.communicate(timeout=60)[1]
    assert tap.returncode == 0
    assert time.monotonic() - begin > 5
    assert file.read_bytes().count(b"RI" * 600) == 2


def test_no_recorder_is_left_of_a_tap_that_was_killed(network: LabUnderTest, tmp_path: Path) -> None:
    tap = network.begin("tap", str(tmp_path / "x.pcap"), "--seconds", "600", stdout=subprocess.PIPE)
    assert tap.stdout is not None
    assert tap.stdout.readline() == "recording\n"
    tap.kill()
    tap.communicate()
    deadline = time.monotonic() + 60
    link = f"rf_{network.instance}-link"
    while subprocess.run(["ip", "netns", "pids", link], capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline


def test_tap_into_a_file_that_can_not_be_written(network: LabUnderTest) -> None:
    assert "/no/such/dir" in network.fails("tap", "/no/such/dir/x.pcap", "--seconds", "1")


def test_logs_prints_everything_since_up_and_follows(cluster: LabUnderTest) -> None:
    cluster("restart", "agent-1")
    assert cluster("logs", "agent-1") == "serving\ndraining\nserving\n"
    follow = cluster.begin("logs", "agent-1", "--follow", stdout=subprocess.PIPE)
    assert follow.stdout is not None
    assert [follow.stdout.readline() for _ in range(3)][-1] == "serving\n"
    cluster("stop", "agent-1")
    assert follow.stdout.readline() == "draining\n"
    follow.terminate()
    follow.communicate()


def test_ringfence_runs_the_operators_command_against_an_agent_or_the_ca(cluster: LabUnderTest) -> None:
    told = json.loads(cluster("ringfence", "2", "status", "--json"))
    assert told == ["status", "--json", "--agent", f"{cluster.state_dir}/agent-2/agent.sock"]
    assert json.loads(cluster("ringfence", "2", "help", "explain")) == ["help", "explain"]
    told = json.loads(cluster("ringfence", "ca", "status"))
    assert told == ["ca", "status", "--config", f"{cluster.state_dir}/ca/ca.toml"]
    assert "agent-1, agent-2" in cluster.fails("ringfence", "7", "status")
