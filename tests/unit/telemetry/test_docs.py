"""The documentation lists exactly what exists: close reasons, flags, fields, metrics."""

import re
from pathlib import Path
from typing import Final

from node_agent.dashboard.gate import COOKIE
from node_agent.errors import CloseReason
from node_agent.telemetry.response_flags import RESPONSE_FLAGS

ROOT: Final = Path(__file__).parents[3]
ACCESS_RECORDS: Final = (ROOT / "docs/access-records.md").read_text()
METRICS: Final = (ROOT / "docs/metrics.md").read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under ``heading``, without the header."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_every_close_reason_is_documented_with_its_flag() -> None:
    documented = {reason: flag for reason, flag, _ in rows(ACCESS_RECORDS, "Close reasons and response flags")}
    assert documented == {reason.value: RESPONSE_FLAGS[reason].value for reason in CloseReason}


def test_every_field_of_the_example_is_documented() -> None:
    example = ACCESS_RECORDS.split("```json\n")[1].split("```")[0]
    assert re.findall(r'"(\w+)":', example) == [field for field, _ in rows(ACCESS_RECORDS, "Fields")]


def test_every_metric_in_the_code_is_documented_and_no_other() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "node_agent").rglob("*.py"))
    in_code = set(re.findall(r'"((?:ringfence|istio_tcp)_[a-z_]+)"', source)) - {COOKIE}
    before, _, rest = METRICS.partition("\n## The certificate authority\n")
    of_the_agent = before + rest.partition("\n## ")[2]
    assert set(re.findall(r"`((?:ringfence|istio_tcp)_[a-z_]+)`", of_the_agent)) == in_code
