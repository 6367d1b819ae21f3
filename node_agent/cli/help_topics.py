"""``ringfence help``: the help of the commands, and of what they have in common."""

import argparse
from collections.abc import Mapping
from typing import Final

from node_agent.cli.names import completes
from node_agent.cli.question import add_command
from node_agent.cli.terminal import printable

_TOPICS: Final[Mapping[str, str]] = {
    "connecting": """\
How the commands find the agent

What is about a running agent is asked of it through a unix socket on the same machine, which only the agent's user may
use: run such commands as root.  Which socket, in this order:
  --agent PATH
  the environment variable RINGFENCE_AGENT
  /run/ringfence/agent.sock
No agent is needed for `agent`, `ca`, `bpf load|unload|status`, `completion`, `help`, and `policy check`, which asks one
only with --agent.
The socket is agent.sock in the [agent] runtime_dir of the agent's configuration.  In a container or a Kubernetes pod
run the command there: kubectl exec -n NAMESPACE POD -- ringfence status
curl --unix-socket /run/ringfence/agent.sock http://agent/status works as well.
""",
    "output": """\
What the commands print

Tables fit the terminal: long texts are cut first, then the least important columns are left out, and a last line
names them.  In a pipe or a file nothing is cut.
--json prints the agent's answer, less the rows that options leave out; see docs/cli.md for every key.  What is not
known is null.
Colours appear on a terminal only, and not with the environment variable NO_COLOR or with TERM=dumb.
Control characters in names and messages are shown escaped, as in \\x1b.
""",
    "exit-codes": """\
Exit codes

  0    done
  1    could not be done; one line on standard error says why, and what to do
  2    wrong arguments
  130  interrupted with Ctrl-C
""",
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``help``; ``commands`` is where it finds the others, when it is asked."""
    parser = add_command(
        commands,
        "help",
        text="the help of a command, or of a topic",
        description=f"Shows the help of a command, or of a topic: {', '.join(_TOPICS)}.",
        examples=["ringfence help connections", "ringfence help ca rotate", "ringfence help connecting"],
    )
    words = parser.add_argument("words", metavar="COMMAND|TOPIC", nargs="*", help="nothing: all commands")
    completes(words, _topics)
    parser.set_defaults(run=_run)


def _topics(**_: object) -> list[str]:
    from node_agent.cli.main import COMMANDS  # noqa: PLC0415  (main registers this file)

    return [*COMMANDS, *_TOPICS]


def _run(args: argparse.Namespace) -> int:
    if len(args.words) == 1 and args.words[0] in _TOPICS:
        print(_TOPICS[args.words[0]], end="")
        return 0
    from node_agent.cli.main import COMMANDS, build_parser  # noqa: PLC0415  (main registers this file)

    parser = build_parser(args.words[0] if args.words else None)
    if args.words and args.words[0] not in COMMANDS:
        parser.error(f"there is no command and no topic {printable(args.words[0])!r}; topics: {', '.join(_TOPICS)}")
    parser.parse_args([*args.words, "--help"])  # prints, and ends with SystemExit
    return 0
