"""How NumPy's, pandas' and polars' things are taken apart for a digest. They are never imported here: a key that is one
of them has brought its library along."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_TWIN_TYPES = frozenset(["int64", "float64", "complex128", "bool", "bool_", "str_", "bytes_"])


def python_twin(scalar: Any) -> object:
    """Return the Python object that a NumPy scalar stands for without loss of its type's meaning, or None."""
    return scalar.item() if type(scalar).__name__ in _TWIN_TYPES or _is_int64(scalar) else None


def _is_int64(scalar: Any) -> bool:  # also as longlong, which may be a type of its own
    return bool(scalar.dtype.kind == "i" and scalar.dtype.itemsize == 8)


def scalar_parts(scalar: Any) -> tuple[object, ...]:
    """Return a keyable tuple that tells a NumPy scalar from every other."""
    dtype = scalar.dtype
    if dtype.names:
        return (dtype_parts(dtype), *(scalar[name] for name in dtype.names))
    if dtype.kind in "fc" and scalar != scalar:  # noqa: PLR0124  # a NaN, whatever its bits
        return (dtype_parts(dtype), "nan", str(scalar))
    if dtype.kind in "fc" and dtype.itemsize > 8 * (1 + (dtype.kind == "c")):  # long doubles have padding bytes
        return (dtype_parts(dtype), str(scalar))
    return (dtype_parts(dtype), _little_endian(scalar.reshape(())).tobytes())


def dtype_parts(dtype: Any) -> tuple[object, ...]:
    """Return a keyable tuple that tells a NumPy dtype from every other."""
    if dtype.names:
        fields = tuple((name, dtype_parts(dtype.fields[name][0]), *dtype.fields[name][1:]) for name in dtype.names)
        return ("fields", dtype.itemsize, dtype.isalignedstruct, fields)
    if dtype.subdtype:
        return ("array", dtype_parts(dtype.subdtype[0]), dtype.subdtype[1])
    return (dtype.str if dtype.kind != "T" else repr(dtype),)


def update_for_array(builder: Any, key_hash: Any, array: Any) -> None:
    """Write dtype, shape and values in C order; the buffer is fed as it stands where it lies so in memory."""
    dtype = array.dtype
    builder.rec(key_hash, (dtype_parts(dtype), array.shape))
    if dtype.names:  # field by field: the bytes between fields are anybody's
        builder.rec_items(key_hash, (_plain(array[name]) for name in dtype.names), lambda i: f"[{dtype.names[i]!r}]")
    elif dtype.hasobject or dtype.kind == "T" or (dtype.kind in "fc" and dtype.itemsize > 16):
        builder.rec_items(key_hash, array.ravel().tolist(), ".flat[{}]".format)
    elif array.size:
        import numpy

        values = numpy.ascontiguousarray(array)
        key_hash.update(values.view(numpy.uint8).reshape(-1).data if values.ndim else values.tobytes())


def _plain(array: Any) -> Any:
    import numpy

    return numpy.asarray(array)


def _little_endian(array: Any) -> Any:
    return array.astype(array.dtype.newbyteorder("<"))


def frame_parts(frame: Any) -> Iterator[object]:
    """Yield what makes up a pandas or polars frame, series or index, as keyable parts."""
    library = type(frame).__module__.partition(".")[0]
    return _polars_parts(frame) if library == "polars" else _pandas_parts(frame)


def _polars_parts(frame: Any) -> Iterator[object]:
    columns = frame.get_columns() if hasattr(frame, "get_columns") else [frame]
    yield [(column.name, str(column.dtype), len(column)) for column in columns]
    for column in columns:
        # Floats and integers without gaps go as arrays, the rest as Python objects.
        as_array = column.dtype.is_numeric() and not column.dtype.is_decimal() and not column.null_count()
        yield column.to_numpy() if as_array else column.to_list()


def _pandas_parts(frame: Any) -> Iterator[object]:
    pandas = sys.modules["pandas"]
    if isinstance(frame, pandas.DataFrame):
        yield from _pandas_parts(frame.columns)
        yield from _pandas_parts(frame.index)
        for position in range(frame.shape[1]):
            yield from _column_parts(frame.iloc[:, position])
    elif isinstance(frame, pandas.MultiIndex):
        yield list(frame.names)
        for level in range(frame.nlevels):
            yield from _column_parts(frame.get_level_values(level))
    elif isinstance(frame, pandas.Series):
        yield frame.name
        yield from _pandas_parts(frame.index)
        yield from _column_parts(frame)
    else:
        yield list(frame.names)
        yield from _column_parts(frame)


def _column_parts(column: Any) -> Iterator[object]:
    """Yield dtype, gaps and values of one pandas column or index."""
    import numpy

    dtype = column.dtype
    yield str(dtype)
    if isinstance(dtype, numpy.dtype) and not dtype.hasobject:
        yield column.to_numpy()
    elif str(dtype) == "category":
        values = column.cat if hasattr(column, "cat") else column
        yield bool(values.ordered)
        yield from _column_parts(values.categories)
        yield numpy.asarray(values.codes)
    elif dtype.kind == "M":  # with a time zone, which the dtype names
        yield numpy.asarray(column.astype("int64"))
    else:
        gaps = column.isna()
        yield numpy.asarray(gaps, dtype=bool)
        # A gap is None, NaN, NA or NaT: its kind is told apart from the others by its type's name.
        yield [
            ("gap", type(value).__name__) if gap else value
            for gap, value in zip(numpy.asarray(gaps), column.to_numpy(dtype=object), strict=True)
        ]
