"""What makes the host wait inside a compiled program: in its text, and in a profile."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_OPERATION = re.compile(r"= .*? (while|conditional|custom-call|infeed|outfeed)\(")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_DRIVER = re.compile(r"cu(da)?[A-Z]")  # calls of CUDA
_NAME = re.compile(r'op_name="([^"]*)"')


def in_program(text: str) -> dict[str, list[str]]:
    """Operations of an optimised HLO program for which a GPU may need its host.

    Loops of a known number of rounds need none; those that end when their data say so,
    branches and callbacks may.
    """
    found: dict[str, list[str]] = {"loops": [], "branches": [], "callbacks": []}
    for line in text.splitlines():
        operation = _OPERATION.search(line)
        if operation is None:
            continue
        kind = operation[1]
        name = _NAME.search(line)
        name = name[1] if name else "?"
        if kind == "while" and "known_trip_count" not in line:
            found["loops"].append(name)
        elif kind == "conditional":
            found["branches"].append(name)
        elif kind in ("infeed", "outfeed"):
            found["callbacks"].append(name)
        elif kind == "custom-call":
            target = _TARGET.search(line)
            if target and "callback" in target[1]:
                found["callbacks"].append(name)
    return found


def in_profile(call: Callable[[], Any], calls: int) -> dict[str, Any]:
    """What device and driver do in some calls, handed over at once."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(calls):
                result = call()
            jax.block_until_ready(result)
        (file,) = Path(folder).glob("**/*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        events = [
            (event.name, event.start_ns, event.duration_ns)
            for plane in planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
        driver = Counter(
            event.name
            for plane in planes
            if plane.name.startswith("/host")
            for line in plane.lines
            for event in line.events
            if _DRIVER.match(event.name)
        )
        names = [(plane.name, [line.name for line in plane.lines]) for plane in planes]
    found = {name: count / calls for name, count in driver.most_common(20)}
    if not events:
        return {"calls": calls, "driver": found, "no_streams_in": str(names)[:500]}
    waits = sum(found[name] for name in found if "Synchronize" in name)
    return {**summary(events, calls), "driver": found, "waits": waits}


def summary(events: list[tuple[str, float, float]], calls: int) -> dict[str, Any]:
    """Copies, kernels and pauses of (name, start, duration) in nanoseconds, a call."""
    copies = Counter(name for name, *_ in events if name.startswith("Memcpy"))
    kernels: Counter[str] = Counter()
    for name, _, duration in events:
        if not name.startswith("Mem"):
            kernels[name] += duration
    busy, end, pauses = 0.0, None, []
    for _, start, duration in sorted(events, key=lambda event: event[1]):
        if end is not None and start > end:
            pauses.append(start - end)
        begin = start if end is None else max(start, end)
        busy += max(start + duration - begin, 0)
        end = max(start + duration, begin)
    span = busy + sum(pauses)
    return {
        "calls": calls,
        "to_host": copies["MemcpyD2H"] / calls,
        "from_host": copies["MemcpyH2D"] / calls,
        "operations": len(events) / calls,
        "span_ms": 1e-6 * span / calls,
        "busy": busy / span,
        "longest_pause_us": 1e-3 * max(pauses, default=0),
        "copies": dict(copies),
        "longest": [
            [name[:60], 1e-6 * ns / calls] for name, ns in kernels.most_common(5)
        ],
    }
