"""Seconds of functions that are compared with each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Timed = Callable[[], object]


def median_seconds(
    functions: Mapping[str, Timed], repeats: int, warm_up: bool = True
) -> dict[str, float]:
    """Return the median seconds of each function, run in turns: up and down the list.

    A machine that grows slower or faster meanwhile favours none that way. One round more warms up.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(0 if warm_up else 1, repeats + 1):
        order = list(functions.items())
        for name, function in order if repeat % 2 else reversed(order):
            start = time.perf_counter()
            function()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(record) for name, record in times.items()}
