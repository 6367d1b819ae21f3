"""Record what crosses the link between the nodes."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

from labkit import layout, netns
from labkit.errors import LabError


def tap(path: Path, *, seconds: float) -> None:
    """Write every packet of the link into ``path``, whole, for that long.

    Says ``recording`` on stdout once nothing is missed any more, and on stderr what
    tcpdump counted, dropped packets included.

    Raises:
        LabError: the file can not be written, or tcpdump failed.
    """
    # -Z root: giving up root would make the kernel forget that the recorder ends with us.
    command = ["tcpdump", "-i", layout.BRIDGE, "-n", "-s", "0", "-B", "65536", "-Z", "root"]
    command += ["-U", "--immediate-mode", "-w", "-"]
    try:
        file = path.open("wb")
    except OSError as exc:
        raise LabError(f"{path}: can not be written: {exc.strerror}") from exc
    with file, netns.inside(layout.LINK_NETNS):
        try:
            recorder = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=netns.end_with_parent,  # noqa: PLW1509 - no thread exists yet
            )
        except FileNotFoundError as exc:
            raise LabError("tcpdump is not installed; run `scripts/setup`") from exc
    with recorder:
        complete = _record(recorder, seconds)
    if recorder.returncode or not complete:
        raise LabError(f"tcpdump ended early, with exit code {recorder.returncode}; is the lab still up?")


def _record(recorder: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether it recorded until the time was over or somebody pressed Ctrl-C."""
    assert recorder.stderr is not None
    for line in recorder.stderr:
        if "listening on" in line:
            break
        sys.stderr.write(line)
    else:
        return False
    print("recording", flush=True)
    over = threading.Event()
    # A shell starts its background jobs with SIGINT ignored; a tap is ended by it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def end() -> None:
        over.set()
        recorder.send_signal(signal.SIGINT)

    stop = threading.Timer(seconds, end)
    stop.daemon = True
    stop.start()
    try:
        sys.stderr.write(recorder.stderr.read())
    except KeyboardInterrupt:  # at a terminal tcpdump got it too; from another process only we did
        end()
        sys.stderr.write(recorder.stderr.read())
    finally:
        stop.cancel()
        if recorder.poll() is None:
            recorder.send_signal(signal.SIGINT)
    return over.is_set()
