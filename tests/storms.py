"""Many processes at once, for a while."""

from __future__ import annotations

import multiprocessing
import os
import traceback

SECONDS = float(os.environ.get("PERSISTENT_DICT_STORM_SECONDS", "10"))

context = multiprocessing.get_context("spawn")


def run_all(directory, work):
    """Run functions in a process each until the time is over or one of them fails, and check that none has.

    `work` has the functions and what they are given beside the directory, an event that says that the time is over, and
    a queue, into which each puts how often it has done what it does.
    """
    stop, told = context.Event(), context.Queue()
    processes = [context.Process(target=run, args=(function, directory, stop, told, *rest)) for function, *rest in work]
    for process in processes:
        process.start()
    stop.wait(SECONDS)
    stop.set()
    ends = [told.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert [end for end in ends if isinstance(end, str)] == []
    assert all(ends)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def run(function, directory, stop, told, *rest):
    try:
        function(directory, stop, told, *rest)
    except BaseException:
        stop.set()
        told.put(traceback.format_exc())
