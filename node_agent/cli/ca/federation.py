"""``ringfence ca federation``: which other trust domains are believed.

    ringfence ca federation add TRUST_DOMAIN --endpoint URL --bundle FILE
    ringfence ca federation add TRUST_DOMAIN --endpoint URL --profile https_web
    ringfence ca federation list [--json]
    ringfence ca federation refresh [TRUST_DOMAIN]
    ringfence ca federation remove TRUST_DOMAIN
    ringfence ca federation bundle        our own, for the other side's --bundle

They work on the database, beside a server that runs, which follows within
seconds; so do its agents.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ca.authority.errors import AuthorityError
from ca.authority.federation.intake import read_bootstrap, require_distinct, require_federable, require_room
from ca.authority.federation.relation import EndpointUrl, FederatedDomain, Profile, Relation, RelationError
from ca.authority.trust_assembly import own_bundle
from ca.bundle import MAX_BUNDLE_MAP_BYTES, BundleError, write_bundle
from ca.spiffe import SpiffeId, SpiffeIdError
from ca.trust import TrustBundle
from node_agent.cli.ca.command import Commands, add_command, opened


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    text = "which other trust domains are believed"
    parser = commands.add_parser("federation", help=text, description=text)
    group = parser.add_subparsers(dest="federation_command", required=True, metavar="COMMAND")
    add = add_command(group, "add", _add, "believe another trust domain from now on")
    add.add_argument("trust_domain", metavar="TRUST_DOMAIN")
    add.add_argument("--endpoint", required=True, metavar="URL", help="where its bundle is served: https://...")
    add.add_argument(
        "--profile",
        choices=[str(profile) for profile in Profile],
        default=str(Profile.HTTPS_SPIFFE),
        help="how the endpoint proves itself (%(default)s)",
    )
    add.add_argument(
        "--endpoint-id", metavar="SPIFFE_ID", help="who serves it (https_spiffe); spiffe://TRUST_DOMAIN/ringfence/ca"
    )
    add.add_argument(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="its bundle of now, for the first connection: what its `ringfence ca federation bundle` prints, "
        "or PEM; needed for https_spiffe",
    )
    listed = add_command(group, "list", _list, "show what is federated, and how it stands")
    listed.add_argument("--json", action="store_true", help="one JSON array")
    refresh = add_command(group, "refresh", _refresh, "fetch now, not when it is due")
    refresh.add_argument("trust_domain", nargs="?", metavar="TRUST_DOMAIN", help="all of them by default")
    remove = add_command(group, "remove", _remove, "believe it no longer: connections with it are cut")
    remove.add_argument("trust_domain", metavar="TRUST_DOMAIN")
    add_command(group, "bundle", _bundle, "print our own bundle as a SPIFFE JWK set")


def _add(arguments: argparse.Namespace) -> int:
    at = datetime.now(UTC)
    with opened(arguments) as (config, store):
        try:
            relation = _relation(arguments, at)
            bundle = _first_bundle(arguments, relation)
            own = own_bundle(store, trust_domain=config.trust_domain)
            issuers = [record.certificate for record in store.authorities()]

            def check(others: list[FederatedDomain]) -> None:
                require_federable(
                    relation.trust_domain,
                    own=config.trust_domain,
                    federated=[other.trust_domain for other in others],
                )
                _require_judge(relation, bundle, others)
                if bundle is not None:
                    known = [own, *(other.bundle for other in others if other.bundle is not None)]
                    require_room(bundle, others=known)
                    require_distinct(bundle, others=known, issuers=issuers)

            store.federation.add(relation, bundle, check=check)
        except (RelationError, SpiffeIdError, BundleError) as exc:
            raise AuthorityError(f"{arguments.trust_domain}: {exc}") from exc
    trusted = "trusted from now on" if bundle is not None and bundle.x509_der else "trusted once its bundle was fetched"
    print(f"{relation.trust_domain} is {trusted}; its bundle is fetched from {relation.url}")
    return 0


def _relation(arguments: argparse.Namespace, at: datetime) -> Relation:
    profile = Profile(arguments.profile)
    endpoint_id = None
    if profile is Profile.HTTPS_SPIFFE:
        text = arguments.endpoint_id
        endpoint_id = SpiffeId.parse(text) if text else SpiffeId.authority(arguments.trust_domain)
    elif arguments.endpoint_id:
        raise AuthorityError("--endpoint-id is of no use with https_web, where the endpoint proves its host name")
    return Relation(
        trust_domain=arguments.trust_domain,
        url=EndpointUrl.parse(arguments.endpoint),
        profile=profile,
        endpoint_id=endpoint_id,
        added_at=at,
    )


def _first_bundle(arguments: argparse.Namespace, relation: Relation) -> TrustBundle | None:
    if arguments.bundle is None:
        if relation.self_serving:
            raise AuthorityError(
                f"--bundle FILE is needed: the endpoint proves itself by the very bundle that it serves; let "
                f"{relation.trust_domain}'s operator print it with: ringfence ca federation bundle"
            )
        return None
    with arguments.bundle.open("rb") as file:
        data = file.read(MAX_BUNDLE_MAP_BYTES + 1)
    try:
        return read_bootstrap(data, trust_domain=relation.trust_domain)
    except BundleError as exc:
        raise AuthorityError(f"--bundle {arguments.bundle}: {exc}") from exc


def _require_judge(relation: Relation, bundle: TrustBundle | None, others: list[FederatedDomain]) -> None:
    """An endpoint of a third trust domain is judged by that one's bundle: it has to be federated before."""
    endpoint_id = relation.endpoint_id
    if endpoint_id is None or relation.self_serving:
        return
    if endpoint_id.trust_domain not in {other.trust_domain for other in others}:
        raise RelationError(
            f"the endpoint {endpoint_id} is of trust domain {endpoint_id.trust_domain!r}: federate with that one first"
        )


def _list(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (_, store):
        domains = store.federation.domains()
    described = [_described(domain) for domain in domains]
    if arguments.json:
        print(json.dumps(described, indent=1))
        return 0
    if not described:
        print("no other trust domain is federated; see: ringfence ca federation add --help")
    for each in described:
        print(f"{each['trust_domain']}  {'trusted' if each['roots'] else 'NOT TRUSTED YET'}")
        print(f"  endpoint  {each['endpoint']}  {each['profile']}  {each['endpoint_id'] or ''}".rstrip())
        print(f"  bundle    {each['roots']} roots, sequence {each['sequence']}, fetched {each['polled_at'] or 'never'}")
        print(f"  next      {each['next_poll_at']}, every {each['refresh_hint_s'] or '?'} s")
        if each["problem"]:
            print(f"  problem   {each['problem']} ({each['failures']} times)")
    return 0


def _described(domain: FederatedDomain) -> dict[str, Any]:
    relation, bundle = domain.relation, domain.bundle
    return {
        "trust_domain": domain.trust_domain,
        "endpoint": str(relation.url),
        "profile": str(relation.profile),
        "endpoint_id": None if relation.endpoint_id is None else str(relation.endpoint_id),
        "added_at": relation.added_at.isoformat(),
        "roots": 0 if bundle is None else len(bundle.x509_der),
        "jwt_keys": 0 if bundle is None else len(bundle.jwt_keys),
        "sequence": None if bundle is None else bundle.sequence,
        "refresh_hint_s": None if bundle is None else bundle.refresh_hint_s,
        "polled_at": None if domain.polled_at is None else domain.polled_at.isoformat(),
        "next_poll_at": domain.next_poll_at.isoformat(),
        "failures": domain.failures,
        "problem": domain.problem,
    }


def _refresh(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (_, store):
        found = store.federation.refresh(arguments.trust_domain, at=datetime.now(UTC))
    if not found:
        raise AuthorityError(_unknown(arguments.trust_domain))
    print(f"{found} to be fetched now; `ringfence ca federation list` shows what came")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (_, store):
        if not store.federation.remove(arguments.trust_domain):
            raise AuthorityError(_unknown(arguments.trust_domain))
    print(f"{arguments.trust_domain} is no longer trusted; agents cut its connections within seconds")
    return 0


def _unknown(trust_domain: str | None) -> str:
    what = f"{trust_domain!r} is not federated" if trust_domain else "no trust domain is federated"
    return f"{what}; `ringfence ca federation list` shows what is"


def _bundle(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (config, store):
        bundle = own_bundle(store, trust_domain=config.trust_domain)
    if not bundle.x509_der:
        raise AuthorityError(f"{config.database}: there is no authority here yet; make one with: ringfence ca init")
    sys.stdout.write(write_bundle(bundle).decode())
    return 0
