"""apply and delete, cluster IPs, names, and Services for pods that are not in the mesh."""

import json
import subprocess

import pytest

from tests.lab.conftest import LabUnderTest

pytestmark = pytest.mark.mesh

_SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web, labels: {answer: no}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""


def _service(network: LabUnderTest, name: str) -> dict[str, object]:
    spec: dict[str, object] = json.loads((network.manifests_dir / f"service.default.{name}.yaml").read_text())["spec"]
    return spec


def test_apply_says_what_it_did_as_kubectl_does(cluster: LabUnderTest) -> None:
    assert cluster("apply", "-", stdin=_SERVICE) == "service/default/web created\n"
    assert cluster("apply", "-", stdin=_SERVICE) == "service/default/web unchanged\n"
    changed = _SERVICE.replace("8080", "9090") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
    assert cluster("apply", "-", stdin=changed) == "service/default/web configured\nnamespace/shop created\n"


def test_a_service_gets_a_cluster_ip_of_each_family_and_keeps_it(network: LabUnderTest) -> None:
    network("apply", "-", stdin=_SERVICE)
    network("apply", "-", stdin=_SERVICE.replace("name: web,", "name: other,"))
    assert _service(network, "web")["clusterIPs"] == ["10.248.0.1", "fd52:4647:ffff::1"]
    assert _service(network, "other")["clusterIPs"] == ["10.248.0.2", "fd52:4647:ffff::2"]
    network("apply", "-", stdin=_SERVICE.replace("8080", "9090"))
    assert _service(network, "web")["clusterIPs"] == ["10.248.0.1", "fd52:4647:ffff::1"]


def test_cluster_ips_that_a_manifest_asks_for(network: LabUnderTest) -> None:
    network("apply", "-", stdin=_SERVICE.replace("spec:", "spec:\n  clusterIP: 10.248.7.7"))
    assert _service(network, "web")["clusterIPs"] == ["10.248.7.7", "fd52:4647:ffff::1"]
    headless = _SERVICE.replace("name: web,", "name: headless,").replace("spec:", "spec:\n  clusterIP: None")
    network("apply", "-", stdin=headless)
    assert _service(network, "headless")["clusterIP"] == "None"
    six = _SERVICE.replace("name: web,", "name: six,").replace("spec:", "spec:\n  ipFamilies: [IPv6]")
    network("apply", "-", stdin=six)
    assert _service(network, "six")["clusterIPs"] == ["fd52:4647:ffff::2"]
    taken = _SERVICE.replace("name: web,", "name: thief,").replace("spec:", "spec:\n  clusterIP: 10.248.7.7")
    assert "another Service's" in network.fails("apply", "-", stdin=taken)
    assert "leave it out" in network.fails("apply", "-", stdin=taken.replace("10.248.7.7", "10.0.0.1"))


def test_one_wrong_document_and_nothing_changes(network: LabUnderTest) -> None:
    text = _SERVICE + "---\n" + _SERVICE.replace("name: web,", "name: bad,").replace("port: 80,", "port: 99999,")
    error = network.fails("apply", "-", stdin=text)
    assert "document 2" in error
    assert "spec.ports[0].port" in error
    assert "nothing was changed" in error
    assert not (network.manifests_dir / "service.default.web.yaml").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no object"),
        ("kind: [", "not valid YAML"),
        ("apiVersion: v1\nkind: Service\nmetadata: {}\n", "metadata.name"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: ../../x}\n", "name"),
        ("apiVersion: x/v1\nkind: Foo\nmetadata: {name: ../../x}\n", "name"),
        ("just text", "document 1"),
    ],
)
def test_apply_errors_are_clear(standing: LabUnderTest, text: str, said: str) -> None:
    assert said in standing.fails("apply", "-", stdin=text)


def test_a_file_that_can_not_be_read(standing: LabUnderTest) -> None:
    assert "/no/such.yaml" in standing.fails("apply", "/no/such.yaml")


def test_files_that_people_put_there_themselves(network: LabUnderTest) -> None:
    network.pod("one", "--no-mesh", "--label", "app=web")
    (network.manifests_dir / "mine.yaml").write_text(_SERVICE.replace("spec:", "spec:\n  clusterIP: 10.248.9.9"))
    for name, text in {
        "broken": "kind: [",
        "wrong": _SERVICE.replace("ports: [{", "ports: {{"),
        "other": _SERVICE,
    }.items():
        (network.manifests_dir / f"{name}.yaml").write_text(text)
    network.pod("two", "--no-mesh")
    assert "10.248.9.9" in network("exec", "two", "--", "getent", "ahosts", "web")


def test_a_kind_that_is_not_used_is_kept_and_reported(network: LabUnderTest) -> None:
    done = network.run("apply", "-", stdin="apiVersion: x/v1\nkind: Foo\nmetadata: {name: f}\n")
    assert (done.returncode, done.stdout) == (0, "foo/default/f created\n")
    assert "not used" in done.stderr


def test_apply_of_a_pod_by_hand_keeps_what_the_lab_knows(network: LabUnderTest) -> None:
    network.pod("web", "--label", "app=web")
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: other}}\n"
    assert network("apply", "-", stdin=text) == "pod/default/web configured\n"
    pod = json.loads((network.manifests_dir / "pod.default.web.yaml").read_text())
    assert pod["metadata"]["labels"] == {"app": "other"}
    assert pod["spec"]["nodeName"] == "node-1"
    assert pod["status"]["podIP"] == "10.247.1.2"


def test_delete_one_object_and_a_namespace_with_all_in_it(cluster: LabUnderTest) -> None:
    cluster("apply", "-", stdin=_SERVICE)
    assert cluster("delete", "service/default/web") == "service/default/web deleted\n"
    assert "none of this kind" in cluster.fails("delete", "service/default/web")
    cluster.pod("web", "--namespace", "shop")
    cluster("apply", "-", stdin=_SERVICE.replace("name: web,", "name: web, namespace: shop,"))
    deleted = cluster("delete", "namespace/shop").splitlines()
    assert deleted == ["pod/shop/web deleted", "service/shop/web deleted", "namespace/shop deleted"]
    assert cluster("pods", "--json").strip() == "[]"


@pytest.mark.parametrize("name", ["service", "service//web", "node/default/node-1", "a/b/c/d", "service/../x"])
def test_delete_wants_a_whole_name(standing: LabUnderTest, name: str) -> None:
    assert "write " in standing.fails("delete", name)


def test_a_running_program_sees_new_services_by_every_name(network: LabUnderTest) -> None:
    network.pod("client")
    network.pod("stranger", "--namespace", "shop")
    look = "import socket, sys\nfor line in sys.stdin:\n    print(socket.gethostbyname(line.strip()), flush=True)"
    program = network.begin(
        "exec", "client", "--", "python3", "-c", look, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("client\n")
    program.stdin.flush()
    assert program.stdout.readline() == "10.247.1.2\n"

    network("apply", "-", stdin=_SERVICE)

    output, _ = program.communicate("web\nweb.default\nweb.default.svc.cluster.local\n", timeout=10)
    assert output == "10.248.0.1\n" * 3
    assert network.run("exec", "shop/stranger", "--", "getent", "ahosts", "web").returncode == 2
    assert "10.248.0.1" in network("exec", "shop/stranger", "--", "getent", "ahosts", "web.default")


_SERVE = "import socket; s = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True)\n"
_SERVE += "print('on', flush=True)\nwhile True: c, _ = s.accept(); c.send(socket.gethostname().encode()); c.close()"
_ASK = "import socket, sys\nfor _ in range(int(sys.argv[2])):\n"
_ASK += "    c = socket.create_connection((sys.argv[1], 80), timeout=5)\n"
_ASK += "    print(c.recv(99).decode(), c.getpeername()[0])"


def _serve(network: LabUnderTest, name: str) -> "subprocess.Popen[str]":
    program = network.begin("exec", name, "--", "python3", "-c", _SERVE, stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "on\n"
    program.stdout.close()
    return program


@pytest.mark.parametrize("ip", ["10.248.0.1", "fd52:4647:ffff::1"])
def test_pods_out_of_the_mesh_and_nodes_reach_a_service(network: LabUnderTest, ip: str) -> None:
    for name, node in (("one", 1), ("two", 2)):
        network.pod(name, "--no-mesh", "--label", "app=web", node=node)
    servers = [_serve(network, "one"), _serve(network, "two")]
    network.pod("client", "--no-mesh")
    network("apply", "-", stdin=_SERVICE)

    for source in ("client", "one", "node-1", "node-2"):
        answers = set(network("exec", source, "--", "python3", "-c", _ASK, ip, "40").splitlines())
        assert answers == {f"one {ip}", f"two {ip}"}, source

    network("delete", "pod/two")
    network("delete", "pod/one")
    refused = network.run("exec", "client", "--", "python3", "-c", _ASK, ip, "1")
    assert "ConnectionRefusedError" in refused.stderr
    for server in servers:
        server.wait(60)


def test_endpoint_slices_win_over_the_selector(network: LabUnderTest) -> None:
    network.pod("one", "--no-mesh", "--label", "app=web")
    network.pod("two", "--no-mesh")
    servers = [_serve(network, "one"), _serve(network, "two")]
    endpoint_slice = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.247.1.3], conditions: {ready: true}}
- {addresses: [10.247.1.2], conditions: {ready: false}}
"""
    network("apply", "-", stdin=_SERVICE + "---\n" + endpoint_slice)
    answers = network("exec", "node-1", "--", "python3", "-c", _ASK, "10.248.0.1", "20")
    assert set(answers.splitlines()) == {"two 10.248.0.1"}
    network("down")
    for server in servers:
        server.wait(60)
