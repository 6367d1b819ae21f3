"""Run a command in a pod: this very process becomes it.

No process is left in between, so that stdio, signals and the exit code pass
through.  The command gets the pod's network, host name, /etc/hosts and
/etc/resolv.conf; the rest of the file system is the machine's.
"""

import os
import signal
from collections.abc import Sequence
from typing import Final, NoReturn

from labkit import cgroups, layout, netns, pods, state
from labkit.errors import CommandError, LabError

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUTS: Final = 0x04000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 1 << 19
_NOT_FOUND: Final = 127  # POSIX shell, 2.8.2: exit status for commands
_NOT_EXECUTABLE: Final = 126


def run(lab: state.Lab, target: str, command: Sequence[str]) -> NoReturn:
    """Replace this process by ``command`` in pod ``target`` (or in the node ``node-K``).

    Raises:
        CommandError: there is no such pod, or the command can not be started.
    """
    node = _node(lab, target)
    try:
        if node is not None:
            _enter(layout.node_netns(node))
        else:
            pod = pods.find(target)
            if pod.cgroup:
                cgroups.join(pod.cgroup)  # before the program makes its first socket
            _enter(pod.netns)
            _own_files(pod)
            # What a pod's manifest would say under `env`; the variable is SPIFFE's (Workload Endpoint 4).
            os.environ["SPIFFE_ENDPOINT_SOCKET"] = f"unix://{layout.workload_api_socket(pod.node)}"
    except LabError as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"can not enter {target}: {exc.strerror or exc}") from exc
    become(command)


def become(command: Sequence[str]) -> NoReturn:
    """execvp, with the signals as a shell hands them to a command.

    Raises:
        CommandError: with the exit code a shell would give.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores these two, and ignoring is inherited
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as exc:
        missing = isinstance(exc, FileNotFoundError | NotADirectoryError)
        failure = CommandError(f"{command[0]}: {'command not found' if missing else exc.strerror}")
        failure.exit_code = _NOT_FOUND if missing else _NOT_EXECUTABLE
        raise failure from exc


def _node(lab: state.Lab, target: str) -> int | None:
    prefix, _, number = target.partition("-")
    if prefix != "node" or not number.isdigit() or int(number) > lab.nodes:
        return None
    if any(pod.name == target and pod.namespace == "default" for pod in pods.all_pods()):
        return None
    return int(number)


def _enter(name: str) -> None:
    fd = os.open(netns.path(name), os.O_RDONLY | os.O_CLOEXEC)
    netns.setns(fd)
    os.close(fd)


def _own_files(pod: pods.Pod) -> None:
    netns.unshare(_CLONE_NEWNS | _CLONE_NEWUTS)
    netns.mount("", "/", None, _MS_SLAVE | _MS_REC)  # what the machine mounts later is seen; nothing goes back
    directory = layout.pod_dir(pod.namespace, pod.name)
    for name in ("hosts", "resolv.conf"):
        target = os.path.realpath(f"/etc/{name}")
        if os.path.exists(target):
            netns.mount(str(directory / name), target, None, _MS_BIND)
    netns.set_host_name(pod.name)
