"""``ringfence ca backup`` and ``restore``: everything that the authority is, in one file.

ringfence ca backup FILE [--force]     while the server runs, or not
ringfence ca restore FILE              where there is no authority
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from ca.authority.backup import write_backup
from ca.authority.config import AuthorityConfig
from ca.authority.keys import ask_passphrase
from ca.authority.restoration import restore
from node_agent.cli.ca.command import Commands, add_command, add_passphrase


def add_commands(commands: Commands) -> None:
    """Add the commands of this file to ``ringfence ca``."""
    backup = add_command(commands, "backup", _backup, "write database, keys and bundle into one file, while it serves")
    backup.add_argument("file", type=Path, metavar="FILE", help="a tar file, made with mode 0600")
    backup.add_argument("--force", action="store_true", help="replace FILE if it is there")
    restored = add_command(commands, "restore", _restore, "make the authority of a backup, where there is none")
    restored.add_argument("file", type=Path, metavar="FILE", help="what `ringfence ca backup` wrote")
    add_passphrase(restored)


def _backup(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    made = write_backup(config, arguments.file, force=arguments.force, at=datetime.now(UTC))
    print(f"backed up the authority of {config.trust_domain} to {made.path} ({made.size_bytes:,} bytes)")
    print(f"  {made.certificates} certificates in the journal, {made.keys} signing keys")
    print("  the keys are encrypted: keep the passphrase too, and elsewhere; without it this file restores nothing")
    for key_id in made.keys_elsewhere:
        print(f"  not in it, because it is not kept here: the key {key_id}")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    config = AuthorityConfig.load(arguments.config)
    passphrase = ask_passphrase(arguments.passphrase_file or config.passphrase_file)
    found = restore(config, arguments.file, passphrase=passphrase, at=datetime.now(UTC))
    made_at = f"{found.made_at:%Y-%m-%d %H:%M:%S} UTC"
    print(f"restored the authority of {config.trust_domain} as of {made_at} to {config.database}")
    print(f"  {found.certificates} certificates in the journal, {found.keys} signing keys")
    print(f"  not in it: certificates issued after {made_at}; they stay valid until they expire")
    print(f"  not in it: revocations made after {made_at}; make them again with: ringfence ca revoke")
    if found.voided_tokens:
        many = "1 join token is" if found.voided_tokens == 1 else f"{found.voided_tokens} join tokens are"
        print(f"  {many} void, being used perhaps after {made_at}; make new ones with: ringfence ca token")
    return 0
