"""``nox`` runs the tests on every Python it finds, with and without optional packages, and the checks of the code."""

from __future__ import annotations

import os
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

# pyenv keeps its interpreters off the PATH.
_versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(_versions.glob("3.1*/bin")))])


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """With everything that people key and store with."""
    session.install("-e", ".[test]")
    session.run("pytest", "-q", *session.posargs)


@nox.session(python=PYTHONS)
def bare(session: nox.Session) -> None:
    """With what the package itself needs."""
    session.install("-e", ".", "pytest", "pytest-xdist", "hypothesis")
    session.run("pytest", "-q", "-n", "2", *session.posargs)


@nox.session(python="3.11")
def checks(session: nox.Session) -> None:
    """Style, types, imports."""
    session.install("-e", ".[dev]", "numpy")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
