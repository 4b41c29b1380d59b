"""Compiled modules that import others: what many programs share is stored once.

    python -m persistent_dict.examples.modules

A hundred programs, each with the code of the modules that it uses, of which there are twenty. Stored as they are, every
program brings its own copy of those modules; stored by reference, the modules are entries of their own.
"""

from __future__ import annotations

import marshal
import random
import tempfile
from dataclasses import dataclass, field

from persistent_dict import WriteOncePersistentDict, transaction

PROGRAMS, LIBRARIES, EACH = 100, 20, 5


@dataclass
class Module:
    """A module's code, and the modules that it imports."""

    name: str
    code: bytes
    imports: list[Module] = field(default_factory=list)


def name_of(thing: object) -> str | None:
    """Return the name of a module."""
    return thing.name if isinstance(thing, Module) else None


def compiled(name: str, lines: int, imports: list[Module]) -> Module:
    """Return a module of so many lines."""
    source = "\n".join(f"def f{i}(x):\n    return x * {i} + len({name!r})" for i in range(lines))
    return Module(name, marshal.dumps(compile(source, name, "exec")), imports)


def main() -> None:
    """Store the programs in both ways, and print what they take."""
    chance = random.Random(1)
    base = compiled("base", 200, [])
    libraries = [compiled(f"library {i}", 100, [base]) for i in range(LIBRARIES)]
    programs = [compiled(f"program {i}", 10, chance.sample(libraries, EACH)) for i in range(PROGRAMS)]
    for title, references in (("whole", None), ("by reference", name_of)):
        with tempfile.TemporaryDirectory() as directory:
            cache = WriteOncePersistentDict[str, Module]("modules", container_dir=directory, references=references)
            with transaction(cache) as txn:
                for program in programs:
                    txn.store(program.name, program)
            again = WriteOncePersistentDict[str, Module]("modules", container_dir=directory, references=references)
            if any(again[program.name] != program for program in programs):
                raise RuntimeError("a program came back changed")
            print(f"{title}: {len(cache)} entries, {cache.nbytes() / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
