"""What happens, told to `logging` at DEBUG: hits, misses, waits and stores."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger

_DEBUG = 10  # logging.DEBUG

_logger: Logger | None = None


def listener() -> Logger | None:
    """Return the logger "persistent_dict" if it listens at DEBUG.

    `logging` takes longer to import than this package, and a program that has not imported it does not listen.
    """
    global _logger  # noqa: PLW0603  # found once
    if _logger is None:
        logging = sys.modules.get("logging")
        if not hasattr(logging, "getLogger"):  # also while another thread is importing it
            return None
        _logger = logging.getLogger("persistent_dict")  # type: ignore[union-attr]  # just asked for
    return _logger if _logger.isEnabledFor(_DEBUG) else None
