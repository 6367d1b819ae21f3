"""Service-account tokens against an API server over real TLS: who is believed, and what a bad server can not do."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trustme

from ca.authority.attestation.api_server import ApiServer
from ca.authority.attestation.attested import Attested, Claim
from ca.authority.attestation.kubernetes import KubernetesTokens
from ca.authority.attestation.plugins import Attestors
from ca.authority.attestation.token_review import TokenRules
from ca.authority.errors import Refusal
from ca.messages import Attest, RefusalCode
from ca.spiffe import SpiffeId
from tests.authority_builder import TRUST_DOMAIN
from tests.kube_api_server import AUDIENCE, KubeApiServer, Misbehaviour, kube_api_server

RULES = TokenRules(audience=AUDIENCE, service_accounts=frozenset({"ringfence/ringfence-agent"}))


def plugin(kube: KubeApiServer, *, host: str = "127.0.0.1", ca_file: Path | None = None) -> KubernetesTokens:
    api_server = ApiServer(host=host, port=kube.port, ca_file=ca_file or kube.ca_file, token_file=kube.token_file)
    return KubernetesTokens(trust_domain=TRUST_DOMAIN, rules=RULES, api_server=api_server)


async def attest(kube: KubeApiServer, evidence: bytes, node: str = "node-1") -> Attested:
    return await plugin(kube).attest(Claim(node=node, evidence=evidence), at=datetime.now(UTC))


async def refused(kube: KubeApiServer, evidence: bytes, node: str = "node-1") -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await attest(kube, evidence, node)
    assert evidence.decode() not in str(refusal.value)
    return refusal.value


@pytest.mark.parametrize("knows_nodes", [True, False], ids=["since-1.30", "before"])
async def test_the_token_of_an_agents_pod_proves_the_node_that_it_runs_on(tmp_path: Path, knows_nodes: bool) -> None:
    async with kube_api_server(tmp_path) as kube:
        kube.knows_nodes = knows_nodes
        proven = await attest(kube, kube.token(kube.pod("agent-x", node="node-1")))

    assert proven.identity == SpiffeId.node(TRUST_DOMAIN, "node-1")
    assert (proven.node, proven.method) == ("node-1", "kubernetes")
    reviews = [headers for method, target, headers in kube.requests if target.endswith("/tokenreviews")]
    assert len(reviews) == 1
    assert len(kube.requests) == (1 if knows_nodes else 2)


@pytest.mark.parametrize("knows_nodes", [True, False], ids=["since-1.30", "before"])
async def test_the_token_of_another_node_is_refused(tmp_path: Path, knows_nodes: bool) -> None:
    async with kube_api_server(tmp_path) as kube:
        kube.knows_nodes = knows_nodes
        refusal = await refused(kube, kube.token(kube.pod("agent-x", node="node-2")), "node-1")
    assert refusal.code is RefusalCode.ATTESTATION_REFUSED
    assert "does not run on this node" in refusal.text
    assert "node-2" not in refusal.text


async def test_the_token_of_another_service_account_is_refused(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        for account, namespace in (("default", "ringfence"), ("ringfence-agent", "default")):
            pod = kube.pod("web-1", node="node-1", account=account, namespace=namespace)
            assert f"{namespace}/{account} is not one of the agents'" in (await refused(kube, kube.token(pod))).text


async def test_a_token_for_another_audience_is_refused_by_us_and_by_the_api_server(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        pod = kube.pod("agent-x", node="node-1")
        assert "RFC 7519 4.1.3" in (await refused(kube, kube.token(pod, audience="https://elsewhere"))).text
        assert kube.requests == []
        # The claims are the thief's to write, the signature is not.
        stolen = kube.token(pod, audience="https://elsewhere").split(b".")
        forged = b".".join([stolen[0], kube.token(pod).split(b".")[1], stolen[2]])
        assert "invalid bearer token" in (await refused(kube, forged)).text


async def test_an_expired_token_is_refused_by_us_and_by_the_api_server(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        pod = kube.pod("agent-x", node="node-1")
        assert "RFC 7519 4.1.4" in (await refused(kube, kube.token(pod, expires_in_s=-120))).text
        assert kube.requests == []
        within_the_skew = await refused(kube, kube.token(pod, expires_in_s=-5))
        assert "service account token has expired" in within_the_skew.text


async def test_a_token_that_is_bound_to_no_pod_is_refused(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        token = kube.token(kube.pod("agent-x", node="node-1"), bound=False)
        assert "not bound to a pod" in (await refused(kube, token)).text


async def test_the_token_of_a_pod_that_is_gone_is_refused(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        pod = kube.pod("agent-x", node="node-1")
        token = kube.token(pod)
        kube.pods.clear()
        assert "invalidated" in (await refused(kube, token)).text
        kube.pod("agent-x", node="node-1")  # another pod of the same name
        assert "invalidated" in (await refused(kube, token)).text


async def test_before_1_30_a_pod_that_was_replaced_during_the_review_is_refused(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        kube.knows_nodes = False
        token = kube.token(kube.pod("agent-x", node="node-1"))

        def replaced(document: dict[str, object]) -> None:
            if document["kind"] == "TokenReview":
                kube.pod("agent-x", node="node-1")

        kube.edit = replaced
        assert "(uid)" in (await refused(kube, token)).text

        token = kube.token(kube.pod("agent-x", node="node-1"))
        kube.edit = lambda document: kube.pods.clear()
        assert "is gone" in (await refused(kube, token)).text


async def test_a_review_without_our_audience_is_not_believed(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        token = kube.token(kube.pod("agent-x", node="node-1"))
        kube.edit = lambda document: document["status"].pop("audiences")
        assert "does not confirm the audience" in (await refused(kube, token)).text


async def test_the_authoritys_own_token_is_read_again_for_each_request(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        token = kube.token(kube.pod("agent-x", node="node-1"))
        await attest(kube, token)
        kube.callers = {kube.new_caller_token()}
        await attest(kube, token)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda kube: kube.callers.clear(), "status 401: it does not know the token in"),
        (lambda kube: setattr(kube, "may_review", False), "status 403: the authority's service account may not"),
        (lambda kube: kube.token_file.unlink(), "can not be read: No such file or directory (token_file)"),
        (lambda kube: kube.token_file.write_text("two words\r\nX: y"), "does not hold a token (token_file)"),
        (lambda kube: kube.token_file.write_bytes(b""), "does not hold a token (token_file)"),
        (lambda kube: kube.ca_file.write_text("x"), "it holds no certificate (ca_file)"),
        (lambda kube: kube.ca_file.unlink(), "can not be used: No such file or directory (ca_file)"),
    ],
    ids=["unknown", "forbidden", "no-token", "two-lines", "empty-token", "no-pem", "no-ca-file"],
)
async def test_what_keeps_us_from_asking_is_told_to_the_operator_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: object, says: str
) -> None:
    async with kube_api_server(tmp_path) as kube:
        token = kube.token(kube.pod("agent-x", node="node-1"))
        spoil(kube)  # type: ignore[operator]
        refusal = await refused(kube, token)
    assert refusal.code is RefusalCode.UNAVAILABLE
    assert says not in refusal.text
    (record,) = [each for each in caplog.records if each.message == "api_server_failed"]
    assert says in record.fields["why"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "misbehaviour",
    [each for each in Misbehaviour if each is not Misbehaviour.HANGS],
    ids=lambda each: each.name.lower(),
)
async def test_an_api_server_that_misbehaves_is_unavailable_and_nothing_secret_gets_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, misbehaviour: Misbehaviour
) -> None:
    async with kube_api_server(tmp_path) as kube:
        token = kube.token(kube.pod("agent-x", node="node-1"))
        kube.misbehave = misbehaviour
        refusal = await refused(kube, token)
        assert len(kube.requests) == 1  # a redirect above all
    assert refusal.code is RefusalCode.UNAVAILABLE
    logged = json.dumps([vars(each) for each in caplog.records], default=str)
    assert "api_server_failed" in logged
    for secret in (token.decode(), kube.token_file.read_text().strip(), "caller-x", "Sign in"):
        assert secret not in logged


async def test_nobody_else_is_told_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other_ca = tmp_path / "other.pem"
    other_ca.write_bytes(trustme.CA().cert_pem.bytes())
    async with kube_api_server(tmp_path) as kube:
        token = kube.token(kube.pod("agent-x", node="node-1"))
        for asked in (plugin(kube, ca_file=other_ca), plugin(kube, host="localhost")):
            with pytest.raises(Refusal) as refusal:
                await asked.attest(Claim(node="node-1", evidence=token), at=datetime.now(UTC))
            assert refusal.value.code is RefusalCode.UNAVAILABLE
        assert kube.requests == []
    assert all("is not to be trusted" in each.fields["why"] for each in caplog.records)  # type: ignore[attr-defined]


async def test_an_api_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        token = kube.token(kube.pod("agent-x", node="node-1"))
    assert (await refused(kube, token)).code is RefusalCode.UNAVAILABLE


def request(evidence: bytes, *, method: str = "kubernetes") -> Attest:
    return Attest(plugin=method, node="node-1", evidence=evidence, csr_der=b"x")


@asynccontextmanager
async def hanging(tmp_path: Path) -> AsyncIterator[tuple[KubeApiServer, Attestors, Attest]]:
    async with kube_api_server(tmp_path) as kube:
        kube.misbehave = Misbehaviour.HANGS
        attestors = Attestors(enabled=("join_token", "kubernetes"), plugins=(plugin(kube),))
        yield kube, attestors, request(kube.token(kube.pod("agent-x", node="node-1")))


async def test_an_api_server_that_hangs_is_given_up_then_left_alone_then_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.authority.attestation.plugins._DEADLINE_S", 0.3)
    monkeypatch.setattr("ca.authority.attestation.circuit._FIRST_PAUSE_S", 1.0)
    async with hanging(tmp_path) as (kube, attestors, claim):
        for _ in range(3):
            slow = await attestors.judge(claim, at=datetime.now(UTC))
            assert isinstance(slow, Refusal)
            assert (slow.code, "took longer" in slow.text) == (RefusalCode.UNAVAILABLE, True)
            assert slow.retry_after_s > 0
        asked = len(kube.requests)
        left_alone = await attestors.judge(claim, at=datetime.now(UTC))
        assert isinstance(left_alone, Refusal)
        assert (left_alone.code, len(kube.requests)) == (RefusalCode.UNAVAILABLE, asked)
        assert 0 < left_alone.retry_after_s <= 1.0
        kube.misbehave = None
        monkeypatch.setattr("ca.authority.attestation.plugins._DEADLINE_S", 30.0)
        while not isinstance(judged := await attestors.judge(claim, at=datetime.now(UTC)), Attested):
            assert judged is not None
            await trio.sleep(judged.retry_after_s)
        assert judged.node == "node-1"


async def test_of_many_who_attest_at_once_a_bounded_number_is_asked_for_and_some_are_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.authority.attestation.plugins._MAX_RUNNING", 3)
    monkeypatch.setattr("ca.authority.attestation.plugins._MAX_WAITING", 5)
    async with hanging(tmp_path) as (kube, attestors, claim):
        turned_away: list[Refusal] = []

        async def judge() -> None:
            judged = await attestors.judge(claim, at=datetime.now(UTC))
            assert isinstance(judged, Refusal)
            turned_away.append(judged)

        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(judge)
            while len(kube.requests) < 3 or len(turned_away) < 4:
                await trio.sleep(0.01)
            assert (len(kube.requests), len(turned_away)) == (3, 4)
            nursery.cancel_scope.cancel()
    assert {each.code for each in turned_away} == {RefusalCode.UNAVAILABLE}
    assert len({each.retry_after_s for each in turned_away}) == 4  # so that they do not come back together


async def test_the_log_says_which_pod_vouched_for_a_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ringfence.ca")
    async with kube_api_server(tmp_path) as kube:
        pod = kube.pod("agent-x", node="node-1")
        claim = request(kube.token(pod))
        judged = await Attestors(enabled=("kubernetes",), plugins=(plugin(kube),)).judge(claim, at=datetime.now(UTC))
    assert isinstance(judged, Attested)
    (event,) = [each.fields for each in caplog.records if each.message == "attested"]  # type: ignore[attr-defined]
    by = f"pod ringfence/agent-x ({pod.uid}), service account ringfence-agent"
    assert event == {"plugin": "kubernetes", "node": "node-1", "by": by}


async def test_a_method_that_is_not_enabled_is_refused_with_those_that_are() -> None:
    attestors = Attestors(enabled=("join_token", "kubernetes"))
    judged = await attestors.judge(request(b"x", method="x\n\x1b[31m" + "y" * 40), at=datetime.now(UTC))
    assert isinstance(judged, Refusal)
    assert judged.code is RefusalCode.ATTESTATION_REFUSED
    assert "enabled: join_token, kubernetes" in judged.text
    assert judged.text.isprintable()


async def test_a_plugin_with_a_bug_grants_nothing_and_its_error_is_not_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy:
        name = "kubernetes"

        async def attest(self, claim: Claim, *, at: datetime) -> Attested:
            raise ValueError(f"what is {claim.evidence!r}")

    class Generous:
        name = "kubernetes"

        async def attest(self, claim: Claim, *, at: datetime) -> Attested:
            return Attested(identity=SpiffeId.node(TRUST_DOMAIN, "node-2"), node="node-2", method=self.name)

    for each in (Buggy(), Generous()):
        judged = await Attestors(enabled=("kubernetes",), plugins=(each,)).judge(
            request(b"s3cret"), at=datetime.now(UTC)
        )
        assert isinstance(judged, Refusal)
        assert judged.code is RefusalCode.INTERNAL
    assert [each.message for each in caplog.records] == ["attestation_plugin_failed"] * 2
    assert "s3cret" not in json.dumps([vars(each) for each in caplog.records], default=str)


def test_evidence_is_never_shown() -> None:
    assert "s3cret" not in repr(request(b"s3cret"))
    assert "s3cret" not in repr(Claim(node="node-1", evidence=b"s3cret"))
    assert "s3cret" not in repr(replace(request(b"x"), evidence=b"s3cret"))
