"""``python -m bpf``: compile everything in the plan, all warnings being errors, for scripts/check.  Nothing is loaded.

Needs root: bcc makes maps while it compiles.
"""

import sys
from collections.abc import Mapping

from bpf import btf, preconditions
from bpf.compiler import compile_sources
from bpf.errors import BpfError
from bpf.plan import FEATURES, HOOKS


def main() -> int:
    """Returns the exit code."""
    code = 0
    try:
        preconditions.require_bpf()
        dispatchers = sorted({each.dispatcher for each in HOOKS})
        units: list[tuple[tuple[str, ...], list[str], Mapping[str, int]]] = [(("dispatch.c",), dispatchers, {})]
        for each in FEATURES:
            functions = [row.function for row in each.programs]
            units.append((each.sources, functions, btf.numbers(each.numbers)))
    except BpfError as error:
        sys.stderr.write(f"the C sources can not be compiled: {error}\n")
        return 1
    for sources, functions, numbers in units:
        try:
            compile_sources(sources, functions, defines=numbers)
        except BpfError as error:
            sys.stderr.write(f"{error}\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
