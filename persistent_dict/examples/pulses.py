"""Pulses of an experiment, nested and shared, each with a name under which it is found again.

    python -m persistent_dict.examples.pulses [DIRECTORY]

A sequence consists of pulses, some of which other sequences have, too. Storing a sequence stores all pulses in it that
have a name, at once, as entries of their own that refer to each other; there is nothing to flush.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from typing import Any

from persistent_dict import NameTakenError, PersistentDict, References


@dataclass
class Ramp:
    """From one voltage to another, in volts; `duration` in nanoseconds."""

    start: float
    stop: float
    duration: float
    name: str | None = None


@dataclass
class Sequence:
    """One pulse after the other, a number of times."""

    parts: list[Any]
    repetitions: int = 1
    name: str | None = None


KINDS = {"ramp": Ramp, "sequence": Sequence}


def name_of(thing: Any) -> str | None:
    """Return the name of a pulse that has one."""
    return thing.name if isinstance(thing, (Ramp, Sequence)) else None


def to_json(pulse: Any) -> dict[str, Any]:
    """Return a pulse as a dict; its parts are still pulses."""
    kind = next(kind for kind, made in KINDS.items() if type(pulse) is made)
    return {"#type": kind, **{field.name: getattr(pulse, field.name) for field in fields(pulse)}}


def from_json(found: dict[str, Any]) -> Any:
    """Return the pulse that a dict stands for; its parts are pulses already."""
    kind = KINDS.get(found.get("#type", ""))
    return found if kind is None else kind(**{name: part for name, part in found.items() if name != "#type"})


def open_pulses(directory: str) -> PersistentDict[str, Any]:
    """Return the pulses that are kept in a directory, by name."""
    names = References(name_of, to_json=to_json, from_json=from_json)
    return PersistentDict("pulses", container_dir=directory, format="json", references=names)


def main(directory: str) -> None:
    """Store two sequences that share pulses, load one, and show what is kept."""
    pulses = open_pulses(directory)
    load = Ramp(0.0, 1.5, 100.0, name="load")
    readout = Sequence([Ramp(0.0, 0.8, 20.0), Ramp(0.8, 0.8, 500.0)], name="readout")
    pulses["rabi"] = Sequence([load, Ramp(1.5, 1.5, 40.0), readout], repetitions=1000, name="rabi")
    pulses["echo"] = Sequence([load, load, readout], name="echo")

    print("entries:", *sorted(pulses))
    echo = open_pulses(directory)["echo"]
    print("echo is as it was stored:", asdict(echo) == asdict(Sequence([load, load, readout], name="echo")))
    print("its first two parts are one object:", echo.parts[0] is echo.parts[1])
    try:
        pulses["ramsey"] = Sequence([Ramp(0.0, 9.9, 1.0, name="load")], name="ramsey")
    except NameTakenError as error:
        print("refused:", str(error).partition(",")[0])
    print("ramsey is not there:", "ramsey" not in pulses)
    print("what is kept of echo:", json.dumps(json.loads(stored_text(pulses, "echo"))))


def stored_text(pulses: PersistentDict[str, Any], name: str) -> str:
    """Return the JSON text of an entry."""
    plain = PersistentDict[str, Any]("pulses", container_dir=pulses.container_dir, format="json")
    return json.dumps(plain[name])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
