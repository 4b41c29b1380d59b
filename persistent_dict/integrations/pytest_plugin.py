"""pytest finds this by itself: the fixture `temporary_cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="temporary_cache")
def _temporary_cache() -> Iterator[Path]:
    """Give every dictionary that was given no place an empty one for this test, which is removed after it."""
    from persistent_dict.testing import temporary_cache

    with temporary_cache() as directory:
        yield Path(directory)
