"""The directory of one dictionary: making it, and checking it before anything in it is read.

    <container_dir>/<identifier>.cpython-311/
        CACHEDIR.TAG  .gitignore  FORMAT      FORMAT: layout, format of the values, identifier
        entries/      tmp/                    loose entries, and where they and packs are staged
        packs/  locks/  quarantine/           made when first needed

Nothing is made before the first write. A container is built beside its place and renamed there, so that it is whole or
absent. Before anything is read, its owner and mode are checked, and those of the directories above.
"""

from __future__ import annotations

import os
from errno import EACCES, EISDIR, ENOENT
from hashlib import blake2b
from stat import S_ISDIR, S_ISLNK
from sys import implementation

from persistent_dict import _fs
from persistent_dict.errors import ContainerError, UntrustedContainerError, shell_quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from persistent_dict.formats import Format

_LAYOUT = "1"
_MAX_NAME = 64  # characters of a container's name that come from the identifier
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"  # https://bford.info/cachedir/
    "# This directory is a cache of persistent_dict. Backups may leave it out.\n"
)


class Container:
    """One container, whether it is there or not.

    `format_name` and `identifier` are what it must have been made with; None: whatever it was.
    """

    def __init__(self, path: str, format_name: str | None, identifier: str | None, trusted: bool, mode: int) -> None:
        self.path = path
        self._format_name = format_name
        self._identifier = identifier
        self._trusted = trusted
        self._mode = mode
        self.is_open = False

    def open(self) -> bool:
        """Check the container, once. False: there is none yet."""
        if self.is_open:
            return True
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            if os.path.lexists(self.path):
                raise ContainerError(self.path, "a file stands where the container belongs") from None
            return False  # a file stands further up
        if not names:
            return False
        reason, command = ("", "") if self._trusted else _fs.distrust(self.path, self._mode)
        for name in ("tmp", "entries", "packs"):
            reason, command = (reason, command) if reason else self._distrust(f"{self.path}/{name}")
        if reason:
            raise UntrustedContainerError(self.path, reason, command)
        self._check_format()
        self.is_open = True
        return True

    def _distrust(self, path: str) -> tuple[str, str]:
        """Say why a directory in the container may be somebody else's, and what mends that."""
        name = os.path.basename(path)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return "", ""
        if S_ISLNK(status.st_mode):
            return f"{name} in it is a link", f"rm {shell_quoted(path)}"
        if not S_ISDIR(status.st_mode):
            problem = f"something else stands where its directory {name} belongs; remove it:  rm {shell_quoted(path)}"
            raise ContainerError(self.path, problem)
        if status.st_mode & 0o022 & ~self._mode and not self._trusted:
            return f"others may write to {name} in it", f"chmod -R go-w {shell_quoted(self.path)}"
        return "", ""

    def _check_format(self) -> None:
        known = self.facts()
        if "layout" not in known:
            raise ContainerError(self.path, f"its file FORMAT is damaged. {self._way_out()}")
        if known["layout"] != _LAYOUT:
            raise ContainerError(
                self.path,
                f"it has the layout {known['layout']}, and this version of persistent_dict knows "
                f"{_LAYOUT}: upgrade the package, or start anew with  rm -rf {shell_quoted(self.path)}",
            )
        for what, wanted in (("format", self._format_name), ("identifier", self._identifier)):
            if wanted is not None and known.get(what) != quoted(wanted):
                raise ContainerError(
                    self.path,
                    f"it was made with the {what} {known.get(what)!r}, and is opened with {quoted(wanted)!r}: open it "
                    f"as it was made, or start anew with  rm -rf {shell_quoted(self.path)}",
                )

    def about(self) -> str:
        """Return the text of the file FORMAT."""
        try:
            fd = _fs.open_file(f"{self.path}/FORMAT")
            try:
                return os.read(fd, 4096).decode("utf-8", "replace")
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in {ENOENT, EISDIR, EACCES, *_fs.FOREIGN}:
                raise
            raise ContainerError(self.path, f"its file FORMAT cannot be read. {self._way_out()}") from None

    def _way_out(self) -> str:
        if not os.path.isdir(f"{self.path}/entries"):
            return "This is no container of persistent_dict."
        if self._format_name is None:
            return "Open its dictionary in Python, as its program does: the error then has the command that mends it."
        text = self._new_format().replace("\n", "\\n")
        return (
            "If it is the container of this dictionary, write the file anew:  "
            f"printf {shell_quoted(text)} > {shell_quoted(self.path + '/FORMAT')}"
        )

    def facts(self) -> dict[str, str]:
        """Return what the file FORMAT says: `layout`, `format`, `identifier`, and `python` where that counts."""
        return parsed(self.about())

    def create(self) -> None:
        """Make the container, or what is missing in it."""
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        self.is_open = False
        if self.open():
            for name in ("tmp", "entries"):
                _fs.make_directory(f"{self.path}/{name}", self._mode)
            return
        parent, name = os.path.split(self.path)
        stage, published = f"{parent}/.{name}.{os.urandom(8).hex()}", False
        try:
            _fs.make_directory(stage, self._mode)
            for directory in ("tmp", "entries"):
                _fs.make_directory(f"{stage}/{directory}", self._mode)
            for file, text in (("FORMAT", self._new_format()), ("CACHEDIR.TAG", _TAG), (".gitignore", "*\n")):
                _fs.write_file(f"{stage}/{file}", [text.encode()], self._mode, "consistent")
            _fs.sync_directory(stage)
            published = _fs.publish_directory(stage, self.path)
        finally:
            if not published:
                _fs.remove_tree(stage)
        self.open()

    def _new_format(self) -> str:
        format_name, identifier = quoted(self._format_name or ""), quoted(self._identifier or "")
        tag = implementation.cache_tag if self.path.endswith(f".{implementation.cache_tag}") else ""
        return f"layout: {_LAYOUT}\nformat: {format_name}\nidentifier: {identifier}\npython: {tag}\n"


def parsed(about: str) -> dict[str, str]:
    """Return what the text of a file FORMAT says."""
    return dict(line.split(": ", 1) for line in about.splitlines() if ": " in line)


def container_path(container_dir: str, identifier: str, format: Format) -> str:  # noqa: A002  # the public name
    """Return where the container of a dictionary is.

    Its name carries the Python version where the format's bytes may not survive another.
    """
    return os.path.join(container_dir, container_name(identifier, "" if format.portable else implementation.cache_tag))


def container_name(identifier: str, python: str) -> str:
    """Return the name of a container's directory; `python`: the tag of the Python that its format needs, or ""."""
    if not isinstance(identifier, str) or not identifier:
        raise ValueError(f"an identifier is a str of at least one character, not {identifier!r}")
    name = quoted(identifier)
    if len(name) > _MAX_NAME:
        mark = blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        name = f"{name[: _MAX_NAME - 17]}-{mark}"
    return f"{name}.{quoted(python)}" if python else name


def quoted(text: str) -> str:
    """Return `text` as a safe file name: ASCII letters, digits, ``_``, ``-``, inner dots; the rest as %XX."""
    out = []
    for i, character in enumerate(text):
        if (character.isascii() and character.isalnum()) or character in "_-" or (character == "." and i):
            out.append(character)
        else:
            out += [f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass")]
    return "".join(out)
