"""docs/attestation.md shows configurations that load and commands that work."""

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from ca.authority.attestation import circuit, instance_document, kubernetes, plugins
from ca.authority.attestation.attested import Claim
from ca.authority.config import AuthorityConfig
from ca.manifests.documents import read_documents
from ca.messages import _MAX_EVIDENCE_BYTES
from node_agent import config as agent_config
from node_agent.identity.node_proof import proof_from
from tests.instance_documents import Provider

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs/attestation.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", [each for each in blocks("toml") if "[attestation]" in each])
def test_the_cas_configurations_load(tmp_path: Path, text: str) -> None:
    certificate_file = tmp_path / "machines.pem"
    certificate_file.write_bytes(Provider(at=datetime.now(UTC)).pem)
    text = text.replace("/etc/ringfence/machines.pem", str(certificate_file))
    if "[attestation.kubernetes]" not in text and '"kubernetes"' in text:
        text += '[attestation.kubernetes]\nservice_accounts = ["ringfence/ringfence-agent"]\n'
    (tmp_path / "ca.toml").write_text(text)
    found = AuthorityConfig.load(tmp_path / "ca.toml").attestation
    assert set(found.plugins) <= {"join_token", kubernetes.KUBERNETES, instance_document.INSTANCE_DOCUMENT}


def agent_configuration(tmp_path: Path) -> agent_config.Config:
    (text,) = [each for each in blocks("toml") if "[ca]" in each]
    head = '[agent]\nnode = "i-0abc"\n'
    text = text.replace("[ca]", f'[ca]\naddress = "127.0.0.1:15012"\nbundle_file = "{tmp_path}/bundle.pem"')
    path = tmp_path / "agent.toml"
    path.write_text(head + text.replace("/run/ringfence", str(tmp_path)))
    return agent_config.load(path)


def test_what_openssl_signs_as_shown_is_what_the_agent_shows_and_the_ca_believes(tmp_path: Path) -> None:
    (shown,) = blocks("json")
    document = json.loads(shown) | {"pendingTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    (tmp_path / "document.json").write_text(json.dumps(document))
    (commands,) = [each for each in blocks("sh") if "openssl" in each]
    shell = ["bash", "-euo", "pipefail", "-c", commands]
    subprocess.run(shell, cwd=tmp_path, check=True, capture_output=True, timeout=120)

    text = next(each for each in blocks("toml") if "certificate_file" in each)
    (tmp_path / "ca.toml").write_text(text.replace("/etc/ringfence", str(tmp_path)))
    rules = AuthorityConfig.load(tmp_path / "ca.toml").attestation.instance_document
    assert rules is not None
    proof = proof_from(agent_configuration(tmp_path).ca)()
    assert proof.plugin == "instance_document"
    claim = Claim(node="i-0abc", evidence=proof.evidence)
    assert instance_document.judge(claim, rules=rules, at=datetime.now(UTC)).id == "123456789012/i-0abc"


def test_the_manifests_shown_are_yaml_and_name_the_files_of_the_agents_default(tmp_path: Path) -> None:
    cluster, pod = blocks("yaml")
    assert len(list(read_documents(cluster))) == 3
    default = agent_config.CaSection(address=(), bundle_file=tmp_path).service_account_token_file
    assert f"mountPath: {default.parent}" in pod
    assert f"path: {default.name}, audience: ringfence-ca" in pod


def test_the_bounds_that_a_plugin_can_rely_on_are_those_of_the_code() -> None:
    bounds = re.sub(r"\s+", " ", PAGE)
    running, waiting, deadline_s = plugins._MAX_RUNNING, plugins._MAX_WAITING, plugins._DEADLINE_S
    assert f"at most {running} of you at once, {waiting} waiting, each for {deadline_s:g} s" in bounds
    assert f"for {circuit._FIRST_PAUSE_S:g} s, then one at a time, up to {circuit._LONGEST_PAUSE_S:g} s apart" in bounds
    assert circuit._FAILURES == 3
    assert f"up to {_MAX_EVIDENCE_BYTES // 1024} KiB of bytes" in bounds
