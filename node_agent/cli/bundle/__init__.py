"""``ringfence bundle``: one file with what somebody needs who helps from far away, and no secret.

collect.py   what goes in, part by part; a part that fails is noted and stops nothing
host.py      of the machine: versions, processes, logs
pods.py      of the network of each pod of this node: its rules, asked by programs that run in there
redact.py    takes out what looks like a secret, wherever it comes from (pure)
archive.py   the tar.gz: readable by its owner only, with an index
"""

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from node_agent.cli.question import add_agent_options, add_command
from node_agent.cli.terminal import printable

_DESCRIPTION = """\
Writes one tar.gz with what somebody needs who helps from far away: versions, configuration, registry, policies,
certificates (their public parts), connections, endpoints, metrics, recent access records, the rules inside each pod,
logs, stacks and a short profile of the agent.  What can not be had is noted in its index.txt and stops nothing, so it
is of use also when the agent is down.

It holds no keys, passphrases or tokens: configuration keys are on a list of those that may be shown, files are named
and never read, and what looks like a secret is taken out of every part.  It does hold names, addresses and who
talks to whom: look at it before you give it away.  The file is readable by its owner only."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``bundle``."""
    parser = add_command(
        commands,
        "bundle",
        text="collect in one file what somebody needs who helps from far away",
        description=_DESCRIPTION,
        examples=[
            "ringfence bundle",
            "ringfence bundle -o /tmp/node-1.tar.gz --log /var/log/ringfence/agent.log",
            "ringfence bundle -o - | ssh desk 'cat > node-1.tar.gz'",
        ],
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="a new file, or - ; default ringfence-NODE-TIME.tar.gz")
    parser.add_argument("--log", metavar="FILE", type=Path, help="the agent's log, where it can not be found by itself")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="the agent's configuration, when it does not answer"
    )
    parser.add_argument("--no-profile", action="store_true", help="without the profile, which takes two seconds")
    add_agent_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from node_agent.cli.bundle.archive import Archive, NotWritable  # noqa: PLC0415  (brings tarfile and gzip)
    from node_agent.cli.bundle.collect import Collection  # noqa: PLC0415

    at = datetime.now(UTC)
    collection = Collection(
        agent=args.agent, log=args.log, config=args.config, with_profile=not args.no_profile, sleep=time.sleep
    )
    output = args.output or f"ringfence-{collection.node or 'node'}-{at:%Y%m%dT%H%M%SZ}.tar.gz"
    watched = sys.stderr.isatty()
    try:
        with Archive(output, at=at) as archive:
            for name, content, problem in collection.parts():
                if watched:
                    print(printable(f"{name}: {problem or 'ok'}"), file=sys.stderr, flush=True)
                archive.add(name, content, problem)
    except NotWritable as error:
        print(f"ringfence: {error}", file=sys.stderr)
        return 1
    missing = f", {archive.problems} could not be collected (index.txt says why)" if archive.problems else ""
    print(
        f"ringfence: {archive.parts} parts in {'standard output' if output == '-' else output}{missing}",
        file=sys.stderr,
    )
    return 0
