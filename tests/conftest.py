"""No test touches the user's own caches."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_cache_directory(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PERSISTENT_DICT_DIR", str(tmp_path_factory.getbasetemp() / "caches"))
    monkeypatch.delenv("PERSISTENT_DICT_DISABLE", raising=False)
