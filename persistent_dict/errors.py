"""Every exception and warning of the package, each with the words that help.

Exceptions carry their facts as attributes, survive pickling, and end with the command that mends what they report.
"""

from __future__ import annotations

import os
import sys
import warnings


def shell_quoted(path: str) -> str:
    """Return `path` so that a POSIX shell reads it as one word."""
    from shlex import quote

    return quote(path)


def shown(key: object, limit: int = 200) -> str:
    """Return a short text for `key`: its repr, cut to `limit` characters, or its type where the repr fails."""
    try:
        text = repr(key)
    except Exception:  # a user's __repr__ may raise anything, and must not replace the error that is being told
        text = f"<{type(key).__name__} object>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def said(error: BaseException) -> str:
    """Return what an exception says, "" where its `__str__` fails."""
    try:
        return str(error)
    except Exception:  # as in `shown`
        return ""


def warn(text: str, category: type[Warning]) -> None:
    """Warn at the line outside this package that is at the bottom of it."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("persistent_dict."):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]  # None ends the loop
    warnings.warn(text, category, stacklevel=level)


class PersistentDictError(Exception):
    """Root of the package's exceptions."""


class UnkeyableError(PersistentDictError, TypeError):
    """A key, or something inside it, has no encoding.

    Attributes
    ----------
    problem : str
        What is wrong with it, and the ways out.
    where : tuple of str
        The steps from the key to the part that is meant, outermost first: ``("[1]", ".name")``.
    """

    def __init__(self, problem: str, where: tuple[str, ...] = ()) -> None:
        super().__init__(problem, where)
        self.problem = problem
        self.where = where

    def inside(self, step: str) -> UnkeyableError:
        """Return the error as seen from one container further out."""
        return UnkeyableError(self.problem, (step, *self.where))

    def __str__(self) -> str:
        steps = self.where if len(self.where) <= 8 else (*self.where[:7], "…")
        return f"key{''.join(steps)} {self.problem}"


class NoSuchEntryError(PersistentDictError, KeyError):
    """The dictionary has no entry under the key."""


class NoSuchEntryCollisionError(NoSuchEntryError):
    """There is an entry under the key's digest, but it belongs to an unequal key."""


class ReadOnlyEntryError(PersistentDictError, KeyError):
    """A write-once entry would have been overwritten."""

    def __init__(self, key_text: str, detail: str = "the entry is there already") -> None:
        super().__init__(key_text, detail)
        self.key_text = key_text
        self.detail = detail

    def __str__(self) -> str:  # KeyError would print the repr of the arguments
        return (
            f"{self.detail}, and a WriteOncePersistentDict does not overwrite: {self.key_text}. "
            'Call store_if_not_present(), or open the dictionary with on_conflict="keep", to keep what is there.'
        )


class InvalidEntryError(PersistentDictError):
    """An entry is there, but it is damaged. Not a `KeyError`: nobody should recompute over it unknowingly.

    Attributes
    ----------
    path : str
        The file or directory that is wrong.
    reason : str
        What is wrong with it.
    entry : str
        The entry's directory: what has to go.
    container : str
        The dictionary's directory, or "" where the store has none.
    key_text : str
        The key as the caller gave it, or "" where only the digest is known.
    """

    def __init__(self, path: str, reason: str, entry: str = "", container: str = "", key_text: str = "") -> None:
        super().__init__(path, reason, entry, container, key_text)
        self.path = path
        self.reason = reason
        self.entry = entry
        self.container = container
        self.key_text = key_text

    def for_key(self, key: object) -> InvalidEntryError:
        """Return the same error, naming `key`."""
        return type(self)(self.path, self.reason, self.entry, self.container, shown(key))

    def __str__(self) -> str:
        entry_of = f"the entry of {self.key_text}" if self.key_text else "an entry"
        return "\n".join([f"{entry_of} is invalid: {self.reason}.", f"  file: {self.path}", *self._cures()])

    def _cures(self) -> list[str]:
        cures = []
        if self.entry:
            cures.append(f"  to remove the entry, so that it is computed again:  rm -rf {shell_quoted(self.entry)}")
        if self.container:
            cures.append(
                f"  to find every damaged entry and set it aside:  {python_command()} -m persistent_dict repair "
                f"{shell_quoted(self.container)}"
            )
        return cures


class InvalidKeyFileError(InvalidEntryError):
    """An entry's key file fails its checks."""


class InvalidValueFileError(InvalidEntryError):
    """An entry's value file fails its checks."""


class UnloadableEntryError(InvalidEntryError):
    """An entry's bytes are intact, but decoding them fails: a class that moved, a `__setstate__` that raises."""

    _advice = "  the bytes pass their checks, so the cause lies in the code: has a class or module moved or changed?"

    def _cures(self) -> list[str]:
        cures = [self._advice]
        removal = self._removal()
        if removal:
            cures.append(f"  to remove the entry, so that it is computed again:  {removal}")
        return cures

    def _removal(self) -> str:
        """Return the command that removes the entry, "" where it is in a place that is only read."""
        pack, _, digest = self.entry.rpartition(":")
        if not self.entry.startswith(f"{self.container}/"):
            return ""
        if pack.endswith(".pack") and len(digest) == 40:
            return f"{python_command()} -m persistent_dict rm {shell_quoted(self.container)} {digest}"
        return f"rm -rf {shell_quoted(self.entry)}"


class MissingReferenceError(UnloadableEntryError):
    """An entry refers to another one by its name, and there is none."""

    _advice = "  to mend it: store what is missing, under its name"


class CyclicReferenceError(PersistentDictError, ValueError):
    """Objects that have names are parts of each other, so that none could be loaded.

    Attributes
    ----------
    names : list
        The names, each a part of the one before; the last is the first.
    """

    def __init__(self, names: list[object]) -> None:
        super().__init__(names)
        self.names = names

    def __str__(self) -> str:
        way = " contains ".join(map(shown, self.names))
        return f"{way}: objects that are parts of each other cannot be stored by reference"


class NameTakenError(PersistentDictError, ValueError):
    """An object inside a value has a name under which another one is stored. Nothing was written.

    Attributes
    ----------
    name : object
    where : str
        What has the name.
    """

    def __init__(self, name: object, where: str) -> None:
        super().__init__(name, where)
        self.name = name
        self.where = where

    def __str__(self) -> str:
        return (
            f"the name {shown(self.name)} is taken by an object that is not equal, {self.where}. Give this one another "
            "name; or store it under its name by itself, to replace the other one for all that refer to it."
        )


class RecursiveComputationError(PersistentDictError, RuntimeError):
    """Computing a value asked for that same value.

    Attributes
    ----------
    key_text : str
        The key.
    """

    def __init__(self, key_text: str) -> None:
        super().__init__(key_text)
        self.key_text = key_text

    def __str__(self) -> str:
        return (
            f"computing the value of {self.key_text} asks for that same value, and would wait for itself for ever. "
            "A recursive function must ask for other keys; does the key leave out an argument that changes?"
        )


class ContainerError(PersistentDictError):
    """A container cannot be used as it is: another format or identifier, an unknown layout.

    Attributes
    ----------
    path : str
        The container.
    reason : str
        What is wrong, and what helps.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UntrustedContainerError(ContainerError):
    """Somebody else could have written what would be unpickled here, and unpickling runs code.

    Attributes
    ----------
    command : str
        The shell command that mends the permissions, where one does.
    """

    def __init__(self, path: str, reason: str, command: str = "") -> None:
        super().__init__(path, reason)
        self.args = (path, reason, command)
        self.command = command

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.reason}.",
            "  Whoever can write there can run code in this process, since reading an entry may unpickle it.",
        ]
        if self.command:
            lines.append(f"  If the place is yours and its contents are, too:  {self.command}")
        lines += [
            "  If a group is meant to share the container: open it with mode=0o770.",
            "  If everybody who can write there is to be trusted: open it with trusted=True (commands: --trusted).",
        ]
        return "\n".join(lines)


class StaleStoreError(PersistentDictError):
    """Somebody else has changed the file of an `AtomicStore` since it was read. Nothing was written.

    Attributes
    ----------
    path : str
        The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path}: somebody else has changed it since it was read, and nothing was written. reload() reads it "
            "again; commit(overwrite=True) replaces it all the same; with open(..., lock=True) and a with block, "
            "others wait."
        )


class UnreadableStoreError(PersistentDictError, ValueError):
    """The file of an `AtomicStore` is there, but its format cannot make anything of it.

    Attributes
    ----------
    path : str
        The file.
    reason : str
        What the format says.
    backup : str
        Where the version before is kept, or "".
    """

    def __init__(self, path: str, reason: str, backup: str = "") -> None:
        super().__init__(path, reason, backup)
        self.path = path
        self.reason = reason
        self.backup = backup

    def __str__(self) -> str:
        path = shell_quoted(self.path)
        aside = shell_quoted(f"{self.path}.damaged-{os.urandom(4).hex()}")
        cures = [f"  to set it aside, and begin anew with the default:  mv {path} {aside}"]
        if self.backup:
            cures.insert(0, f"  to go back to what was kept as a backup:  cp {shell_quoted(self.backup)} {path}")
        return "\n".join([f"{self.path} cannot be read: {self.reason}", *cures])


class CollisionWarning(UserWarning):
    """Two unequal keys have one digest: most likely a key builder leaves out something that equality looks at."""


class NanKeyWarning(UserWarning):
    """A key contains a NaN, which equals nothing, not even itself."""


class CacheWriteWarning(UserWarning):
    """A dictionary's place cannot be written to; values are not kept."""


class CorruptEntryWarning(UserWarning):
    """A damaged entry was set aside, and its lookup was a miss."""


def python_command() -> str:
    """Return the command that starts this Python, for a shell."""
    from shutil import which

    is_found = os.path.basename(sys.executable or "") == "python" and which("python") == sys.executable
    return "python" if is_found or not sys.executable else shell_quoted(sys.executable)
