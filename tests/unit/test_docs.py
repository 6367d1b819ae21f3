"""The documentation says what the code does: configuration keys, the frames of the tunnel, links."""

import re
import subprocess
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

import pytest

from ca.authority.attestation.settings import KEYS as ATTESTATION_KEYS
from ca.authority.config import _KEYS as CA_KEYS
from ca.authority.config import _MAX_TTL_S, _MIN_TTL_S, AuthorityConfig
from ca.authority.limits import LIMITS
from node_agent import config as agent_config
from node_agent.errors import CloseReason
from node_agent.frames import (
    ALPN,
    EOF_FRAME,
    HEADER,
    MAX_CONTROL_BYTES,
    MAX_DATA_BYTES,
    TYPE_SHIFT,
    FrameType,
    Open,
    Verdict,
    encode_open,
    encode_reset,
    encode_verdict,
)
from node_agent.model import ObjectName, OriginalDestination, PeerAddress
from node_agent.stream_frames import (
    SHARED_ALPN,
    StreamFrameType,
    decode_attach,
    encode_attach,
    encode_credit,
    encode_share,
    encode_stream_frame,
)

ROOT: Final = Path(__file__).parents[2]
CONFIGURATION: Final = (ROOT / "docs/configuration.md").read_text()
PROTOCOL: Final = (ROOT / "docs/tunnel-protocol.md").read_text()
PAGES: Final = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if not name.startswith("vagrant/")
)

_OPEN: Final = encode_open(
    Open(
        destination=OriginalDestination("10.247.2.3", 8080),
        source=PeerAddress("10.247.1.2", 41234),
        workload=ObjectName("default", "cart"),
    )
)
_ACCEPTED: Final = encode_verdict(Verdict(reason=CloseReason.OK))
_TOKEN: Final = bytes(range(16))
FRAMES: Final = {
    "open": _OPEN,
    "verdict-ok": _ACCEPTED,
    "verdict-refused": encode_verdict(
        Verdict(reason=CloseReason.CONNECT_REFUSED, detail="connect to 10.247.2.3 port 8080: Connection refused")
    ),
    "data": HEADER.pack(FrameType.DATA << TYPE_SHIFT | 5) + b"hello",
    "eof": EOF_FRAME,
    "reset": encode_reset(None),
    "reset-drained": encode_reset(CloseReason.DRAINED),
    "share": encode_share(_TOKEN),
    "attach": encode_attach(_TOKEN, 7),
    "stream-open": encode_stream_frame(StreamFrameType.OPEN, 1, _OPEN[HEADER.size :]),
    "stream-verdict-ok": encode_stream_frame(StreamFrameType.VERDICT, 1, _ACCEPTED[HEADER.size :]),
    "stream-data": encode_stream_frame(StreamFrameType.DATA, 1, b"hello"),
    "stream-eof": encode_stream_frame(StreamFrameType.EOF, 1),
    "stream-reset-policy-denied": encode_stream_frame(StreamFrameType.RESET, 1, CloseReason.POLICY_DENIED.encode()),
    "stream-credit": encode_credit(1, 32_768),
    "stream-own": encode_stream_frame(StreamFrameType.OWN, 1),
    "stream-moved": encode_stream_frame(StreamFrameType.MOVED, 1),
}


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row of a text, without the lines that only separate."""
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if not set(row[0]) <= {"-", " "}]


# -- the tunnel protocol ----------------------------------------------------------


def test_every_hex_dump_is_what_the_code_produces() -> None:
    found = dict(re.findall(r"<!-- hex: ([a-z-]+) -->\n```\n([0-9a-f \n]+)```", PROTOCOL))
    assert {name: bytes.fromhex(dump) for name, dump in found.items()} == FRAMES


def test_every_frame_type_and_limit_is_documented() -> None:
    section = PROTOCOL.split("## 3. Frames")[1].split("### OPEN")[0]
    documented = {int(row[0]): row[1] for row in table_rows(section) if row[0].isdigit()}
    assert documented == {kind.value: kind.name for kind in FrameType}
    assert f"at most {MAX_CONTROL_BYTES:,}" in section
    assert f"1 to {MAX_DATA_BYTES:,}" in section


def test_every_stream_frame_is_documented_with_its_length() -> None:
    section = PROTOCOL.split("### Stream frames")[1].split("### States of a stream")[0]
    rows = [row for row in table_rows(section) if row[0].isdigit()]
    assert {int(row[0]): row[1] for row in rows} == {kind.value: kind.name for kind in StreamFrameType}
    lengths = {row[1]: row[4] for row in rows}
    assert lengths["OPEN"] == lengths["VERDICT"] == f"at most {MAX_CONTROL_BYTES:,}"
    header = len(encode_stream_frame(StreamFrameType.EOF, 1))
    assert lengths["DATA"].startswith(f"1 to {4 * 16_384 - header:,}:")


def test_an_attach_names_the_token_and_the_stream() -> None:
    assert decode_attach(FRAMES["attach"][HEADER.size :]) == (_TOKEN, 7)


def test_the_protocol_that_shares_is_offered_by_the_name_on_the_page() -> None:
    assert f"`{SHARED_ALPN}` or `{ALPN}`: offered by the source" in PROTOCOL


def test_every_documented_verdict_is_a_close_reason() -> None:
    section = PROTOCOL.split("| reason | meaning |")[1].split("\n\n")[0]
    words = {word for row in table_rows(section) for word in re.findall(r"`(\w+)`", row[0])}
    assert words <= {reason.value for reason in CloseReason}


def test_the_tries_of_another_endpoint_are_those_of_the_code() -> None:
    from node_agent.proxy.upstream import ANOTHER_MAY_WORK

    section = PROTOCOL.split("| reason | meaning |")[1].split("\n\n")[0]
    for row in table_rows(section):
        for word in re.findall(r"`(\w+)`", row[0]):
            if word != "ok":
                assert (CloseReason(word) in ANOTHER_MAY_WORK) == (row[2] == "yes"), word


# -- configuration ----------------------------------------------------------------


def documented_keys(heading: str) -> dict[tuple[str, str], list[str]]:
    """Section and key -> the other cells, of the tables under a heading of configuration.md."""
    text = CONFIGURATION.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    found = {}
    for part in text.split("\n### ")[1:]:
        section = re.match(r"`\[([\w.]+)\]`", part)
        assert section is not None, part[:40]
        for row in table_rows(part):
            if row[0].startswith("`"):
                found[section[1], row[0].strip("`")] = row[1:]
    return found


def shown(value: Any) -> str:
    """A default as the page writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in value) + "]`"
    if isinstance(value, float | int):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f'`"{value}"`'


AGENT_KEYS: Final = {
    (section, item.name): item for section, kind in agent_config._SECTIONS.items() for item in fields(kind)
}


def test_every_key_of_the_agent_is_documented_and_no_other() -> None:
    assert documented_keys("agent.toml").keys() == AGENT_KEYS.keys()


@pytest.mark.parametrize("key", AGENT_KEYS, ids=".".join)
def test_default_and_bounds_of_the_agents_key_are_right(key: tuple[str, str]) -> None:
    item = AGENT_KEYS[key]
    default, bounds = documented_keys("agent.toml")[key][:2]
    if item.default is MISSING:
        assert default == "required"
    elif item.default in {None, ()}:
        assert default == "none"
    elif isinstance(item.default, agent_config.HostPort):
        assert default == f'`"{item.default.host}:{item.default.port}"`'
    else:
        assert default == shown(item.default)
    if item.metadata:
        least, most = item.metadata["least"], item.metadata["most"]
        assert bounds.split(";")[0] == f"{shown(least)} to {shown(most)}" + (" s" if key[1].endswith("_s") else "")


def test_every_key_of_the_ca_is_documented_and_no_other() -> None:
    by_section = {**CA_KEYS, **ATTESTATION_KEYS}
    known = {(section, key) for section, keys in by_section.items() for key in keys}
    assert documented_keys("ca.toml").keys() == known


def test_the_cas_defaults_are_those_of_the_code(tmp_path: Path) -> None:
    path = tmp_path / "ca.toml"
    path.write_text("")
    config = AuthorityConfig.load(path)
    rows = documented_keys("ca.toml")
    assert rows["ca", "trust_domain"][0] == shown(config.trust_domain)
    assert rows["ca", "address"][0] == shown(f"{config.host or ''}:{config.port}")
    assert rows["ca", "state_dir"][0] == shown(config.state_dir)
    assert rows["ca", "passphrase_file"][0] == "none"
    assert rows["ca", "svid_ttl_s"][:2] == [shown(config.svid_ttl_s), f"{_MIN_TTL_S} to {_MAX_TTL_S} s; whole"]
    assert rows["ca", "intermediate_lifetime_s"][0] == shown(config.intermediate_lifetime_s)
    assert rows["ca", "root_lifetime_s"][0] == shown(config.root_lifetime_s)
    assert rows["registry", "manifests_dir"][0] == shown(config.manifests_dir)


@pytest.mark.parametrize("key", LIMITS)
def test_default_and_bounds_of_a_limit_of_the_ca_are_right(key: str) -> None:
    limit = LIMITS[key]
    assert documented_keys("ca.toml")["limits", key][:2] == [
        shown(limit.default),
        f"{limit.at_least} to {limit.at_most}; whole",
    ]


def test_the_example_configurations_are_accepted(tmp_path: Path) -> None:
    agent, ca = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)
    (tmp_path / "agent.toml").write_text(agent)
    (tmp_path / "ca.toml").write_text(ca)
    agent_config.load(tmp_path / "agent.toml")
    AuthorityConfig.load(tmp_path / "ca.toml")


# -- all pages --------------------------------------------------------------------


def anchor(heading: str) -> str:
    """The anchor that a Markdown heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name} links to {target}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "README.md":
            assert f"({page.name})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_a_page_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for name in re.findall(r"`((?:node_agent|ca|bpf|scripts|tests|docs|bench)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
