"""Keys and their digests, which must never change. Run as a script, prints the digests of this Python as JSON.

Only the standard library is needed. Each item is an expression, so that every interpreter makes the key itself.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import json
import pathlib
import types
import uuid
import zoneinfo

NAMES = {
    "D": datetime,
    "decimal": decimal,
    "fractions": fractions,
    "functools": functools,
    "pathlib": pathlib,
    "types": types,
    "uuid": uuid,
    "zoneinfo": zoneinfo,
    "collections": collections,
}


class Colour(enum.Enum):
    RED = [1]


class Number(enum.IntEnum):
    ONE = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: object = None


Pair = collections.namedtuple("Pair", "left right")


def plain(a, b=2, *, c=3):
    return a, b, c


def made_with(value):
    def inner():
        return value

    return inner


# The classes above have this module's name wherever it is run.
for _thing in (Colour, Number, Access, Point, Pair, plain, made_with):
    _thing.__module__ = "golden_keys"
    NAMES[_thing.__name__] = _thing


def names_inside(function):
    function.__module__ = "golden_keys"
    return function


NAMES["names_inside"] = names_inside

EXPRESSIONS = """
None
True
False
0
1
-1
2**31
2**63
-2**200
0.0
-0.0
1.0
float("inf")
1e-320
1j
complex(-0.0, 2.5)
""
"1"
"kernel"
"ä€😀"
"\\ud800"
b""
b"1"
b"\\xff\\x7f"
...
()
(1,)
((1,),)
(1, (2, "3"), b"4")
("ab", "c")
("a", "bc")
("kernel", 17, 17.0, "float32")
frozenset()
frozenset({1, 2, 3})
frozenset({"a", ("b", None), frozenset({1.5})})
range(0)
range(1, 10, 3)
slice(1, None, 2)
Colour.RED
Number.ONE
Access.READ
Access.READ | Access.WRITE
int
Point
type
plain
names_inside(made_with(5))
len
"x".upper
functools.partial(plain, 1, c=4)
Point(1, 2)
Point(1, (Point(2), "z"))
Pair(1, "r")
D.date(2020, 2, 29)
D.time(1, 2, 3, 4)
D.time(1, 2, tzinfo=D.timezone.utc)
D.datetime(2020, 1, 1)
D.datetime(2020, 1, 1, 12, 30, 1, 5, fold=1)
D.datetime(2020, 1, 1, tzinfo=D.timezone.utc)
D.datetime(2020, 1, 1, 1, tzinfo=D.timezone(D.timedelta(hours=1)))
D.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))
D.timedelta(1, 2, 3)
D.timezone.utc
D.timezone(D.timedelta(hours=-5), "here")
zoneinfo.ZoneInfo("Europe/Berlin")
decimal.Decimal("1.0")
decimal.Decimal("1.00")
decimal.Decimal("-Infinity")
fractions.Fraction(1, 3)
uuid.UUID(int=7)
pathlib.PurePosixPath("a/b")
pathlib.PureWindowsPath("a/b")
types.MappingProxyType({"b": 1, "a": (2,)})
""".strip().splitlines()

CONTENT_EXPRESSIONS = """
[]
[1, [2], "3"]
{}
{"b": 1, "a": [2]}
set()
{3, 1, 2}
bytearray(b"1")
memoryview(b"1")
collections.deque([1, 2], 5)
collections.OrderedDict(a=1, b=2)
collections.OrderedDict(b=2, a=1)
collections.Counter("aab")
collections.defaultdict(list, a=[1])
Point([1], {2})
""".strip().splitlines()


def digests() -> dict[str, str]:
    """Return expression -> digest. Those of mutable things have a ContentKeyBuilder's."""
    from persistent_dict import ContentKeyBuilder, KeyBuilder

    builder, content = KeyBuilder(), ContentKeyBuilder()
    return {text: builder(eval(text, dict(NAMES))) for text in EXPRESSIONS} | {
        text: content(eval(text, dict(NAMES))) for text in CONTENT_EXPRESSIONS
    }


if __name__ == "__main__":
    print(json.dumps(digests(), indent=0))
