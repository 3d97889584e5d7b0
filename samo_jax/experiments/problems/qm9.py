"""QM9: properties of molecules, from the package `qm9pack` or from raw files.

Network, loss and hyper-parameters are those of SAMO's code. What differs: the learning
rate falls with the training loss, there with validation errors; the shared gradient's
norm is clipped to 1, there the norm of K times it; the last epoch counts, there the one
that is best on validation examples.
"""

from pathlib import Path

import numpy as np

from samo_jax.experiments.data.molecules import standardised
from samo_jax.experiments.data.qm9_files import read_qm9
from samo_jax.experiments.data.qm9_pack import read_qm9_pack
from samo_jax.experiments.data.qm9_parts import qm9_parts, read_permutation
from samo_jax.experiments.networks.message_passing import MessagePassingNet
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.problems.optimizers import adam_on_plateau
from samo_jax.experiments.problems.sizes import scaled
from samo_jax.experiments.problems.tasks import regression

RECIPE = {
    "batch_size": 120,
    "epochs": 300,
    "learning_rate": 1e-3,
    "optimizer": adam_on_plateau,
    "rho": 1e-5,
    "alpha": 0.1,
}
# By target: the error of single-task training, as SAMO's code has it, and its unit.
_ERRORS = {
    "mu": (0.0671, "D"),
    "alpha": (0.1814, "a0³"),
    "homo": (0.060576, "eV"),
    "lumo": (0.053915, "eV"),
    "r2": (0.5027, "a0²"),
    "zpve": (0.004539, "eV"),
    "u0": (0.058838, "eV"),
    "u": (0.064244, "eV"),
    "h": (0.063852, "eV"),
    "g": (0.066223, "eV"),
    "cv": (0.07212, "cal/(mol K)"),
}


def qm9(
    folder: Path | None,
    split: Split,
    width: float = 1.0,
    permutation: Path | None = None,
    molecules: int | None = None,
) -> Benchmark:
    """QM9: 11 properties of molecules; message passing.

    The molecules come from the package qm9pack (pip install 'samo_jax[qm9]'), whose
    bonds are of one kind, or from FOLDER, which holds `raw/gdb9.sdf`,
    `raw/gdb9.sdf.csv` and `raw/uncharacterized.txt`. 10,000 are for test, 10,000 for
    validation, the others for training.
    """
    everything, labels = read_qm9_pack() if folder is None else read_qm9(folder)
    count = len(everything.atoms)
    order = (
        np.random.default_rng(0).permutation(count)
        if permutation is None
        else read_permutation(permutation, count)
    )
    data = qm9_parts(everything, labels, order, molecules)

    def examples(part):
        inputs, raw = part
        return Examples(inputs, standardised(raw, data.mean, data.deviation))

    def net(names):
        return MessagePassingNet(names, scaled(64, width), scaled(128, width))

    return Benchmark(
        {
            target: regression(data.deviation[target], unit)._replace(
                single_task={"error": error}
            )
            for target, (error, unit) in _ERRORS.items()
        },
        net,
        examples(data.train),
        examples(data.test if split == "test" else data.validation),
        **RECIPE,
    )
