"""What every fuzz target shares: seeds, mutation of whole messages, and findings that can be run again.

The fuzzer is libFuzzer through atheris: it keeps the inputs that reach new code
and goes on from them.  A target is a function that takes bytes and may raise
only what its module docstring says.  ``main`` takes libFuzzer's own options:

    .venv/bin/python -m tests.fuzz.decoder -max_total_time=600
    .venv/bin/python -m tests.fuzz.decoder -max_total_time=600 DIRECTORY    keep the inputs that reach new code
    .venv/bin/python -m tests.fuzz.decoder --input BASE64                   run one finding again, without the fuzzer
"""

import base64
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import atheris

Target = Callable[[bytes], None]
Mutator = Callable[[bytes, int, int], bytes]
_TEXTS: Final = ("", "\0", "\ud7ff", "x" * 5000)
_NUMBERS: Final = (0, 1, -1, 2**63, 2**64 - 1, 0.5, 1e300)
_VALUES: Final[tuple[Any, ...]] = (None, True, False, *_NUMBERS, *_TEXTS, b"", b"\0", [], {}, [[]], {"a": 1})


def main(name: str, target: Target, seeds: Iterable[bytes], mutator: Mutator | None = None) -> None:
    """Fuzz ``target`` until the options in ``sys.argv`` say to stop, or until a finding; does not return.

    ``name`` is that of the module, for the line that says how to run a finding again.
    """
    if sys.argv[1:2] == ["--input"]:
        target(base64.b64decode(sys.argv[2]))
        print("nothing is wrong with this input")
        return

    def told(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            shown = base64.b64encode(data).decode()
            print(f"\nfinding; run again: .venv/bin/python -m {name} --input {shown}", file=sys.stderr, flush=True)
            raise

    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory, "seeds")
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / f"{number:03}").write_bytes(seed)
        arguments = [*sys.argv, f"-artifact_prefix={directory}/", "-print_final_stats=1"]
        kept = [each for each in sys.argv[1:] if not each.startswith("-")]
        arguments += [str(corpus)] if kept else [str(_made(Path(directory, "found"))), str(corpus)]
        hooks = {} if mutator is None else {"custom_mutator": mutator}
        atheris.Setup(arguments, told, enable_python_coverage=True, **hooks)
        atheris.Fuzz()


def message_mutator(
    read: Callable[[bytes], Any], write: Callable[[Any], bytes], *, errors: tuple[type[Exception], ...]
) -> Mutator:
    """Change one place of a message and write it back whole, so that the change gets past the framing.

    ``errors`` are those of ``read`` and ``write``.  Every other time, and where
    there is no message, the bytes are changed as libFuzzer does.
    """

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, max_size)  # type: ignore[no-any-return]
        try:
            changed = write(_changed(read(data), rng))
        except errors:
            return atheris.Mutate(data, max_size)  # type: ignore[no-any-return]
        return changed if len(changed) <= max_size else atheris.Mutate(data, max_size)

    return mutate


def _changed(value: Any, rng: random.Random) -> Any:
    """A copy with something else in one place, near the leaves more often."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {each: item for each, item in value.items() if each != key}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        position = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:position] + value[position:][: rng.randrange(3)] * 2
        return [*value[:position], _changed(value[position], rng), *value[position + 1 :]]
    if isinstance(value, bytes | str) and rng.random() < 0.7:
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        mutated = atheris.Mutate(raw, len(raw) + 16) if raw else b"x"
        return mutated if isinstance(value, bytes) else mutated.decode("utf-8", "replace")
    return rng.choice(_VALUES)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
