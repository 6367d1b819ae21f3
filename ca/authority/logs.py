"""JSON lines on stderr: what the authority did, one event a line.

``event`` and its fields are data, never a formatted sentence, and JSON escapes
every control character: nothing that a peer sends can forge a line.
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
    """Send the authority's events to ``stream``; called once, by the process that serves."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLine())
    _LOGGER.handlers[:] = [handler]
    _LOGGER.propagate = False
    _LOGGER.setLevel(logging.INFO)


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
