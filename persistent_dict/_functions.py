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
    """Return a function's source text, "" where there is none."""
    import inspect

    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):  # typed into a shell, compiled from a text, written in C
        return ""


def code_checksum(code: str | None, source: str, function: Any) -> str:
    """Return a checksum of what `code` says of a function: see `memoize`."""
    if code is None:
        return ""
    text = (_meaning(source) if code == "ast" else source) or _bytecode(function)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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


def _bytecode(function: Any) -> str:
    """Return a text for a function's bytecode and that of the functions in it, without line numbers and file names;
    "" for a function that has none. A frozenset's order depends on the hash seed."""
    import inspect

    def text(constant: Any) -> str:
        if isinstance(constant, frozenset):
            return f"frozenset({sorted(map(text, constant))})"
        if not inspect.iscode(constant):
            return repr(constant)
        constants = [text(inner) for inner in constant.co_consts]
        return repr((constant.co_code, constants, constant.co_names, constant.co_varnames, constant.co_freevars))

    inner = inspect.unwrap(function)
    return text(inner.__code__) if inspect.isfunction(inner) else ""
