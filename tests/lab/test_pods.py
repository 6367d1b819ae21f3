"""Pods: their network, and commands in them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.conftest import LabUnderTest

pytestmark = pytest.mark.mesh


def test_pod_prints_its_addresses_and_identity(network: LabUnderTest) -> None:
    pod = network.pod("web", "--namespace", "shop", "--service-account", "cart", node=2)
    assert pod == {
        "name": "web",
        "namespace": "shop",
        "node": 2,
        "ipv4": "10.247.2.2",
        "ipv6": "fd52:4647:0:2::2",
        "identity": "spiffe://cluster.local/ns/shop/sa/cart",
    }
    assert network.pod("plain", "--no-mesh")["identity"] is None


def test_pod_writes_what_an_api_server_would_hold(network: LabUnderTest) -> None:
    network.pod("web", "--label", "app=web", "--port", "8080", "--port", "9090")
    pod = json.loads((network.manifests_dir / "pod.default.web.yaml").read_text())
    assert pod["metadata"]["labels"] == {"app": "web"}
    assert [port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]] == [8080, 9090]
    assert pod["status"]["podIPs"] == [{"ip": "10.247.1.2"}, {"ip": "fd52:4647:0:1::2"}]
    namespace = json.loads((network.manifests_dir / "namespace.default.yaml").read_text())
    assert namespace["metadata"]["labels"] == {"ringfence.io/mesh": "enabled"}


def test_pods_reach_each_other_on_one_node_and_across_by_both_families(network: LabUnderTest) -> None:
    network.pod("one")
    for pod in (network.pod("near"), network.pod("far", node=2)):
        for address in (pod["ipv4"], pod["ipv6"]):
            assert "1 received" in network("exec", "one", "--", "ping", "-c", "1", "-W", "5", address)


def test_the_node_drops_what_a_pod_sends_from_an_address_not_its_own(network: LabUnderTest) -> None:
    network.pod("one")
    network.pod("two")
    for own, prefix, target in (
        ("10.247.1.2", "10.247.1.99/32", "10.247.1.3"),
        ("fd52:4647:0:1::2", "fd52:4647:0:1::99/128", "fd52:4647:0:1::3"),
    ):
        network("exec", "one", "--", "ip", "addr", "add", prefix, "dev", "eth0", "nodad")
        spoofed = prefix.partition("/")[0]
        echoes = "icmp or (icmp6 and ip6[40] == 128)"
        command = ["tcpdump", "-nl", "--immediate-mode", "-i", "eth0", echoes]
        heard = network.begin("exec", "two", "--", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert heard.stderr is not None
        while "listening on" not in heard.stderr.readline():
            pass
        network("exec", "one", "--", "ping", "-c", "1", "-W", "5", "-I", own, target)
        network.run("exec", "one", "--", "ping", "-c", "1", "-W", "0.3", "-I", spoofed, target)
        heard.send_signal(signal.SIGINT)
        output, _ = heard.communicate()
        assert target in output
        assert spoofed not in output


def test_addresses_of_a_deleted_pod_are_given_out_again(network: LabUnderTest) -> None:
    before = network.pod("one")
    network("delete", "pod/default/one")
    assert network.namespaces() & {f"rf_{network.instance}-pod-default-one"} == set()
    assert not (network.manifests_dir / "pod.default.one.yaml").exists()
    assert network.pod("other")["ipv4"] == before["ipv4"]


def test_deleting_a_pod_ends_its_programs(network: LabUnderTest) -> None:
    network.pod("one")
    program = network.begin("exec", "one", "--", "sleep", "600")
    _wait_for_a_program_in(network, "one")
    network("delete", "pod/one")
    assert program.wait(60) == -signal.SIGTERM


def _wait_for_a_program_in(network: LabUnderTest, name: str) -> None:
    netns = f"rf_{network.instance}-pod-default-{name}"
    deadline = time.monotonic() + 60
    while not subprocess.run(["ip", "netns", "pids", netns], capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["web", "--node", "1"], "exists already"),
        (["other", "--node", "7"], "nodes 1 to 2"),
        (["Other_", "--node", "1"], "begin and end with a letter or digit"),
    ],
)
def test_pod_errors_say_what_was_wrong(standing: LabUnderTest, arguments: list[str], said: str) -> None:
    assert said in standing.fails("pod", *arguments)


def test_two_pods_whose_namespaces_would_have_one_name(network: LabUnderTest) -> None:
    network.pod("b-c", "--namespace", "a")
    assert "a/b-c" in network.fails("pod", "c", "--namespace", "a-b", "--node", "1")
    assert "1 received" in network("exec", "a/b-c", "--", "ping", "-c", "1", "10.247.1.1")


def test_pods_made_at_the_same_time_get_different_addresses(network: LabUnderTest) -> None:
    commands = [network.begin("pod", f"p{number}", "--node", "1", stdout=subprocess.PIPE) for number in range(6)]
    addresses = {json.loads(command.communicate(timeout=60)[0])["ipv4"] for command in commands}
    assert addresses == {f"10.247.1.{host}" for host in range(2, 8)}


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exec_ends_with_the_exit_code_of_the_command(standing: LabUnderTest, code: int) -> None:
    assert standing.run("exec", "web", "--", "sh", "-c", f"exit {code}").returncode == code


def test_exec_has_its_own_exit_codes(standing: LabUnderTest) -> None:
    missing = standing.run("exec", "web", "--", "no-such-command")
    assert (missing.returncode, "not found" in missing.stderr) == (127, True)
    assert standing.run("exec", "web", "--", "/etc/passwd").returncode == 126
    unknown = standing.run("exec", "nobody", "--", "true")
    assert (unknown.returncode, "default/web" in unknown.stderr) == (125, True)


def test_exec_passes_stdio_and_arguments_through(standing: LabUnderTest) -> None:
    assert standing("exec", "web", "--", "cat", stdin="h\u00e9llo\n") == "h\u00e9llo\n"
    words = ["-n", "--", "a b", "$HOME", "--help", "*"]
    assert standing("exec", "web", "--", "printf", "%s|", *words) == "".join(f"{word}|" for word in words)


def test_exec_passes_signals_through(standing: LabUnderTest) -> None:
    script = "trap 'echo got; exit 9' TERM; echo on; while :; do read -r line; done"
    program = standing.begin(
        "exec", "web", "--", "bash", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "on\n"
    program.send_signal(signal.SIGTERM)
    assert program.communicate(timeout=60)[0] == "got\n"
    assert program.returncode == 9


def test_exec_leaves_no_ignored_signals_to_the_command(standing: LabUnderTest) -> None:
    ignored = standing("exec", "web", "--", "grep", "SigIgn", "/proc/self/status").split()[1]
    assert int(ignored, 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0


def test_exec_gives_the_pod_its_name_and_leaves_the_machine_alone(standing: LabUnderTest) -> None:
    hosts = Path("/etc/hosts").read_bytes()
    assert standing("exec", "web", "--", "hostname") == "web\n"
    assert "10.247.1.2 web" in standing("exec", "web", "--", "cat", "/etc/hosts")
    assert "127.0.0.1" in standing("exec", "web", "--", "cat", "/etc/resolv.conf")
    assert Path("/etc/hosts").read_bytes() == hosts
    assert "resolv" not in Path("/proc/mounts").read_text()


def test_exec_hands_the_environment_on_untouched(network: LabUnderTest) -> None:
    network.pod("web")
    network.environment["PYTHONPATH"] = "/of/the/caller"
    assert network("exec", "web", "--", "printenv", "PYTHONPATH") == "/of/the/caller\n"


def test_exec_runs_in_a_node_too(standing: LabUnderTest) -> None:
    assert "10.247.0.12" in standing("exec", "node-2", "--", "ip", "addr")


def test_exec_finds_a_pod_by_its_bare_name_or_with_its_namespace(network: LabUnderTest) -> None:
    network.pod("only", "--namespace", "shop")
    network.pod("both", "--namespace", "shop")
    network.pod("both")
    assert "10.247.1.2" in network("exec", "only", "--", "ip", "addr")
    assert "10.247.1.4" in network("exec", "both", "--", "ip", "addr")
    assert "10.247.1.3" in network("exec", "shop/both", "--", "ip", "addr")


def test_exec_and_status_load_nothing_that_takes_its_time(standing: LabUnderTest) -> None:
    scripts = Path(standing.argv()[0]).parent
    program = "import sys; sys.path.insert(0, sys.argv[1]); from labkit.cli import main; sys.exit(main(sys.argv[2:]))"
    for arguments in (["exec", "web", "--", "true"], ["status"]):
        done = subprocess.run(
            [sys.executable, "-I", "-X", "importtime", "-c", program, scripts, *arguments],
            env=standing.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "labkit" in loaded
        assert loaded.isdisjoint({"asyncio", "bpf", "ca", "cryptography", "node_agent", "pyroute2", "trio", "yaml"})


def test_pod_waits_for_its_agent_and_says_why_it_does_not_serve(cluster: LabUnderTest) -> None:
    cluster.pod("good")
    labels = ["--label", "lab-test/state=pending", "--label", "lab-test/error=identity_refused"]
    error = cluster.fails("pod", "bad", "--node", "1", "--timeout", "0.5", *labels)
    assert "pending: identity_refused" in error
    states = {pod["name"]: pod["state"] for pod in cluster.status()["pods"]}
    assert states == {"good": "serving", "bad": "pending"}


def test_pod_on_a_node_without_agent_does_not_wait(cluster: LabUnderTest) -> None:
    cluster("kill", "agent-1")
    done = cluster.run("pod", "web", "--node", "1")
    assert done.returncode == 0
    assert "agent-1 does not run" in done.stderr
