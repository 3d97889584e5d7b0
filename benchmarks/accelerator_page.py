"""The page of accelerator.py, made from its lines."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]

INTRODUCTION = """\
# On an accelerator

Written by `{command}`{rehearsal}

{machine}

JAX and PyTorch each run in a process of their own and take turns on the card, in random
order. float32 products may use TensorFloat-32 in both, where no other precision is
named (samo_jax's Gramians and solvers ask for the highest). Times are medians of calls
that are waited for, with the fastest and the slowest in brackets. "Handed over" is the
time a step takes if the next ones are handed over without waiting, and "host" how much
of it the host is busy.
"""
GOLDEN = """\
One step recorded from the official implementation in float64, every stage of it again
on the device: clean pass, probes, perturbations, gradients, Gramian, weights,
directions. The worst quantity's error is relative to its array's size; within
tolerance: 2e-4 in float32 and 1e-9 in float64 (MGDA's weights and directions as far as
they are recorded).
"""
DIRECTIONS = """\
Directions recorded from TorchJD in float64 again, in float32 on the device. Its solvers
are less exact than these, hence the tolerances, which are those of the tests.
"""
SOLVERS = """\
{problems} Gramians of conflicting gradients with log-normal norms, in float32 on the
device. The error is that of the direction against the solution in float64 on the CPU,
at worst. A solve alone is one call; in a loop: of all of them in one program. To host:
copies of the device's data to the host that one call makes.
"""
CONTROL_FLOW = """\
What XLA makes of loops and branches: {rounds} rounds of an operation on 1024 numbers,
or of a solve with a matrix of 40 x 40, in a counted loop or in an open one, which ends
when its data say so. Where there are copies to the host in every round, the host waits
for each.
"""
STEPS = """\
SGD; "plain" is the mean loss, the others FairGrad with alpha 2. Where nothing else is
said, `unroll` is the default; a loop is `unroll=False`, chunks of 10 `unroll=10`. All
steps of a model compile at once, on the threads of one process.
"Representation" is `gramian_of="representation"`, "kept" is `weights_every=10`; "both"
has both. With kept weights the median step keeps them, and the longest one takes them.
PyTorch is eager, and takes the weights as published, by SciPy on the host; "of it
SciPy" is that time. Its K backward passes at one point run one by one or batched,
whichever is faster. Memory is what XLA needs for the step, parameters included, and the
most that PyTorch has allocated.
"""
HOST = """\
Three steps handed over at once, in JAX's profiler, a step: copies to and from the host,
calls of the driver that wait (one for all three steps is the last), operations (kernels
and copies), and the share of the time in which the device does something. Loops,
branches and callbacks are those of the compiled program for which a GPU might ask its
host: open loops end when their data say so.
"""


def page(rows: list[Row]) -> str:
    """Markdown of all that has been measured."""
    by_part: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if "error" not in row:
            by_part[row["part"]].append(row)
    command = by_part["command"][0] if by_part["command"] else {}
    text = INTRODUCTION.format(
        command=command.get("command", "python3 benchmarks/accelerator.py"),
        rehearsal=(
            ", a rehearsal at small sizes: its times mean nothing."
            if command.get("small")
            else "."
        ),
        machine=machine(by_part["environment"]),
    )
    sections = [
        golden(by_part["golden"]),
        directions(by_part["directions"]),
        solvers(by_part["solver"]),
        control_flow(by_part["control flow"]),
        steps(by_part),
        host(by_part),
        failures(rows),
        durations(by_part["part"]),
    ]
    return "\n".join([text, *filter(None, sections)])


def table(header: list[str], lines: Iterable[list[str]]) -> str:
    """In Markdown, the first column to the left."""
    all_lines = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in all_lines)


def number(value: float | None, form: str = ".3g") -> str:
    """Formatted, or a dash."""
    return "-" if value is None else format(value, form)


def machine(rows: list[Row]) -> str:
    """One sentence for each framework."""
    lines = []
    for row in rows:
        names = (name for name in row if name not in ("part", "framework", "took_s"))
        lines.append(
            f"{row['framework']}: "
            + ", ".join(f"{name} {row[name]}" for name in names)
            + "."
        )
    return "\n".join(f"- {line}" for line in lines)


def golden(rows: list[Row]) -> str:
    """Recorded steps."""
    header = ["step", "dtype", "products", "quantities", "missed", "worst", "error"]
    lines = []
    for row in rows:
        worst, error, _ = row["worst"][0]
        lines.append(
            [
                row["file"],
                row["dtype"],
                row["precision"] or "default",
                str(row["quantities"]),
                str(len(row["missed"])),
                worst,
                f"{error:.1e}",
            ]
        )
    return f"## Recorded steps\n\n{GOLDEN}\n{table(header, lines)}" if rows else ""


def directions(rows: list[Row]) -> str:
    """Recorded directions."""
    header = ["combiner", "cases", "missed", "error", "tolerance"]
    lines = [
        [
            row["name"],
            str(row["cases"]),
            str(len(row["missed"])),
            f"{row['direction_error']:.1e}",
            f"{row['tolerance']:.0e}",
        ]
        for row in rows
    ]
    title = "## Recorded directions"
    return f"{title}\n\n{DIRECTIONS}\n{table(header, lines)}" if rows else ""


def solvers(rows: list[Row]) -> str:
    """Errors and latencies."""
    header = ["solver", "K", "error", "converged %", "rounds", "alone ms"]
    header += ["in a loop ms", "handed over ms", "host ms", "to host", "compile s"]
    lines = [
        [
            row["name"],
            str(row["num_tasks"]),
            f"{row['direction_error']:.1e}",
            number(100 * row["converged"]),
            number(row["steps"]),
            spread(row["ms"]),
            number(row["in_loop_ms"]),
            number(row["async_ms"]),
            number(row["dispatch_ms"]),
            number(row["profile"].get("to_host")),
            number(row["compile_s"], ".1f"),
        ]
        for row in rows
    ]
    if not rows:
        return ""
    explanation = SOLVERS.format(problems=rows[0]["problems"])
    return f"## Solvers\n\n{explanation}\n{table(header, lines)}"


def control_flow(rows: list[Row]) -> str:
    """Loops and branches."""
    header = [
        "a round is",
        "us a round",
        "handed over us",
        "host us",
        "to host, a round",
    ]
    lines = [
        [
            row["kind"],
            "open" if row["is_open"] else "counted",
            number(1e3 * statistics.median(row["ms"]) / row["rounds"]),
            number(1e3 * row["async_ms"] / row["rounds"]),
            number(1e3 * row["dispatch_ms"] / row["rounds"]),
            number(
                None
                if "to_host" not in row["profile"]
                else row["profile"]["to_host"] / row["rounds"]
            ),
        ]
        for row in rows
    ]
    if not rows:
        return ""
    explanation = CONTROL_FLOW.format(rounds=rows[0]["rounds"])
    return f"## Loops and branches\n\n{explanation}\n{table(header, lines)}"


Step = tuple[str, str, Any]  # framework, method, unroll


def of_model(rows: list[Row], model: str) -> dict[Step, list[Row]]:
    """Rows of one model by step."""
    found: dict[Step, list[Row]] = defaultdict(list)
    for row in rows:
        if row["model"] == model:
            found[row["framework"], row["method"], row.get("unroll")].append(row)
    return found


def spread(ms: list[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(ms):.3g} ({min(ms):.3g} to {max(ms):.3g})"


def label(method: str, unroll: Any) -> str:
    """Of a method's row."""
    if unroll is None:
        return method
    return f"{method}, " + (f"chunks of {unroll}" if unroll else "loop")


def steps(parts: dict[str, list[Row]]) -> str:
    """Times and memory of all models."""
    header = ["method", "JAX ms", "/ plain", "PyTorch ms", "/ plain", "of it SciPy"]
    header += ["PyTorch / JAX", "compile s", "JAX GB", "PyTorch GB", "backward passes"]
    found = ""
    for model in dict.fromkeys(row["model"] for row in parts["timed"]):
        prepared = of_model(parts["prepared"], model)
        timed = of_model(parts["timed"], model)
        ms = {
            step: [value for row in of_step for value in row["ms"]]
            for step, of_step in timed.items()
        }
        median = {step: statistics.median(values) for step, values in ms.items()}
        lines = []
        for _, method, unroll in dict.fromkeys(
            step for step in prepared if step[0] == "jax"
        ):
            ours, theirs = ("jax", method, unroll), ("torch", method, None)
            lines.append(
                [
                    label(method, unroll),
                    *compared(ms, median, ours),
                    *compared(ms, median, theirs),
                    of_scipy(timed[theirs]),
                    ratio(median, theirs, ours),
                    number(prepared[ours][0]["compile_s"], ".1f"),
                    gigabytes(prepared[ours]),
                    gigabytes(prepared[theirs]),
                    ways(prepared[theirs]),
                ]
            )
        described = (
            row["description"]
            for of_step in prepared.values()
            for row in of_step
            if "description" in row
        )
        description = next(described, "PyTorch alone")
        found += f"### {model}\n\n{description}.\n\n{table(header, lines)}\n"
    return f"## Steps\n\n{STEPS}\n{found}" if found else ""


def compared(ms: dict, median: dict, step: Step) -> Iterator[str]:
    """Its time, and relative to the plain step."""
    yield spread(ms[step]) if step in ms else "-"
    yield ratio(median, step, plain_of(median, step[0]))


def plain_of(median: dict, framework: str) -> Step | None:
    """The plain step."""
    return next((s for s in median if s[:2] == (framework, "plain")), None)


def ratio(median: dict, step: Step, other: Step | None) -> str:
    """Of two medians, where both are there."""
    both = step in median and other in median
    return f"{median[step] / median[other]:.2f}" if both else "-"


def gigabytes(rows: list[Row]) -> str:
    """Of a prepared step."""
    found = rows[0].get("memory_bytes") if rows else None
    return "-" if found is None else f"{1e-9 * found:.2f}"


def of_scipy(rows: list[Row]) -> str:
    """Time of SciPy in a step."""
    found = [row["solver_ms"] for row in rows if row.get("solver_ms")]
    return number(statistics.median(found)) if found else "-"


def ways(rows: list[Row]) -> str:
    """How PyTorch takes K backward passes, with both times."""
    if not rows or "one_by_one_ms" not in rows[0]:
        return "-"
    one_by_one, batched = rows[0]["one_by_one_ms"], rows[0]["batched_ms"]
    if batched is None:
        return f"one by one {one_by_one:.3g} (batched fails)"
    if batched < one_by_one:
        return f"batched {batched:.3g} (one by one {one_by_one:.3g})"
    return f"one by one {one_by_one:.3g} (batched {batched:.3g})"


def host(parts: dict[str, list[Row]]) -> str:
    """Whether the host waits in a step."""
    header = ["step", "handed over ms", "host ms", "to host", "from host", "waits"]
    header += ["operations", "busy %", "longest pause us", "open loops", "branches"]
    header += ["callbacks"]
    found = ""
    for model in dict.fromkeys(row["model"] for row in parts["timed"]):
        prepared = of_model(parts["prepared"], model)
        timed = of_model(parts["timed"], model)
        profiled = of_model(parts["profiled"], model)
        lines = []
        for step, (row, *_) in prepared.items():
            if step[0] != "jax":
                continue
            profile = profiled[step][0] if profiled[step] else {}
            busy = profile.get("busy")
            lines.append(
                [
                    label(*step[1:]),
                    number(least(timed[step], "async_ms")),
                    number(least(timed[step], "dispatch_ms")),
                    number(profile.get("to_host")),
                    number(profile.get("from_host")),
                    number(profile.get("waits")),
                    number(profile.get("operations")),
                    number(None if busy is None else 100 * busy),
                    number(profile.get("longest_pause_us")),
                    *(
                        str(len(row["program"][kind]))
                        for kind in ("loops", "branches", "callbacks")
                    ),
                ]
            )
        found += f"### {model}, host\n\n{table(header, lines)}\n{causes(prepared)}\n"
    return f"## What the host does\n\n{HOST}\n{found}" if found else ""


def least(rows: list[Row], name: str) -> float | None:
    """The smallest of a quantity."""
    return min((row[name] for row in rows), default=None)


def causes(prepared: dict[Step, list[Row]]) -> str:
    """Names of the operations for which the host may be asked."""
    names = {
        name
        for step, (row, *_) in prepared.items()
        if step[0] == "jax"
        for found in row["program"].values()
        for name in found
    }
    if not names:
        return ""
    return (
        "Named in the programs: " + ", ".join(f"`{n}`" for n in sorted(names)) + ".\n"
    )


def failures(rows: list[Row]) -> str:
    """What is missing, and why."""
    missing: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if "error" in row:
            hidden = {"part", "error", "trace", "took_s", "small", "seconds"}
            told = (str(row[n]) for n in row if n not in hidden and row[n] is not None)
            error = row["error"].splitlines()[0]
            missing[row["part"], error].append(" ".join(told))
    lines = [
        f"- {part}: {'; '.join(names)}: {error}."
        for (part, error), names in missing.items()
    ]
    return "## Left out\n\n" + "\n".join(lines) + "\n" if lines else ""


def durations(rows: list[Row]) -> str:
    """Seconds of each part."""
    told = ", ".join(f"{row['title']} {row['took_s']:.0f} s" for row in rows)
    return f"The parts took: {told}.\n" if rows else ""
