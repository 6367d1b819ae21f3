"""Polling: what is taken, what is refused, what stays; and two authorities whose operators federate them."""

import json
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing

from ca.authority.federation import fetching, polling
from ca.authority.federation.polling import FederationPoller
from ca.authority.federation.relation import EndpointUrl, FederatedDomain, Relation
from ca.authority.federation.settings import BundleEndpointSettings
from ca.authority.store import Store
from ca.authority.trust_assembly import own_bundle
from ca.bundle import write_bundle
from ca.spiffe import SpiffeId
from ca.trust import TrustBundle
from tests.authority_builder import Authority, make_authority
from tests.authority_process import RINGFENCE, Process, ringfence, running
from tests.bundle_server import ENDPOINT_ID, THEIRS, ServedBundle, make_bundle, now, serving_bundle
from tests.certificates import make_root


class _Polled:
    """A poller over a real store, with one relation to ``served``."""

    def __init__(self, directory: Path, served: ServedBundle) -> None:
        self.authority: Authority = make_authority(directory)
        self.store = Store.open(self.authority.config.database)
        self.served = served

    def add(self, bundle: TrustBundle | None, **changes: Any) -> None:
        self.store.federation.add(self.served.relation(**changes), bundle, check=lambda _: None)

    @property
    def domain(self) -> FederatedDomain:
        (found,) = self.store.federation.domains()
        return found

    async def until(self, what: Callable[[FederatedDomain], object]) -> FederatedDomain:
        with trio.fail_after(30):
            while not what(self.domain):
                await trio.sleep(0.02)
        return self.domain


@asynccontextmanager
async def _polling(directory: Path, served: ServedBundle) -> AsyncIterator[_Polled]:
    made = _Polled(directory, served)
    poller = FederationPoller(
        store=made.store,
        limiter=trio.CapacityLimiter(1),
        own_bundle=lambda: own_bundle(made.store, trust_domain="cluster.local"),
        issuers=lambda: [record.certificate for record in made.store.authorities()],
        rng=random.Random(1),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.run)
        yield made
        nursery.cancel_scope.cancel()
    made.store.close()


_QUICK: Final = BundleEndpointSettings(host="127.0.0.1", port=0, refresh_hint_s=1)


async def test_what_changes_at_the_endpoint_is_in_force_after_the_next_poll(tmp_path: Path) -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS)), _QUICK) as served, _polling(tmp_path, served) as polled:
        polled.add(served.bundle)
        await polled.until(lambda domain: domain.polled_at)
        version = polled.store.trust.version()
        served.bundle = make_bundle(served.root, make_root(THEIRS), sequence=2)
        domain = await polled.until(lambda domain: domain.bundle and domain.bundle.sequence == 2)
        assert domain.bundle is not None
        assert domain.bundle.x509_der == served.bundle.x509_der
        assert polled.store.trust.version() == version + 1


async def test_a_lower_sequence_number_is_refused_and_what_was_in_force_stays(tmp_path: Path) -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS)), _QUICK) as served, _polling(tmp_path, served) as polled:
        newer = make_bundle(served.root, sequence=9)
        polled.add(newer)
        domain = await polled.until(lambda domain: domain.failures)
        assert "gone back from 9 to 1" in domain.problem
        assert domain.bundle == newer
        served.bundle = make_bundle(served.root, sequence=10)
        domain = await polled.until(lambda domain: not domain.problem)
        assert domain.bundle is not None
        assert domain.bundle.sequence == 10


async def test_a_failed_poll_keeps_the_bundle_and_is_tried_at_the_next_interval(tmp_path: Path) -> None:
    served = ServedBundle(make_root(THEIRS))
    async with serving_bundle(served, _QUICK):
        pass  # gone again: its port answers nobody
    async with _polling(tmp_path, served) as polled:
        bundle = replace(served.bundle, refresh_hint_s=3600.0)
        polled.add(bundle)
        domain = await polled.until(lambda domain: domain.failures)
        assert domain.bundle == bundle
        assert "refused" in domain.problem
        assert 3200 < (domain.next_poll_at - now()).total_seconds() <= 3600


async def test_the_root_that_replaces_the_one_that_was_configured_judges_the_next_poll(tmp_path: Path) -> None:
    """ "The latest available bundle MUST be used to validate any subsequent connections" (5.2.2.4)."""
    async with serving_bundle(ServedBundle(make_root(THEIRS)), _QUICK) as served, _polling(tmp_path, served) as polled:
        polled.add(served.bundle)
        await polled.until(lambda domain: domain.polled_at)
        old, new = served.root, make_root(THEIRS)
        served.bundle = make_bundle(old, new, sequence=2)
        await polled.until(lambda domain: domain.bundle and domain.bundle.sequence == 2)
        served.own = new.leaf(str(ENDPOINT_ID)).own
        served.bundle = make_bundle(new, sequence=3)
        domain = await polled.until(lambda domain: domain.bundle and domain.bundle.sequence == 3)
        assert domain.failures == 0


async def test_a_bug_in_one_poll_ends_neither_the_poller_nor_the_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fetching.fetch
    broken = []

    async def fetch(relation: Relation, **arguments: Any) -> bytes:
        if relation.trust_domain == THEIRS:
            broken.append(relation)
            raise ZeroDivisionError("a bug")
        return await real(relation, **arguments)

    monkeypatch.setattr(polling, "fetch", fetch)
    third = make_root("third.example")
    served = ServedBundle(third, third.leaf(str(SpiffeId.authority("third.example"))))
    served.bundle = make_bundle(third, trust_domain="third.example")
    async with serving_bundle(served, _QUICK), _polling(tmp_path, served) as polled:
        polled.add(make_bundle(make_root(THEIRS)))
        good = served.relation(trust_domain="third.example", endpoint_id=SpiffeId.authority("third.example"))
        polled.store.federation.add(good, served.bundle, check=lambda _: None)
        with trio.fail_after(30):
            while not (broken and polled.store.federation.domains()[1].polled_at):
                await trio.sleep(0.02)
        assert len(broken) == 1, "a bug does not fill the log"


async def test_a_relation_that_is_removed_is_asked_no_more(tmp_path: Path) -> None:
    async with serving_bundle(ServedBundle(make_root(THEIRS)), _QUICK) as served, _polling(tmp_path, served) as polled:
        polled.add(served.bundle)
        await polled.until(lambda domain: domain.polled_at)
        polled.store.federation.remove(THEIRS)
        served.bundle = make_bundle(served.root, make_root(THEIRS), sequence=2)
        # Another relation is the clock: while it is polled twice, the one that is gone would have been.
        witness = make_bundle(make_root("third.example"), trust_domain="third.example")
        relation = served.relation(trust_domain="third.example", endpoint_id=SpiffeId.authority("third.example"))
        polled.store.federation.add(relation, witness, check=lambda _: None)
        version = polled.store.trust.version()
        domain = await polled.until(lambda domain: domain.failures >= 2)
        assert domain.trust_domain == "third.example"
        assert polled.store.trust.version() == version


async def test_an_endpoint_of_a_third_trust_domain_is_judged_by_that_ones_bundle(tmp_path: Path) -> None:
    third = make_root("third.example")
    served = ServedBundle(make_root(THEIRS), third.leaf("spiffe://third.example/bundles"))
    async with serving_bundle(served, _QUICK), _polling(tmp_path, served) as polled:
        idle = served.relation(
            trust_domain="third.example",
            url=EndpointUrl("127.0.0.1", 9, "/"),
            endpoint_id=SpiffeId.authority("third.example"),
        )
        polled.store.federation.add(idle, make_bundle(third, trust_domain="third.example"), check=lambda _: None)
        polled.add(None, endpoint_id=SpiffeId.parse("spiffe://third.example/bundles"))
        with trio.fail_after(30):
            while (bundle := polled.store.federation.domains()[0].bundle) is None:
                await trio.sleep(0.02)
        assert bundle.x509_der == served.bundle.x509_der


def _second(directory: Path, trust_domain: str) -> Authority:
    directory.mkdir()
    more = '[bundle_endpoint]\naddress = "127.0.0.1:0"\nrefresh_hint_s = 1\n'
    return make_authority(directory, trust_domain=trust_domain, more=more)


async def _bundle_port(server: Process) -> int:
    port: int = (await server.logged("serving_bundle"))["port"]
    return port


def _run(authority: Authority, *arguments: str | Path) -> str:
    done = ringfence("ca", "federation", *arguments, "--config", authority.config_file)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_two_authorities_exchange_bundles_and_their_operators_see_it(tmp_path: Path) -> None:
    ours, theirs = _second(tmp_path / "ours", "cluster.local"), _second(tmp_path / "theirs", THEIRS)
    first = tmp_path / "theirs.json"
    first.write_text(_run(theirs, "bundle"))
    async with running(ours) as (our_server, _), running(theirs) as (their_server, _):
        url = f"https://127.0.0.1:{await _bundle_port(their_server)}/"
        said = _run(ours, "add", THEIRS, "--endpoint", url, "--bundle", first)
        assert said == f"{THEIRS} is trusted from now on; its bundle is fetched from {url}\n"
        await our_server.logged("trust_changed")
        with trio.fail_after(30):
            while not (listed := json.loads(_run(ours, "list", "--json")))[0]["polled_at"]:
                await trio.sleep(0.05)
        (domain,) = listed
        assert (domain["trust_domain"], domain["roots"], domain["problem"]) == (THEIRS, 1, "")
        assert domain["endpoint_id"] == f"spiffe://{THEIRS}/ringfence/ca"
        assert "trusted" in _run(ours, "list")
        assert "1 to be fetched now" in _run(ours, "refresh")
        assert "no longer trusted" in _run(ours, "remove", THEIRS)
        assert json.loads(_run(ours, "list", "--json")) == []


async def test_a_new_root_is_fetched_by_others_before_it_is_used(tmp_path: Path) -> None:
    ours, theirs = _second(tmp_path / "ours", "cluster.local"), _second(tmp_path / "theirs", THEIRS)
    first = tmp_path / "theirs.json"
    first.write_text(_run(theirs, "bundle"))
    async with running(ours), running(theirs) as (their_server, _):
        url = f"https://127.0.0.1:{await _bundle_port(their_server)}/"
        _run(ours, "add", THEIRS, "--endpoint", url, "--bundle", first)
        command = [*RINGFENCE, "ca", "rotate", "root", "--config", str(theirs.config_file)]
        rotating = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        assert rotating.stdout is not None
        said = b""
        while b"waiting until" not in said:
            said += (data := await rotating.stdout.receive_some())
            assert data, said
        # It waits so long; this machine may take longer, so it is held where it waits.
        rotating.send_signal(signal.SIGSTOP)
        try:
            with trio.fail_after(30):
                while json.loads(_run(ours, "list", "--json"))[0]["roots"] != 2:
                    await trio.sleep(0.05)
            assert rotating.poll() is None, "the new root came here before it was used there"
        finally:
            rotating.send_signal(signal.SIGCONT)
        assert await rotating.wait() == 0
        await rotating.stdout.aclose()
        # The endpoint proves itself under the new root now: the next polls succeed all the same.
        before = json.loads(_run(ours, "list", "--json"))[0]["polled_at"]
        with trio.fail_after(30):
            while (domain := json.loads(_run(ours, "list", "--json"))[0])["polled_at"] == before:
                await trio.sleep(0.05)
        assert domain["problem"] == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", THEIRS, "--endpoint", "https://ca.example/"], "--bundle FILE is needed"),
        (["add", THEIRS, "--endpoint", "http://ca.example/", "--bundle", "FIRST"], "https://"),
        (["add", "cluster.local", "--endpoint", "https://a/", "--bundle", "FIRST"], "cluster.local"),
        (["add", "Other.Example", "--endpoint", "https://a/", "--profile", "https_web"], "SPIFFE-ID"),
        (["add", "third.example", "--endpoint", "https://a/", "--bundle", "FIRST"], "third.example"),
        (["add", THEIRS, "--endpoint", "https://a/", "--bundle", "/nonexistent"], "No such file"),
        (
            ["add", THEIRS, "--endpoint", "https://a/", "--endpoint-id", "spiffe://third.example/b"],
            "federate with that one first",
        ),
        (["add", THEIRS, "--endpoint", "https://a/", "--endpoint-id", "nonsense", "--bundle", "FIRST"], "SPIFFE-ID"),
        (
            ["add", THEIRS, "--endpoint", "https://a/", "--profile", "https_web", "--endpoint-id", "spiffe://a/b"],
            "of no use with https_web",
        ),
        (["remove", THEIRS], "is not federated"),
        (["refresh", THEIRS], "is not federated"),
        (["refresh"], "no trust domain is federated"),
    ],
)
def test_what_can_not_be_federated_is_refused_in_one_line(tmp_path: Path, arguments: list[str], says: str) -> None:
    ours = make_authority(tmp_path)
    first = tmp_path / "first.json"
    first.write_bytes(write_bundle(make_bundle(make_root(THEIRS))))
    filled = [str(first) if each == "FIRST" else each for each in arguments]
    done = ringfence("ca", "federation", *filled, "--config", ours.config_file)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
