"""A page that shows what fills a container."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from persistent_dict.inspection import AnyStore, Progress


def write_report(store: AnyStore, path: str, progress: Progress) -> int:
    """Write the page to `path`. Return how many problems it shows."""
    raise NotImplementedError
