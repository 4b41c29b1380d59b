"""Runs loopy or pyopencl with this package in the place of pytools', and prints what its caches did as JSON."""

from __future__ import annotations

import json
import pickle
import sys
import warnings

import pytools

import persistent_dict

pytools.persistent_dict = sys.modules["pytools.persistent_dict"] = persistent_dict
made = []


class Noted(persistent_dict.WriteOncePersistentDict):
    """Notes every dictionary, so that its counts can be told."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        made.append(self)


persistent_dict.WriteOncePersistentDict = Noted


def loopy() -> object:
    import loopy as lp
    import numpy as np

    kernel = lp.make_kernel(
        "{[i]: 0 <= i < n}", "out[i] = 2 * a[i] + b[i]", target=lp.CTarget(), name="axpy", lang_version=(2018, 2)
    )
    kernel = lp.add_and_infer_dtypes(kernel, {"a": np.float64, "b": np.float64})
    code = lp.generate_code_v2(kernel).device_code()
    again = pickle.loads(pickle.dumps(kernel))
    builder = lp.tools.LoopyKeyBuilder()
    assert builder(again) == builder(kernel)
    assert lp.generate_code_v2(again).device_code() == code
    return code


def pyopencl() -> object:
    """Generate the code that calls kernels, which pyopencl caches, and its keys; no device is needed for that."""
    import numpy as np
    from pyopencl.invoker import generate_enqueue_and_set_args
    from pyopencl.tools import VectorArg, _NumpyTypesKeyBuilder

    builder = _NumpyTypesKeyBuilder()
    keys = [
        np.float32,
        np.dtype("f4"),
        VectorArg(np.float32, "a"),
        VectorArg(np.float64, "a"),
        VectorArg(np.float32, "b"),
    ]
    digests = [builder(key) for key in keys]
    assert len(set(digests)) == len(digests)
    made_functions = []
    for types in [(None, np.int32), (np.float64, np.complex64), None]:
        enqueue, set_args = generate_enqueue_and_set_args("axpy", 2, 2, types, False, False, [])
        made_functions += [enqueue.__name__, set_args.__name__]
    return [digests, made_functions]


warnings.simplefilter("ignore")
result = {"loopy": loopy, "pyopencl": pyopencl}[sys.argv[1]]()
counts = {d.identifier: [d.cache_info().disk_hits + d.cache_info().memory_hits, d.cache_info().stores] for d in made}
print(json.dumps({"result": result, "counts": counts}))
