"""``ringfence completion``: TAB in bash, zsh and fish.

The shell asks this program itself (argcomplete): what it offers is always what
this version has, and the names of the running agent.
"""

import argparse

from node_agent.cli.question import add_command

_SHELLS = ("bash", "zsh", "fish")
_DESCRIPTION = """\
Prints what lets a shell complete commands, options, and the names of services and pods.

  bash   echo 'eval "$(ringfence completion bash)"' >> ~/.bashrc
         or for all users: ringfence completion bash > /etc/bash_completion.d/ringfence
  zsh    echo 'autoload -U compinit && compinit; eval "$(ringfence completion zsh)"' >> ~/.zshrc
  fish   ringfence completion fish > ~/.config/fish/completions/ringfence.fish

Names come from the running agent, so they are offered to those only who may ask it (root)."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``completion``."""
    parser = add_command(
        commands, "completion", text="completion with TAB for bash, zsh or fish", description=_DESCRIPTION
    )
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode  # noqa: PLC0415  (only for this)

    print(shellcode(["ringfence"], shell=args.shell))
    return 0


def offer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what may follow, and end the process."""
    import argcomplete  # noqa: PLC0415  (only when TAB is pressed)

    argcomplete.autocomplete(parser)
