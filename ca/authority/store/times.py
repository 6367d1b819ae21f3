"""Times in the database are whole seconds since 1970; everywhere else they are aware UTC datetimes."""

from datetime import UTC, datetime


def to_seconds(at: datetime) -> int:
    """Cut to the second, as certificates do (RFC 5280 4.1.2.5.2)."""
    return int(at.timestamp())


def from_seconds(seconds: int) -> datetime:
    """Read back what ``to_seconds`` made."""
    return datetime.fromtimestamp(seconds, UTC)
