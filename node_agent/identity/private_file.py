"""Write a file that only its owner may read, whole or not at all."""

import os
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path``, durably, with mode 0600.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
