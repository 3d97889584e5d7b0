"""Tables of molecules with missing labels, such as MoleculeNet's."""

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from samo_jax.experiments.data.fingerprints import fingerprints, scaffold_groups
from samo_jax.experiments.data.malformed import MalformedFileError
from samo_jax.experiments.data.molecule_tables import read_molecule_table
from samo_jax.experiments.data.splits import (
    Parts,
    random_split,
    split_of_groups,
)
from samo_jax.experiments.networks.tabular_net import TabularNet
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.problems.sizes import scaled
from samo_jax.experiments.problems.tabular_tasks import BINARY, has_both_classes

SplitBy: TypeAlias = Literal["random", "scaffold"]
# MoleculeNet's multitask network (Wu et al. 2018), but for batches, there of 50, and
# its weight decay.
RECIPE = {
    "batch_size": 100,
    "epochs": 10,
    "learning_rate": 1e-3,
    "rho": 0.05,
    "clip_norm": None,
}
_WIDTH, _DROPOUT = 1500, 0.5


def moleculenet(
    file: Path, split: Split, width: float = 1.0, split_by: SplitBy = "random"
) -> Benchmark:
    """Tables of molecules, such as MoleculeNet's, with missing labels; MLP.

    FILE is a table in CSV (.csv or .csv.gz): the column "smiles", and a column of 0, 1
    or nothing for each task, as in Tox21, SIDER, ClinTox, ToxCast. Inputs are ECFP4
    fingerprints by RDKit. A task that has only one class in the training,
    validation or test part is left out.
    """
    table = read_molecule_table(file)
    inputs, readable = fingerprints(table.smiles)
    rows = np.flatnonzero(readable)
    parts = (
        split_of_groups(scaffold_groups([table.smiles[row] for row in rows]))
        if split_by == "scaffold"
        else random_split(len(rows))
    )
    parts = Parts(*(rows[part] for part in parts))
    tasks = [
        task
        for task, labels in table.labels.items()
        if all(has_both_classes(labels[part]) for part in parts)
    ]
    if not tasks:
        raise MalformedFileError(
            f"{file} must have a task with both classes in each part of the molecules, "
            f"of {', '.join(str(len(part)) for part in parts)}: take more molecules"
        )

    def examples(part: np.ndarray) -> Examples:
        return Examples(
            inputs[part], {task: table.labels[task][part] for task in tasks}
        )

    def net(names):
        return TabularNet(dict.fromkeys(names, 1), [scaled(_WIDTH, width)], _DROPOUT)

    notes = []
    unreadable, left_out = len(table.smiles) - len(rows), table.labels.keys() - {*tasks}
    if unreadable:
        notes.append(
            f"Left out: {unreadable} of {len(table.smiles)} molecules, which RDKit "
            "cannot read."
        )
    if left_out:
        names = ", ".join(sorted(left_out))
        notes.append(f"Left out: tasks with one class only in a part, {names}.")
    return Benchmark(
        dict.fromkeys(tasks, BINARY),
        net,
        examples(parts.train),
        examples(parts.of(split)),
        has_modes=True,
        notes=tuple(notes),
        **RECIPE,
    )
