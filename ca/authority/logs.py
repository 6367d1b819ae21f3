"""JSON lines on stderr: what the authority did, one event a line.

``event`` and its fields are data, never a formatted sentence, and JSON escapes
every control character: nothing that a peer sends can forge a line.  What a
library has to say comes in the same form, as the event ``library``.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

_LOGGER: Final = logging.getLogger("ringfence.ca")


def log(event: str, *, level: int = logging.INFO, exc_info: bool = False, **fields: object) -> None:
    """Write one event; values are texts, numbers or None, and never secrets."""
    _LOGGER.log(level, event, extra={"fields": fields}, exc_info=exc_info)


def set_up(stream: TextIO = sys.stderr) -> None:
    """Send the authority's events, and libraries' warnings, to ``stream``; called once, by the process that serves."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLine())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    _LOGGER.setLevel(logging.INFO)


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if record.name == _LOGGER.name:
            line |= {"event": record.getMessage(), **getattr(record, "fields", {})}
        else:
            line |= {"event": "library", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
