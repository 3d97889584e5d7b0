"""How accelerator.py times steps, the same in both frameworks."""

import time
from collections.abc import Callable
from typing import Any

STEPS = (3, 100)  # at least and at most


def times(
    step: Callable[[], Any], wait: Callable[[], Any], seconds: float
) -> dict[str, Any]:
    """Milliseconds of every step waited for, and of as many handed over at once.

    `dispatch_ms` is how long the host is busy with a step of the latter: as long as the
    step itself where it has to wait for the device.
    """

    def waited_for() -> float:
        start = time.perf_counter()
        step()
        wait()
        return time.perf_counter() - start

    waited_for()
    least, most = STEPS
    count = max(least, min(most, int(seconds / max(waited_for(), 1e-9))))
    found = [1e3 * waited_for() for _ in range(count)]
    start = time.perf_counter()
    for _ in range(count):
        step()
    dispatched = time.perf_counter()
    wait()
    end = time.perf_counter()
    return {
        "ms": [round(ms, 4) for ms in found],
        "async_ms": 1e3 * (end - start) / count,
        "dispatch_ms": 1e3 * (dispatched - start) / count,
    }
