"""What tells a function from others, and one state of its code from another."""

from __future__ import annotations

import os
import sys
from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def names_of(function: Any) -> tuple[str, str]:
    """Return the name that stands in the keys, and a shorter one for a dictionary of its own.

    A program's main module is called by what tells it from other programs: its name after ``python -m``, its file, the
    notebook, and in a shell the current directory.
    """
    module, qualname = function.__module__, function.__qualname__
    if module not in ("__main__", "__mp_main__"):  # the latter in processes that multiprocessing has spawned
        return f"{module}.{qualname}", f"{module}.{qualname}"
    known = getattr(function, "__globals__", None) or vars(sys.modules["__main__"])
    if known.get("__spec__") is not None:
        return f"{known['__spec__'].name}.{qualname}", f"{known['__spec__'].name}.{qualname}"
    file = next((known[name] for name in ("__file__", "__session__", "__vsc_ipynb_file__") if known.get(name)), "shell")
    return f"{os.path.abspath(file)}:{qualname}", f"{os.path.splitext(os.path.basename(file))[0]}.{qualname}"


def layers_of(function: Any) -> list[Any]:
    """Return a function and, where decorators have wrapped it, what is inside, as far as it is written in Python."""
    import inspect

    layers = [function]
    while hasattr(layers[-1], "__wrapped__"):
        layers.append(layers[-1].__wrapped__)
    return [layer for layer in layers if inspect.isfunction(layer)]


def source_of(function: Any) -> str:
    """Return the source text of a function written in Python, not of what it wraps; "" where there is none."""
    import inspect

    try:
        return inspect.getsource(function.__code__)
    except OSError:  # typed into a shell, compiled from a text
        return ""


def code_checksum(code: str | None, layers: list[Any], sources: list[str]) -> str:
    """Return a checksum of what `code` says of a function's layers: see `memoize`."""
    if code is None:
        return ""
    checksum = blake2b(digest_size=16)
    for layer, source in zip(layers, sources, strict=True):
        text = (_meaning(source) if code == "ast" else source) or _bytecode(layer.__code__)
        checksum.update(blake2b(text.encode("utf-8", "surrogatepass")).digest())
    return checksum.hexdigest()


def _meaning(source: str) -> str:
    """Return what a function's source means: its syntax tree, without docstring, and without the decorators from
    `memoize` outwards, which are not part of what is memoized. "" where it cannot be parsed."""
    import ast

    try:
        tree: Any = ast.parse(f"if 1:\n{source}" if source[:1].isspace() else source)
        node = tree.body[0].body[0] if source[:1].isspace() else tree.body[0]
        decorators = [ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list]
    except (SyntaxError, IndexError, AttributeError):
        return ""
    if "memoize" in decorators:
        node.decorator_list = node.decorator_list[decorators.index("memoize") + 1 :]
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:]
    return ast.dump(node)


def _bytecode(constant: Any) -> str:
    """Return a text for a code object or one of its constants, without line numbers and file names."""
    if isinstance(constant, frozenset):  # its order depends on the hash seed
        return f"frozenset({sorted(map(_bytecode, constant))})"
    if not hasattr(constant, "co_code"):
        return repr(constant)
    constants = [_bytecode(inner) for inner in constant.co_consts]
    return repr((constant.co_code, constants, constant.co_names, constant.co_varnames, constant.co_freevars))
