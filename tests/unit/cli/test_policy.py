"""``ringfence policy check``: what it reads, what it prints, and how it ends."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from node_agent.cli.main import main
from tests.fake_agent import ANSWERS, fake_agent

GOOD = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/shop/sa/web"]
"""
TYPO = GOOD.replace("principals", "principal")
POD = """\
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web}
status: {podIP: 10.0.0.1}
"""


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["policy", "check", *arguments])
    said = capsys.readouterr()
    assert said.err == ""
    return code, said.out


def check_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code, out = check(capsys, "--json", *arguments)
    return code, json.loads(out)


@pytest.fixture
def web(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_text(GOOD)
    return path


def test_a_sound_policy_passes_without_an_agent(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, str(web)) == (
        0,
        "1 policy checked by themselves: --manifests or --agent says who exists: nothing is wrong\n",
    )


def test_an_unknown_field_is_an_error_with_its_line_and_what_to_write(
    web: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.write_text(TYPO)
    code, out = check(capsys, str(web))
    assert code == 1
    first, last = out.splitlines()
    assert first.startswith(
        f"{web}:9: error: spec.rules[0].from[0].source.principal: is not a field of source; it has principals"
    )
    assert first.endswith("(the agent refuses the whole file) [refused]")
    assert last.endswith("1 error")


def test_every_document_that_is_wrong_is_named_and_the_others_are_checked(
    web: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spiffe = GOOD.replace("cluster.local/", "spiffe://cluster.local/").replace("name: web,", "name: other,")
    web.write_text(f"{TYPO}---\n{TYPO}---\n{spiffe}")
    code, answer = check_json(capsys, str(web))
    assert code == 1
    assert [(each["code"], each["line"], each["policy"]) for each in answer["findings"]] == [
        ("refused", 9, None),
        ("refused", 19, None),
        ("fits-nobody", 29, "shop/other"),
    ]
    assert answer["policies"] == 1


def test_pods_among_the_files_say_who_exists(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web.write_text(GOOD + POD)
    assert check(capsys, str(web)) == (0, "1 policy checked against 1 workload: nothing is wrong\n")
    web.write_text(GOOD.replace("sa/web", "sa/wed") + POD)
    code, answer = check_json(capsys, str(web))
    assert code == 1
    (finding,) = answer["findings"]
    assert (finding["severity"], finding["code"], finding["path"]) == (
        "warning",
        "unknown-principal",
        "spec.rules[0].from[0].source.principals",
    )
    assert finding["message"].endswith("did you mean cluster.local/ns/shop/sa/web?")


def test_the_manifests_of_a_directory_say_who_exists_and_what_is_in_force(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    deny = GOOD.replace("name: web,", "name: deny,").replace("spec:", "spec:\n  action: DENY")
    (manifests / "all.yaml").write_text(f"{deny}---\n{TYPO.replace('principal:', 'principals:')}{POD}")
    code, answer = check_json(capsys, "--manifests", str(manifests), str(web))
    assert code == 1
    assert [(each["code"], each["file"]) for each in answer["findings"]] == [("denied-anyway", str(web))]

    web.write_text(GOOD.replace("app: web", "app: nope"))
    code, answer = check_json(capsys, "--manifests", str(manifests), str(web))
    assert (code, [each["code"] for each in answer["findings"]]) == (1, ["selects-nothing"])


def test_a_running_agent_says_who_exists(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "name": "web-1",
        "namespace": "shop",
        "identity": "spiffe://example.org/ns/shop/sa/web",
        "labels": {"app": "web"},
    }
    monkeypatch.setitem(ANSWERS, "/workloads", [row, {"name": "old agent"}])
    with fake_agent(tmp_path) as agent:
        code, answer = check_json(capsys, "--agent", str(agent.server_address), str(web))
    assert code == 1
    assert answer["workloads_known"] == 1
    (finding,) = answer["findings"]
    assert finding["code"] == "trust-domain"
    assert "the trust domain here is example.org" in finding["message"]


def test_an_agent_that_is_not_there_is_one_line(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", "--agent", str(tmp_path / "none.sock"), str(web)]) == 1
    assert "there is no agent socket" in capsys.readouterr().err


def test_stdin_and_directories_are_read(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert check_json(capsys, str(tmp_path))[1]["files"] == 1
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TYPO.encode())))
    code, out = check(capsys, "-")
    assert code == 1
    assert out.startswith("stdin:9: error:")


def test_the_same_policy_twice_is_an_error(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.yaml"
    copy.write_text(GOOD)
    code, answer = check_json(capsys, str(copy), str(web))
    assert code == 1
    (finding,) = answer["findings"]
    assert (finding["file"], finding["line"], finding["code"]) == (str(web), 3, "refused")
    assert finding["message"] == f"is also in {copy}; only one of the two is in force: remove the other"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1", b"{}", b"null", b"a: *b"])
def test_what_is_no_manifest_is_said_and_not_raised(
    web: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    web.write_bytes(content)
    code = main(["policy", "check", str(web)])
    said = capsys.readouterr()
    assert code == (0 if content == b"null" else 1)
    assert "Traceback" not in said.err
    assert said.out or str(web) in said.err


@pytest.mark.parametrize("name", ["nowhere.yaml", "--manifests"])
def test_a_file_that_is_not_there_is_one_line(
    name: str, web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "nowhere")
    arguments = [missing] if name == "nowhere.yaml" else ["--manifests", missing, str(web)]
    assert main(["policy", "check", *arguments]) == 1
    error = capsys.readouterr().err
    assert error == f"ringfence: {missing}: can not be read: No such file or directory\n"


def test_control_characters_of_a_manifest_do_not_reach_the_terminal(
    web: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {"principals": ["a\x1b[2Jb"]}
    spec = {"selector": {"matchLabels": {"app": "\x1b]0;x\x07"}}, "rules": [{"from": [{"source": hostile}]}]}
    web.write_text(f"{GOOD.partition('spec')[0]}spec: {json.dumps(spec)}\n{POD}")
    code, out = check(capsys, str(web))
    assert code == 1
    assert all(line.isprintable() for line in out.splitlines())
    web.write_text(f"{GOOD.partition('spec')[0]}spec: {json.dumps({chr(27): 1})}")
    assert all(line.isprintable() for line in check(capsys, str(web))[1].splitlines())


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("kind: AuthorizationPolicy", "kind: AuthorisationPolicy"),
        ("kind: AuthorizationPolicy", "kind: authorizationpolicies"),
        ("apiVersion: security.istio.io/v1", "apiVersion: security.istio/v1"),
    ],
)
def test_what_the_agent_would_skip_for_a_typing_error_is_a_warning(
    web: Path, capsys: pytest.CaptureFixture[str], written: str, instead: str
) -> None:
    web.write_text(GOOD.replace(written, instead))
    code, answer = check_json(capsys, str(web))
    assert code == 1
    (found,) = answer["findings"]
    assert (found["severity"], found["code"], found["line"], found["path"]) == ("warning", "no-policy", 2, "kind")
    assert "write security.istio.io/v1 AuthorizationPolicy" in found["message"]


def test_a_file_that_is_no_text_does_not_hide_what_is_in_the_others(
    tmp_path: Path, web: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.write_text(TYPO)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    code, answer = check_json(capsys, str(tmp_path))
    assert code == 1
    assert [(Path(each["file"]).name, each["code"]) for each in answer["findings"]] == [
        ("a.yaml", "refused"),
        ("web.yaml", "refused"),
    ]


def test_files_without_a_policy_are_not_called_right(
    web: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    web.write_text("")
    code, out = check(capsys, str(web))
    assert code == 0
    assert out.endswith("there is no AuthorizationPolicy in it\n")
    monkeypatch.setattr("sys.stdin", None)
    assert main(["policy", "check", "-"]) == 1
    assert capsys.readouterr().err == "ringfence: stdin is closed; name a file\n"


def test_a_policy_for_a_gateway_is_named_as_skipped(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web.write_text(f"{GOOD.partition('spec')[0]}spec: {{targetRefs: [{{kind: Gateway, name: edge}}]}}")
    code, out = check(capsys, str(web))
    assert code == 0
    assert "skipped: " in out


def test_the_command_without_check_is_a_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["policy"])
    assert ended.value.code == 2
    assert "required" in capsys.readouterr().err
