"""``ringfence ca init`` and ``install-intermediate``: the first signing keys, ours or under somebody else's root."""

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

from ca.authority import external, founding, rotation
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError
from ca.authority.installation import install
from ca.authority.keys import KeyFile, ask_passphrase, write_durably
from ca.authority.records import AuthorityState
from ca.authority.succession import Succession
from node_agent.cli.ca.command import Commands, add_command, add_passphrase, add_root_key, opened


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    init = add_command(commands, "init", _init, "make a root and an intermediate, with encrypted keys")
    add_passphrase(init)
    add_root_key(init)
    init.add_argument("--root-cert", type=Path, metavar="FILE", help="use this root of an existing PKI; PEM")
    init.add_argument(
        "--intermediate-csr", type=Path, metavar="FILE", help="with --root-cert: where to write the request for the PKI"
    )
    text = "take up an intermediate that an existing PKI signed"
    installed = add_command(commands, "install-intermediate", _install, text)
    add_passphrase(installed)
    installed.add_argument("chain", type=Path, metavar="FILE", help="PEM: the intermediate, and those above it, if any")


def _init(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    if (arguments.root_cert is None) != (arguments.intermediate_csr is None):
        raise AuthorityError("--root-cert and --intermediate-csr belong together: the root, and where the request goes")
    if arguments.root_cert is not None:
        return _init_under(config, arguments)
    passphrase = ask_passphrase(arguments.passphrase_file or config.passphrase_file, new=True)
    root_passphrase = None
    if arguments.root_passphrase_file is not None:
        root_passphrase = ask_passphrase(arguments.root_passphrase_file, new=True)
    made = founding.create(
        config,
        passphrase=passphrase,
        at=datetime.now(UTC),
        root_keys=None if arguments.root_key is None else KeyFile(arguments.root_key),
        root_passphrase=root_passphrase,
    )
    print(f"made the authority of {config.trust_domain} in {config.state_dir}")
    print(f"  root          valid until {made.roots[0].not_valid_after_utc:%Y-%m-%d}")
    print(f"  intermediate  valid until {made.issuer.certificate.not_valid_after_utc:%Y-%m-%d}")
    print(f"  trust bundle  {config.bundle_file} (public: copy it to every agent)")
    if arguments.root_key is not None:
        print(f"  root key      {arguments.root_key} (take it away; it is needed when an intermediate is due)")
    return 0


def _init_under(config: AuthorityConfig, arguments: argparse.Namespace) -> int:
    if arguments.root_key is not None:
        raise AuthorityError("--root-key is for a root that is made here; the key of --root-cert stays where it is")
    at = datetime.now(UTC)
    root = external.read_root(arguments.root_cert, trust_domain=config.trust_domain, at=at)
    require_new(arguments.intermediate_csr)
    passphrase = ask_passphrase(arguments.passphrase_file or config.passphrase_file, new=True)
    csr = founding.create_under(config, root, passphrase=passphrase, at=at)
    write_durably(arguments.intermediate_csr, csr, mode=0o644, exclusive=True)
    print(f"began the authority of {config.trust_domain} in {config.state_dir}")
    print(f"  root          {root.subject.rfc4514_string()}, valid until {root.not_valid_after_utc:%Y-%m-%d}")
    print(f"  trust bundle  {config.bundle_file} (public: copy it to every agent)")
    print(f"  request       {arguments.intermediate_csr}")
    print("next: have the request signed, with all the extensions that it asks for; then run:")
    print("  ringfence ca install-intermediate FILE")
    return 0


def _install(arguments: argparse.Namespace) -> int:
    certificates = external.read_certificates(arguments.chain)
    with opened(arguments) as (config, store):
        passphrase = ask_passphrase(arguments.passphrase_file or config.passphrase_file)
        succession = Succession(config=config, store=store, passphrase=passphrase)
        try:
            key = install(succession, certificates, at=datetime.now(UTC))
            prepared = rotation.prepared_root(succession.signing_keys())
        except AuthorityError as exc:
            raise AuthorityError(f"{arguments.chain}: {exc}") from exc
    print(f"took up the intermediate {key.key_id}, valid until {key.not_after:%Y-%m-%d}")
    if key.state is AuthorityState.ACTIVE:
        print("it signs from now on")
    elif prepared is not None:
        print("it is prepared, and signs when its root does: ringfence ca rotate root")
    else:
        print("it is prepared; the server activates it when it is due, `ringfence ca rotate intermediate` does it now")
    return 0


def require_new(path: Path) -> None:
    """Refuse to write over what is there, before anything is made.

    Raises:
        AuthorityError: the file is there, or its directory can not be written to.
    """
    if path.exists():
        raise AuthorityError(f"{path}: is there already; name a new file")
    if not os.access(path.parent, os.W_OK):
        raise AuthorityError(f"{path}: its directory is not there, or can not be written to")
