"""Options that leave only some rows of an answer, for people and for ``--json`` alike."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Final

from node_agent.cli.names import completes, namespaces
from node_agent.cli.rows import Row

DEFAULT_NAMESPACE: Final = "default"


def add_namespace_option(parser: argparse.ArgumentParser, text: str = "only this namespace") -> None:
    """``-n``, as kubectl's."""
    completes(parser.add_argument("-n", "--namespace", metavar="NAMESPACE", help=text), namespaces)


def in_namespace(name: object, namespace: str) -> bool:
    """Whether ``namespace/name``, with or without a port, is in the namespace."""
    return isinstance(name, str) and name.startswith(f"{namespace}/")


def is_named(name: object, wanted: str) -> bool:
    """Whether ``namespace/name[:port]`` is what somebody means by ``wanted``, with or without namespace and port."""
    if not isinstance(name, str):
        return False
    namespace, _, rest = name.rpartition("/")
    wanted_namespace, _, wanted_rest = wanted.rpartition("/")
    if wanted_namespace and wanted_namespace != namespace:
        return False
    return rest == wanted_rest or (":" not in wanted_rest and rest.partition(":")[0] == wanted_rest)


def between(rows: Iterable[Row], args: argparse.Namespace, *, source: str, ends: Sequence[str]) -> list[Row]:
    """The connections to ``--service``, from ``--source``, with an end in ``--namespace``; None is not asked for.

    ``source`` and ``ends`` are the cells that hold names.
    """
    return [
        row
        for row in rows
        if (args.of_service is None or is_named(row.get("service"), args.of_service))
        and (args.source is None or is_named(row.get(source), args.source))
        and (args.namespace is None or any(in_namespace(row.get(end), args.namespace) for end in ends))
    ]


def with_values(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """The rows whose cells have the wanted values; a value that is None is not asked for."""
    asked = {key: value for key, value in wanted.items() if value is not None}
    return [row for row in rows if all(row.get(key) == value for key, value in asked.items())]
