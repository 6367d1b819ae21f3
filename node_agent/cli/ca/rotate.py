"""``ringfence ca rotate``: let the next root or intermediate take over, without anybody noticing.

    ringfence ca rotate                    what is due, and what to do about it
    ringfence ca rotate intermediate       a new intermediate, now (the server does it by itself when it is due)
    ringfence ca rotate root               a new root: publish, wait for every live agent, activate

A command that was interrupted can be run again, and goes on where it was.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ca.authority import external, profile, rotation
from ca.authority.errors import AuthorityError
from ca.authority.keys import KeyFile, ask_passphrase, write_durably
from ca.authority.records import AuthorityKind, AuthorityState
from ca.authority.root_succession import RootSuccession
from ca.authority.rotation import SigningKey
from ca.authority.status import due, is_ours
from ca.authority.succession import RootAccess, Succession
from node_agent.cli.ca.command import Commands, add_command, add_passphrase, add_root_key, opened
from node_agent.cli.ca.keys import require_new
from node_agent.cli.ca.status import due_table
from node_agent.cli.ca.wait import wait_for_agents, wait_for_federation
from node_agent.cli.terminal import Paint

_DEFAULT_TIMEOUT_S: Final = 3600
_MAX_TIMEOUT_S: Final = 30 * 86_400


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    rotate = add_command(commands, "rotate", _rotate, "let the next root or intermediate take over; or say what is due")
    rotate.add_argument("what", nargs="?", choices=["root", "intermediate"], help="without it: what is due")
    add_passphrase(rotate)
    add_root_key(rotate)
    rotate.add_argument(
        "--timeout-s",
        type=_timeout_s,
        default=_DEFAULT_TIMEOUT_S,
        metavar="S",
        help="how long to wait for the agents (%(default)s); then run it again",
    )
    rotate.add_argument(
        "--skip-node", action="append", default=[], metavar="NAME", help="do not wait for a node that never comes back"
    )
    rotate.add_argument("--force", action="store_true", help="also when the last rotation is not over")
    rotate.add_argument("--csr", type=Path, metavar="FILE", help="write a request for an existing PKI to sign")
    rotate.add_argument(
        "--root-cert", type=Path, metavar="FILE", help="root: the new one of the existing PKI; with --csr"
    )
    rotate.add_argument(
        "--own-root", action="store_true", help="root: make it and keep its key here, whatever it was before"
    )
    rotate.add_argument("--withdraw", action="store_true", help="root: take back one that is published but not active")
    rotate.add_argument(
        "--emergency", action="store_true", help="root: replace it at once, distrusting everything it signed"
    )


def _rotate(arguments: argparse.Namespace) -> int:
    _require_consistent(arguments)
    if arguments.what is None:
        return _say_what_is_due(arguments)
    with _succession(arguments) as succession:
        if arguments.what == "intermediate":
            return _rotate_intermediate(succession, arguments)
        if arguments.emergency:
            return _replace_root(succession, arguments)
        if arguments.withdraw:
            RootSuccession(succession).withdraw(at=_now())
            print("the prepared root is out of the trust bundle again")
            return 0
        return _rotate_root(succession, arguments)


def _require_consistent(arguments: argparse.Namespace) -> None:
    root_only = {
        "--skip-node": arguments.skip_node,
        "--root-cert": arguments.root_cert,
        "--own-root": arguments.own_root,
        "--withdraw": arguments.withdraw,
        "--emergency": arguments.emergency,
    }
    for option, given in root_only.items():
        if given and arguments.what != "root":
            raise AuthorityError(f"{option} is for: ringfence ca rotate root")
    if arguments.what is None and (arguments.csr or arguments.force or arguments.root_key):
        raise AuthorityError("say which: ringfence ca rotate root, or ringfence ca rotate intermediate")
    if arguments.emergency and (arguments.withdraw or arguments.root_cert is not None):
        raise AuthorityError(
            "--emergency goes alone: it activates the root of a PKI that is published (--root-cert FILE --csr FILE, "
            "then install-intermediate FILE), or else a new one of ours"
        )
    if arguments.what == "root" and (arguments.root_cert is None) != (arguments.csr is None):
        raise AuthorityError("--root-cert and --csr belong together: the new root, and where the request goes")


@contextmanager
def _succession(arguments: argparse.Namespace) -> Iterator[Succession]:
    with opened(arguments) as (config, store):
        passphrase = ask_passphrase(arguments.passphrase_file or config.passphrase_file)
        root = None
        if arguments.root_key is not None or arguments.root_passphrase_file is not None:
            root = RootAccess(
                keys=store.keys if arguments.root_key is None else KeyFile(arguments.root_key),
                passphrase=passphrase
                if arguments.root_passphrase_file is None
                else ask_passphrase(arguments.root_passphrase_file),
            )
        yield Succession(config=config, store=store, passphrase=passphrase, root=root)


def _say_what_is_due(arguments: argparse.Namespace) -> int:
    with opened(arguments) as (config, store):
        found = due(config, store, at=_now())
    print(due_table(found, Paint(sys.stdout)))
    return 0


# -- intermediates


def _rotate_intermediate(succession: Succession, arguments: argparse.Namespace) -> int:
    if arguments.csr is not None:
        return _request(arguments.csr, succession)
    keys = succession.signing_keys()
    retiring = _retiring(keys, AuthorityKind.INTERMEDIATE)
    prepared = rotation.prepared_intermediate(keys)
    if prepared is None and retiring is not None and not arguments.force:
        print(
            f"the intermediate was rotated at {_shown(_active_since(keys))}; the one before retires by itself at about"
        )
        print(f"{_shown(retiring.retire_at)}, when the last certificate of it has ended; --force rotates again")
        return 0
    key_id = succession.prepare_intermediate(at=_now()) if prepared is None else prepared.key_id
    succession.activate_intermediate(key_id, at=_now())
    print(f"the intermediate {key_id} signs from now on; the server takes it up within seconds")
    return 0


def _request(path: Path, succession: Succession) -> int:
    require_new(path)
    write_durably(path, RootSuccession(succession).new_request(), mode=0o644, exclusive=True)
    print(f"wrote the request for an intermediate: {path}")
    print("next: have it signed, with all the extensions that it asks for; then run:")
    print("  ringfence ca install-intermediate FILE")
    return 0


# -- roots


def _rotate_root(succession: Succession, arguments: argparse.Namespace) -> int:
    keys = succession.signing_keys()
    prepared = rotation.prepared_root(keys)
    if arguments.root_cert is not None:
        return _publish_foreign(succession, arguments)
    if prepared is None:
        retiring = _retiring(keys, AuthorityKind.ROOT)
        if retiring is not None and not arguments.force:
            print(f"the root was rotated at {_shown(retiring.since)}; the old one retires by itself, when the last")
            print("certificate under it has ended; see: ringfence ca rotate; --force begins another rotation")
            return 0
        _require_own(succession, arguments)
        print(f"published the new root {RootSuccession(succession).prepare(at=_now())}")
    elif rotation.prepared_intermediate(keys, root=prepared) is None:
        raise AuthorityError(
            f"the root {prepared.key_id} is published, and no intermediate under it is here yet: have the request "
            "signed and run: ringfence ca install-intermediate FILE (another request: rotate intermediate --csr FILE)"
        )
    else:
        print(f"going on with the new root {prepared.key_id}, published at {_shown(prepared.since)}")
    wait_for_agents(
        succession.store,
        trust_domain=succession.config.trust_domain,
        skipped=arguments.skip_node,
        timeout_s=arguments.timeout_s,
    )
    published = rotation.prepared_root(succession.signing_keys())
    wait_for_federation(
        succession.config.bundle_endpoint,
        published_at=_now() if published is None else published.since,
        timeout_s=arguments.timeout_s,
    )
    RootSuccession(succession).activate(at=_now())
    print("every live agent trusts the new root: what is issued from now on is signed under it")
    print("the server retires the old root when the last certificate under it has ended; see: ringfence ca rotate")
    return 0


def _publish_foreign(succession: Succession, arguments: argparse.Namespace) -> int:
    certificate = external.read_root(arguments.root_cert, trust_domain=succession.config.trust_domain, at=_now())
    require_new(arguments.csr)
    csr = RootSuccession(succession).publish_foreign(certificate, at=_now())
    write_durably(arguments.csr, csr, mode=0o644, exclusive=True)
    print(f"published the new root {profile.key_id(certificate)}: {certificate.subject.rfc4514_string()}")
    print(f"wrote the request for an intermediate under it: {arguments.csr}")
    print("next: have it signed, with all the extensions that it asks for; then run:")
    print("  ringfence ca install-intermediate FILE")
    print("  ringfence ca rotate root")
    return 0


def _replace_root(succession: Succession, arguments: argparse.Namespace) -> int:
    if rotation.prepared_root(succession.signing_keys()) is None:
        _require_own(succession, arguments)
    key_id = RootSuccession(succession).replace_everything(at=_now())
    print(f"the root {key_id} has replaced everything at once; whatever was issued before is not trusted any more")
    print("next, on every node: the new trust bundle, and a new proof that it is that node; see docs/ca.md")
    print(f"  trust bundle  {succession.config.bundle_file}")
    print("  join token    ringfence ca token --node NAME")
    return 0


def _require_own(succession: Succession, arguments: argparse.Namespace) -> None:
    """A root of somebody else's is not replaced by one of ours by accident."""
    active = rotation.active_root(succession.signing_keys())
    for record in succession.records():
        is_active = active is not None and record.key_id == active.key_id
        if is_active and not arguments.own_root and not is_ours(record, trust_domain=succession.config.trust_domain):
            raise AuthorityError(
                "the root is that of an existing PKI: give its new one with --root-cert FILE --csr FILE, or leave that "
                "PKI with --own-root"
            )
    if active is not None and arguments.root_key is None and not arguments.own_root:
        _require_as_offline(succession, active)


def _require_as_offline(succession: Succession, active: SigningKey) -> None:
    """A root key that is kept elsewhere is not followed by one that lies here, by accident."""
    if not succession.store.keys.has(active.key_id):
        raise AuthorityError(
            "the key of the root is kept elsewhere: say with --root-key FILE, a new file, where its successor's goes "
            "(--root-passphrase-file FILE gives it a passphrase of its own), or keep that one here with --own-root"
        )


def _retiring(keys: list[SigningKey], kind: AuthorityKind) -> SigningKey | None:
    return next((key for key in keys if key.kind is kind and key.state is AuthorityState.RETIRING), None)


def _active_since(keys: list[SigningKey]) -> datetime:
    active = rotation.active_intermediate(keys)
    return _now() if active is None else active.since


def _now() -> datetime:
    return datetime.now(UTC)


def _shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _timeout_s(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds from 1 to {_MAX_TIMEOUT_S}")
    return int(text)
