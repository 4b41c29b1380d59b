"""What tells a function from others, and one state of its code from another."""

from __future__ import annotations

import os
import sys
from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_NESTED = 0x10  # inspect.CO_NESTED: where a function stands, not what it does


def names_of(function: Any) -> tuple[str, str]:
    """Return the name that stands in the keys, and a shorter one for a dictionary of its own.

    A program's main module is called by what tells it from other programs: its name after ``python -m``, its file, the
    notebook, and in a shell the current directory.
    """
    module, qualname = function.__module__, function.__qualname__
    if module not in ("__main__", "__mp_main__"):  # the latter in processes that multiprocessing has spawned
        return f"{module}.{qualname}", f"{module}.{qualname}"
    import inspect

    known = getattr(inspect.unwrap(function), "__globals__", None) or vars(sys.modules["__main__"])
    spec = getattr(known.get("__spec__"), "name", "__main__")
    if spec != "__main__":  # which it is for a directory or an archive that is run
        return f"{spec}.{qualname}", f"{spec}.{qualname}"
    file = next((known[name] for name in ("__file__", "__session__", "__vsc_ipynb_file__") if known.get(name)), "shell")
    return f"{os.path.abspath(file)}:{qualname}", f"{os.path.splitext(os.path.basename(file))[0]}.{qualname}"


def layers_of(function: Any) -> list[Any]:
    """Return a function and, where decorators have wrapped it, what is inside."""
    layers = [function]
    while hasattr(layers[-1], "__wrapped__"):
        layers.append(layers[-1].__wrapped__)
    return layers


def source_of(function: Any) -> str:
    """Return the source text of a function written in Python, not of what it wraps; "" where there is none."""
    import inspect

    try:
        return inspect.getsource(function.__code__)
    except Exception:  # typed into a shell, compiled from a text; or what stands in the file now cannot be read
        return ""


def code_checksum(code: str | None, functions: list[Any], sources: list[str]) -> str:
    """Return a checksum of what `code` says of functions written in Python: see `memoize`."""
    if code is None:
        return ""
    checksum = blake2b(digest_size=16)
    for function, source in zip(functions, sources, strict=True):
        text = _text(code, function.__code__, source) or bytecode(function.__code__)
        checksum.update(blake2b(text.encode("utf-8", "surrogatepass")).digest())
    return checksum.hexdigest()


def _text(code: str, compiled: Any, source: str) -> str:
    """Return what counts of a source, "" where it is not what runs, or cannot be understood."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler has told its own before
            tree = _parsed(source)
            if tree is None or not _is_compiled_from(compiled, tree):
                return ""
            return source if code == "source" else _meaning(tree)
    except RecursionError:  # a tree of some hundred levels, such as a long elif chain
        return ""


def _parsed(source: str) -> Any:
    """Return the syntax tree of a function's source, None where it has none."""
    import ast

    is_indented = source[:1].isspace()
    try:
        tree: Any = ast.parse(f"if 1:\n{source}" if is_indented else source)
        node = tree.body[0].body[0] if is_indented else tree.body[0]
    except (SyntaxError, IndexError):
        return None
    return node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def _is_compiled_from(code: Any, node: Any) -> bool:
    """Whether this is the source of what runs: the file may have been edited since it was imported."""
    import __future__

    import ast

    bare = ast.parse(f"def around():\n {' = '.join([*code.co_freevars, '_'])} = None\n pass")
    decorators, node.decorator_list = node.decorator_list, []
    try:
        around: Any = bare.body[0]
        if code.co_freevars:
            around.body[-1] = node
        else:
            bare.body[0] = node
        compiled = compile(
            ast.fix_missing_locations(bare), "", "exec", code.co_flags & __future__.annotations.compiler_flag, True
        )
    except (SyntaxError, ValueError):
        return False
    finally:
        node.decorator_list = decorators
    return bytecode(code) in [bytecode(inner) for inner in _functions_in(compiled) if inner.co_name == code.co_name]


def _functions_in(code: Any) -> list[Any]:
    """Return the code objects of a module's functions, and of those that they define."""
    found = [constant for constant in code.co_consts if hasattr(constant, "co_code")]
    return found + [inner for outer in found for inner in outer.co_consts if hasattr(inner, "co_code")]


def _meaning(node: Any) -> str:
    """Return what a function's syntax tree means: without docstring, and without the decorators from `memoize`
    outwards, which are not part of what is memoized."""
    import ast

    names = [ast.unparse(decorator).partition("(")[0].rpartition(".")[2] for decorator in node.decorator_list]
    if "memoize" in names:
        node.decorator_list = node.decorator_list[names.index("memoize") + 1 :]
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:]
    return ast.dump(node)


def bytecode(constant: Any) -> str:
    """Return a text for a code object or one of its constants, without line numbers and file names."""
    if isinstance(constant, frozenset):  # its order depends on the hash seed
        return f"frozenset({sorted(map(bytecode, constant))})"
    if not hasattr(constant, "co_code"):
        return repr(constant)
    names = ("argcount", "posonlyargcount", "kwonlyargcount", "names", "varnames", "freevars", "cellvars", "code")
    parts = [getattr(constant, f"co_{name}") for name in names]
    parts.append(constant.co_flags & ~_NESTED)
    parts.append(getattr(constant, "co_exceptiontable", b""))  # since Python 3.11
    return repr((parts, [bytecode(inner) for inner in constant.co_consts]))
