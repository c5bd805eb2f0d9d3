"""Timing that a busy machine cannot easily spoil: pairs run in turn, medians and ranges."""

import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["Spread", "cpu_seconds", "paired_ratio", "spread", "wall_seconds"]

Spread = dict[str, float]


def spread(values: Sequence[float]) -> Spread:
    """Return the median, lowest and highest of `values`."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def cpu_seconds(action: Callable[[], object]) -> float:
    """Return the CPU seconds `action` takes: time spent waiting for a core is not its cost."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def wall_seconds(action: Callable[[], object]) -> float:
    """Return the wall seconds `action` takes, its waits for the disk included."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def paired_ratio(
    above: Callable[[], object],
    below: Callable[[], object],
    repeats: int,
    *,
    seconds: Callable[[Callable[[], object]], float] = cpu_seconds,
) -> Spread:
    """Return time of `above` over time of `below`, each pair run back to back.

    A slow spell of the machine then falls on both sides of a ratio. Both run once before, untimed.
    """
    above()
    below()
    ratios = []
    for _ in range(repeats):
        numerator = seconds(above)
        ratios.append(numerator / seconds(below))
    return spread(ratios)
