"""The command: arguments, the proofs one after the other, and cleaning up whatever happens."""

import argparse
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

from demokit import policy, traffic, trouble
from demokit.screen import Screen
from demokit.stage import Stage, StageError

_PROOFS: Final[tuple[Callable[[Stage, int], None], ...]] = (
    traffic.identities,
    traffic.ciphertext,
    traffic.whole_bytes,
    traffic.load_spread,
    trouble.backend_killed,
    trouble.denied,
    policy.decides,
    trouble.agent_killed,
)

_PICTURE: Final = """\
   node 1                                         node 2
   [cart]   curl, redis-cli, nc                   [web-2] nginx   [web-3] nginx
   [web-1]  nginx                                 [store] redis, sha256sum
   [legacy] curl, not in the mesh
       agent-1  ======== mutual TLS 1.3 ========  agent-2          CA on node 0"""

_LOOK_AROUND: Final = """\
The lab is still up. To look around:
   export RINGFENCE_LAB={name}
   scripts/lab status                              # processes, pods, addresses, identities
   scripts/lab exec cart -- curl -s http://web/    # any program, in any pod
   scripts/lab ringfence 1 endpoints web           # what agent 1 knows; also: top, connections, explain, dashboard
   scripts/lab logs agent-2 | tail -n 1            # one access record a connection
   scripts/lab down                                # takes all of it away"""


def main(arguments: Sequence[str]) -> int:
    """Run the demo: its exit code."""
    parsed = _parser().parse_args(arguments)
    colour = not parsed.plain and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    screen = Screen(sys.stdout, colour=colour and os.environ.get("TERM") != "dumb")
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0ringfence-demo-{parsed.lab}")  # gone with this process, however that ends
        except OSError:
            print(f"demo: another scripts/demo is at work in the lab {parsed.lab!r}; wait for it", file=sys.stderr)
            return 1
        return _run(Stage(parsed.lab, screen), keep=parsed.keep)


def _run(stage: Stage, *, keep: bool) -> int:
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)
    code = 130
    try:
        code = _show(stage)
    except StageError as error:
        print(f"demo: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has gone
    except KeyboardInterrupt:
        print("demo: interrupted, taking the lab down", file=sys.stderr)
    finally:
        if not keep or code == 130:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # cleaning up is not to be interrupted; it takes a second
            code = _down(stage) or code
    if keep and code != 130:
        print(f"\n{_LOOK_AROUND.format(name=stage.name)}")
    return code


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _down(stage: Stage) -> int:
    try:
        stage.down()
    except StageError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def _show(stage: Stage) -> int:
    screen = stage.screen
    began = time.monotonic()
    screen.say("Two nodes, a certificate authority, six pods; real programs, nothing simulated but the machines.")
    screen.say("")
    for line in _PICTURE.splitlines():
        screen.say(line)
    stage.up()
    screen.say("")
    screen.say(f"Up in {time.monotonic() - began:.1f} s. Each fact below is measured now.")
    for number, proof in enumerate(_PROOFS, start=1):
        proof(stage, number)
    screen.summary(seconds=time.monotonic() - began)
    return 1 if screen.broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Show what Ringfence does, with real programs in a two-node lab, and measure whether it did. "
        "Exit code 0 only if everything held.",
    )
    parser.add_argument("--keep", action="store_true", help="leave the lab up and say how to look around")
    parser.add_argument("--plain", "--no-color", action="store_true", help="no colour, also on a terminal")
    parser.add_argument("--lab", type=_lab_name, default="demo", metavar="NAME", help="the name of its lab (demo)")
    return parser


def _lab_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]{1,12}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: 1 to 12 of a-z and 0-9")
    return text
