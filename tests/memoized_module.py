"""Functions that the tests of `memoize` call in other processes."""

from __future__ import annotations

import os
import time

from persistent_dict import memoize


@memoize
def square(x, calls=None):
    """Compute slowly."""
    if calls is not None:
        with open(calls, "a") as file:
            file.write(f"{x} {os.getpid()}\n")
    time.sleep(0.01)
    return x * x


def squares(numbers, calls):
    return [square(x, calls) for x in numbers]
