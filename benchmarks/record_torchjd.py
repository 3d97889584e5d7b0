"""Record TorchJD's deterministic aggregators in `tests/golden/torchjd.npz`."""

import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torchjd import aggregation as tj
from torchjd.linalg import QuadprogProjector

OUTPUT = Path(__file__).parents[1] / "tests" / "golden" / "torchjd.npz"
SHAPES = [(2, 8), (10, 11), (10, 16), (10, 40)]


def matrices() -> dict[str, np.ndarray]:
    """The Jacobians by name, all of full row rank."""
    rng = np.random.default_rng(2)
    cases = {"base": np.array([[-4.0, 1, 1], [6, 1, 1]])}
    cases |= {f"normal-{k}x{n}": rng.normal(size=(k, n)) for k, n in SHAPES}
    for condition in (30.0, 1e3):
        left, _, right = np.linalg.svd(rng.normal(size=(10, 16)), full_matrices=False)
        values = np.geomspace(1, 1 / condition, 10)
        cases[f"condition-{condition:g}"] = left * values @ right
    for spread in (10.0, 100.0):
        norms = np.geomspace(1, spread, 10)[:, None]
        cases[f"spread-{spread:g}"] = norms * rng.normal(size=(10, 16))
    for scale in (1e-3, 1e3):
        cases[f"scale-{scale:g}"] = scale * rng.normal(size=(10, 16))
    return cases


def aggregators(k: int) -> dict[str, tj.Aggregator]:
    """Aggregators of K rows by name; "tight": without ridge, or with more steps."""
    exact = QuadprogProjector(norm_eps=0, reg_eps=0)
    methods = {
        "mean": tj.Mean(),
        "total": tj.Sum(),
        "constant": tj.Constant(torch.arange(1.0, k + 1, dtype=torch.float64)),
        "upgrad": tj.UPGrad(),
        "upgrad-tight": tj.UPGrad(projector=exact),
        "dualproj": tj.DualProj(),
        "dualproj-tight": tj.DualProj(projector=exact),
        "mgda": tj.MGDA(),
        "mgda-tight": tj.MGDA(epsilon=1e-12, max_iters=20_000),
        "cagrad-0.5": tj.CAGrad(0.5, norm_eps=0),
        "cagrad-1": tj.CAGrad(1.0, norm_eps=0),
        "nash_mtl": tj.NashMTL(k),
        "fairgrad-1": tj.FairGrad(1.0),
        "fairgrad-2": tj.FairGrad(2.0),
        "imtl_g": tj.IMTLG(),
        "conflict_free_inverse": tj.ConFIG(),
        "pcd": tj.PCD(),
    }
    for mode in ("min", "median", "rmse"):
        methods[f"aligned_mtl-{mode}"] = tj.AlignedMTL(scale_mode=mode)
    if k >= 3:
        # One neighbour counts: squared distances, as samo_jax's, select the same.
        methods["krum"] = tj.Krum(k - 3, 2)
        methods["trimmed_mean"] = tj.TrimmedMean(1)
    if k == 2:
        # More rows are met in random order.
        methods["pcgrad"] = tj.PCGrad()
    return methods


def stateful_aggregators(k: int) -> dict[str, tj.Aggregator]:
    """Aggregators recorded at their second step, on `second(matrix)`."""
    upgrad = tj.UPGradWeighting(projector=QuadprogProjector(norm_eps=0, reg_eps=0))
    smoothed = tj.CRMOGMWeighting(upgrad, alpha=0.75)
    methods = {
        "excess_mtl": tj.ExcessMTL(robust_step_size=0.5, n_warmup_steps=1),
        "smoothed": tj.GramianWeightedAggregator(smoothed),
        "pcd-0": tj.PCD(tau=0.0, eps=0),
        "pcd-0.3": tj.PCD(tau=0.3, eps=0),
    }
    if k == 2:
        methods["gradvac"] = tj.GradVac(beta=0.3)
    return methods


def second(matrix: np.ndarray) -> np.ndarray:
    """The matrix of the second step: columns rolled, row i scaled by i."""
    return np.arange(1, len(matrix) + 1)[:, None] * np.roll(matrix, 1, axis=1)


def record(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Every aggregator's direction."""
    first, later = torch.tensor(matrix), torch.tensor(second(matrix))
    methods = aggregators(len(matrix))
    directions = {name: method(first) for name, method in methods.items()}
    for name, method in stateful_aggregators(len(matrix)).items():
        method(first)
        directions[name] = method(later)
    return {name: direction.numpy() for name, direction in directions.items()}


def main() -> None:
    """Write one array of Jacobians and one of directions for each case."""
    warnings.filterwarnings("ignore", module="torchjd")
    arrays = {"version": version("torchjd")}
    for case, matrix in matrices().items():
        directions = record(matrix)
        arrays |= {
            f"{case}/matrix": matrix,
            f"{case}/methods": list(directions),
            f"{case}/directions": np.stack(list(directions.values())),
        }
    np.savez_compressed(OUTPUT, **arrays)


if __name__ == "__main__":
    main()
