"""The answer to "what became of that connection, and why?", by the id of its access record."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ca.spiffe import SpiffeId, SpiffeIdError
from node_agent.explanation.explainer import Explainer
from node_agent.explanation.places import UnknownPlace
from node_agent.explanation.ways import Row, describe
from node_agent.model import Endpoint, EndpointAddress, ObjectName
from node_agent.policy import Request
from node_agent.registry import Registry
from node_agent.telemetry.archive import find_record

Rows = Callable[[], Iterable[Mapping[str, Any]]]


class PastConnections:
    """Looks among the ``live`` connections (rows of ``ringfence connections``), and in the ``archive`` of past ones."""

    def __init__(
        self, *, explainer: Explainer, registry: Registry, live: Rows, archive: Callable[[], Iterable[bytes]]
    ) -> None:
        self._explainer = explainer
        self._registry = registry
        self._live = live
        self._archive = archive

    def explain(self, record_id: str) -> Row:
        """The record, what it says in words, and what would be said of it now; raises UnknownPlace."""
        live = next((dict(row) for row in self._live() if row["id"] == record_id), None)
        record = live if live is not None else find_record(self._archive(), record_id)
        if record is None:
            raise UnknownPlace(
                f"no connection {record_id!r} is open here or among the last thousands that ended; its record names "
                "the node that it belongs to, and its log may still have it"
            )
        now = self._now(record)
        return {
            "id": record_id,
            "open": live is not None,
            "summary": _summary(record, is_open=live is not None),
            "record": record,
            "now": now,
        }

    def _now(self, record: Mapping[str, Any]) -> Row | None:
        """What the policies of now say of the same connection; None if there is nobody to judge it any more."""
        to = _address(record.get("endpoint")) or _address(record.get("original_destination"))
        address = _address(record.get("source_address"))
        destination = self._registry.workload_at(to.ip) if to is not None else None
        if to is None or destination is None or not destination.enrolled:
            return None
        name = record.get("source_workload") or record.get("source")
        source_ip = address.ip if address is not None else self._address_of(name, to.ip)
        if source_ip is None:
            return None
        request = Request(
            source_identity=_identity(record.get("source_identity")),
            source_ip=source_ip,
            destination=destination,
            port=to.port,
            destination_ip=to.ip,
        )
        way = self._explainer.ways.judged(
            request, source=str(name or source_ip), endpoint=Endpoint(address=to, workload=destination)
        )
        return describe(way, file_of=self._explainer.file_of())

    def _address_of(self, name: object, other_ip: str) -> str | None:
        """Of a live connection only the source's name is known here."""
        namespace, _, last = str(name).partition("/")
        workload = self._registry.workload_named(ObjectName(namespace, last))
        if workload is None:
            found = _address(name)
            return None if found is None else found.ip
        return next((each for each in workload.addresses if (":" in each) is (":" in other_ip)), None)


def _summary(record: Mapping[str, Any], *, is_open: bool) -> str:
    source = record.get("source_workload") or record.get("source") or record.get("source_address")
    to = record.get("service") or record.get("endpoint") or record.get("original_destination")
    if is_open:
        return f"{source} is connected to {to}"
    reason, policy, detail = record["close_reason"], record.get("policy"), record.get("detail")
    if reason == "ok":
        return f"{source} was connected to {to}" + (f", allowed by policy {policy}" if policy else "")
    by = f" by policy {policy}" if reason == "policy_denied" and policy else ""
    return f"{source} to {to}: {reason}{by}" + (f" ({detail})" if detail else "")


def _address(value: object) -> EndpointAddress | None:
    if not isinstance(value, str):
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit():
        return None
    return EndpointAddress(host.removeprefix("[").removesuffix("]"), int(port))


def _identity(value: object) -> SpiffeId | None:
    if not isinstance(value, str):
        return None
    try:
        return SpiffeId.parse(value)
    except SpiffeIdError:
        return None
