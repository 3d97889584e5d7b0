"""Accuracy and time of the exact solvers against the solvers the field uses."""

import argparse
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cvxpy as cp
import jax
import numpy as np
import torch
from gramians import Problem, Weights, error
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.optimize import least_squares, minimize
from torchjd import aggregation as tj

import samo_jax
from samo_jax.experiments.reports.machine import machine

OUTPUT = Path(__file__).parents[1] / "docs" / "solver_benchmark.md"
TASKS = [2, 3, 10, 40, 100, 300, 1000]
LONGEST_CALL = 30.0  # seconds
BUDGET = 2.0  # seconds for the repeated calls of one solver on one matrix
TURNS, CALLS = 7, 5  # the first call of a turn warms up
PAUSE = (
    0.1  # seconds, until the threads of the previous solver's libraries stop spinning
)
GROWTH = 3.5  # a call's time grows like K^GROWTH, to foresee the longest ones
CAGRAD_C = 0.5
COLUMNS = [
    "method",
    "float32 ms",
    "float32 error",
    "float64 ms",
    "float64 KKT",
    "peer",
    "peer ms",
    "peer error",
    "ratio",
]

INTRODUCTION = """\
Written by `python benchmarks/solvers.py` on {machine}

All solvers get the same Gramians of conflicting gradients with log-normal norms (three
of them up to K = 100, then one), in float64; samo_jax's default gets them rounded to
float32. Times are medians of calls in one process, the solvers taking turns, after
warm-up, including the transfer to and from the device; like its peers, JAX computes in
the calling thread (`jax_cpu_enable_async_dispatch` off). The error is that of the
direction, `||J'(w - w*)|| / ||J'w*||`, at worst; w* is samo_jax's float64 solution, and
"float64 KKT" the relative residual of the method's optimality conditions there,
evaluated in NumPy. Nash-MTL's directions are compared at one length. The ratio is the
peer's time to that of samo_jax in float32. "-": a call fails, or would take more than
30 seconds.
"""

Solve = Callable[[Problem], Weights]


def torchjd(weighting: torch.nn.Module) -> Solve:
    """A TorchJD weighting of the Gramian."""
    return lambda problem: weighting(torch.from_numpy(problem.gramian)).numpy()


def torchjd_nash(problem: Problem) -> Weights:
    """TorchJD's Nash-MTL without its clipping, which takes the gradients themselves."""
    aggregator = tj.NashMTL(len(problem.jacobian), max_norm=0)
    return aggregator.weighting(torch.from_numpy(problem.jacobian)).numpy()


def scipy_fairgrad(problem: Problem, alpha: float) -> Weights:
    """The published formulation, with SciPy's defaults."""
    gramian, num_tasks = problem.gramian, len(problem.gramian)
    return least_squares(
        lambda w: gramian @ w - w ** (-1 / alpha),
        np.full(num_tasks, 1 / num_tasks),
        bounds=(0, np.inf),
    ).x


def scipy_cagrad(problem: Problem) -> Weights:
    """The published formulation: SLSQP over the simplex, roots offset by 1e-8."""
    gramian, num_tasks = problem.gramian, len(problem.gramian)
    mean = np.full(num_tasks, 1 / num_tasks)
    radius = CAGRAD_C * np.sqrt(mean @ gramian @ mean + 1e-8)
    w = minimize(
        lambda w: w @ gramian @ mean + radius * np.sqrt(w @ gramian @ w + 1e-8),
        mean,
        bounds=[(0, 1)] * num_tasks,
        constraints={"type": "eq", "fun": lambda w: 1 - np.sum(w)},
    ).x
    return mean + radius / np.sqrt(w @ gramian @ w + 1e-8) * w


def clarabel_mgda(problem: Problem) -> Weights:
    """The min-norm point as a quadratic program."""
    w = cp.Variable(len(problem.gramian), nonneg=True)
    root = np.linalg.cholesky(problem.gramian).T
    program = cp.Problem(cp.Minimize(cp.sum_squares(root @ w)), [cp.sum(w) == 1])
    program.solve(cp.CLARABEL)
    return w.value


def fairgrad_residual(gramian: np.ndarray, w: Weights, alpha: float) -> float:
    """Relative residual of `(Gw)_i = w_i^(-1/alpha)`."""
    return np.max(np.abs((gramian @ w) * w ** (1 / alpha) - 1))


def mgda_residual(gramian: np.ndarray, w: Weights) -> float:
    """Relative duality gap."""
    rates = gramian @ w
    return 1 - np.min(rates) / (w @ rates)


def projection_residual(gramian: np.ndarray, w: Weights, u: np.ndarray) -> float:
    """Of `w >= u`, `Gw >= 0` and complementarity, for gradients of length one."""
    norms = np.sqrt(np.diagonal(gramian))
    slack, rates = (w - u) * norms, gramian @ w / norms
    return np.max(np.abs(np.minimum(slack, rates))) / np.sqrt(u @ gramian @ u)


def cagrad_residual(gramian: np.ndarray, w: Weights) -> float:
    """Only the worst tasks have v_i > 0, and J'v reaches the ball's surface."""
    v, rates = w - 1 / len(w), gramian @ w
    length = np.sqrt(v @ gramian @ v)
    gap = v @ (rates - np.min(rates)) / (length * np.sqrt(w @ rates))
    radius = CAGRAD_C * np.sqrt(np.mean(gramian))
    return max(gap, abs(length / radius - 1))


def upgrad_residual(gramian: np.ndarray, w: Weights) -> float:
    """The worst of the K projections, and their sum's distance to w."""
    preferences = np.eye(len(gramian)) / len(gramian)
    project = partial(samo_jax.dualproj_weights, gramian)
    rows = float64(partial(jax.lax.map, project), preferences)
    distance = error(gramian, w, np.sum(rows, axis=0))
    residuals = map(partial(projection_residual, gramian), rows, preferences)
    return max(distance, *residuals)


@dataclass
class Method:
    """One method: our solver, its optimality residual, and the peers."""

    ours: Callable
    residual: Callable[[np.ndarray, Weights], float]
    peers: dict[str, Solve]
    scale_free: bool = False


def fairgrad(alpha: float) -> Method:
    """FairGrad, whose peers are SciPy directly and through TorchJD."""
    return Method(
        partial(samo_jax.fairgrad_weights, alpha=alpha),
        partial(fairgrad_residual, alpha=alpha),
        {
            "SciPy": partial(scipy_fairgrad, alpha=alpha),
            "TorchJD": torchjd(tj.FairGradWeighting(alpha)),
        },
    )


METHODS = {
    "FairGrad(1)": fairgrad(1.0),
    "FairGrad(2)": fairgrad(2.0),
    "Nash-MTL": Method(
        samo_jax.nash_mtl_weights,
        partial(fairgrad_residual, alpha=1.0),
        {"TorchJD (ECOS)": torchjd_nash},
        scale_free=True,
    ),
    "MGDA": Method(
        samo_jax.mgda_weights,
        mgda_residual,
        {"TorchJD": torchjd(tj.MGDAWeighting()), "Clarabel": clarabel_mgda},
    ),
    "DualProj": Method(
        samo_jax.dualproj_weights,
        lambda g, w: projection_residual(g, w, np.full(len(g), 1 / len(g))),
        {"TorchJD (quadprog)": torchjd(tj.DualProjWeighting())},
    ),
    "UPGrad": Method(
        samo_jax.upgrad_weights,
        upgrad_residual,
        {"TorchJD (quadprog)": torchjd(tj.UPGradWeighting())},
    ),
    "CAGrad": Method(
        partial(samo_jax.cagrad_weights, c=CAGRAD_C),
        cagrad_residual,
        {
            "SciPy (SLSQP)": scipy_cagrad,
            "TorchJD (Clarabel)": torchjd(tj.CAGradWeighting(CAGRAD_C)),
        },
    ),
}


def float64(function: Callable, *args: np.ndarray) -> Weights:
    """Our solver in float64."""
    with jax.enable_x64(True):
        return np.asarray(function(*args))


def float32(function: Callable, gramian: np.ndarray) -> Weights:
    """Our solver as it is by default."""
    return np.asarray(function(gramian), np.float64)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the seconds are over (between two Python statements)."""

    def expire(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Record:
    """What was measured of one solver for one K."""

    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """Median time of a call."""
        return 1e3 * float(np.median(self.seconds)) if self.seconds else np.nan

    @property
    def worst(self) -> float:
        """Largest error."""
        return max(self.errors, default=np.nan)


def timed(solve: Solve, problem: Problem) -> tuple[float, Weights]:
    """Seconds and weights of one call."""
    start = time.perf_counter()
    weights = solve(problem)
    return time.perf_counter() - start, weights


class Runner:
    """Measures one method after the other, and remembers who has become too slow."""

    def __init__(self):
        """Nothing has been measured yet."""
        self.last: dict[tuple[str, str], tuple[int, float]] = {}

    def foreseen(self, name: str, solver: str, num_tasks: int) -> float:
        """Seconds that a call will take, judging by the last, smaller K."""
        tasks, seconds = self.last.get((name, solver), (num_tasks, 0.0))
        return seconds * (num_tasks / tasks) ** GROWTH

    def run(self, name: str, num_tasks: int, seeds: int) -> tuple[dict, float]:
        """Records by solver name, and the worst KKT residual in float64."""
        method = METHODS[name]
        solvers: dict[str, Solve] = {
            "float64": lambda p: float64(method.ours, p.gramian),
            "float32": lambda p: float32(method.ours, p.single),
            **method.peers,
        }
        solvers = {
            solver: solve
            for solver, solve in solvers.items()
            if self.foreseen(name, solver, num_tasks) <= LONGEST_CALL
        }
        records = {solver: Record() for solver in ("float64", "float32", *method.peers)}
        residual = np.nan
        for seed in range(seeds if "float64" in solvers else 0):
            problem = Problem(num_tasks, seed)
            weights = self.first_calls(name, solvers, records, problem)
            exact = weights["float64"]
            worst = method.residual(problem.gramian, exact)
            residual = np.nanmax([residual, worst])
            for solver, w in weights.items():
                distance = error(problem.gramian, w, exact, method.scale_free)
                records[solver].errors.append(distance)
            repeat({solver: solvers[solver] for solver in weights}, records, problem)
        for solver, record in records.items():
            if record.seconds:
                self.last[name, solver] = (num_tasks, np.median(record.seconds))
        return records, residual

    def first_calls(
        self, name: str, solvers: dict, records: dict, problem: Problem
    ) -> dict[str, Weights]:
        """Weights by solver, without those that fail or take too long."""
        weights = {}
        for solver, solve in list(solvers.items()):
            try:
                if solver.startswith("float"):
                    solve(problem)  # compiles
                with time_limit(LONGEST_CALL):
                    seconds, weights[solver] = timed(solve, problem)
            except (TimeoutError, ValueError, cp.error.SolverError):
                self.last[name, solver] = (1, np.inf)
                del solvers[solver]
                continue
            records[solver].seconds.append(seconds)
        return weights


def repeat(solvers: dict[str, Solve], records: dict, problem: Problem) -> None:
    """Solvers take turns of a few calls, each within its budget."""
    once = {solver: records[solver].seconds[-1] for solver in solvers}
    for turn in range(TURNS):
        for solver, solve in solvers.items():
            if (turn + 1) * CALLS * once[solver] <= BUDGET:
                time.sleep(PAUSE)
                calls = [timed(solve, problem)[0] for _ in range(CALLS)]
                records[solver].seconds += calls[1:]


def rows(name: str, records: dict[str, Record], residual: float) -> Iterator[list[str]]:
    """Table rows, one for each peer."""

    def cell(value: float, form: str) -> str:
        return "-" if np.isnan(value) else format(value, form)

    ours = records["float32"]
    for peer in METHODS[name].peers:
        theirs = records[peer]
        yield [
            name,
            cell(ours.milliseconds, ".3g"),
            cell(ours.worst, ".0e"),
            cell(records["float64"].milliseconds, ".3g"),
            cell(residual, ".0e"),
            peer,
            cell(theirs.milliseconds, ".3g"),
            cell(theirs.worst, ".0e"),
            cell(theirs.milliseconds / ours.milliseconds, ".3g"),
        ]


def markdown(tables: dict[int, list[list[str]]]) -> str:
    """The page with all tables so far."""
    lines = [
        "# Weighting benchmark",
        "",
        INTRODUCTION.format(
            machine=machine(
                "samo_jax", "jax", "numpy", "scipy", "torch", "torchjd", "cvxpy"
            )
        ),
    ]
    for num_tasks, table in tables.items():
        lines += [f"## K = {num_tasks}", "", " | ".join(COLUMNS)]
        lines += [" | ".join("---" for _ in COLUMNS)]
        lines += [" | ".join(row) for row in table] + [""]
    return "\n".join(lines)


def main() -> None:
    """Measure every method for every K."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS, metavar="K")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    torch.set_grad_enabled(False)
    console, runner, tables = Console(width=110), Runner(), {}
    arguments.output.parent.mkdir(exist_ok=True)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(arguments.tasks) * len(METHODS))
        for num_tasks in sorted(arguments.tasks):
            table = Table(*COLUMNS, title=f"K = {num_tasks}")
            tables[num_tasks] = []
            for name in METHODS:
                progress.update(bar, description=f"{name}, K = {num_tasks}")
                records, residual = runner.run(
                    name, num_tasks, seeds=3 if num_tasks <= 100 else 1
                )
                for row in rows(name, records, residual):
                    table.add_row(*row)
                    tables[num_tasks].append(row)
                arguments.output.write_text(markdown(tables))
                progress.advance(bar)
            console.print(table)


if __name__ == "__main__":
    main()
