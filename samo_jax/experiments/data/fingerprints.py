"""Circular fingerprints and scaffolds of molecules, by RDKit."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

BITS, RADIUS = 1024, 2


def _rdkit() -> tuple[Any, Any, Any, Any]:
    """RDKit's reader, its generator of fingerprints, scaffolds, and silence."""
    try:
        from rdkit.Chem import MolFromSmiles
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
        from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
        from rdkit.rdBase import BlockLogs
    except ModuleNotFoundError:
        raise SystemExit(
            "rdkit is missing: pip install 'samo_jax[molecules]'"
        ) from None
    return MolFromSmiles, GetMorganGenerator, MurckoScaffoldSmiles, BlockLogs


def fingerprints(smiles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Extended-connectivity fingerprints of diameter 4 (ECFP4), folded to 1024 bits.

    Args:
        smiles: N molecules.

    Returns:
        Bits, shape (N, 1024), uint8; and which molecules RDKit can read, shape (N,),
        bool. The others have no bit set.

    Raises:
        SystemExit: RDKit is missing.
    """
    read, make_generator, _, quiet = _rdkit()
    generator = make_generator(radius=RADIUS, fpSize=BITS)
    bits = np.zeros((len(smiles), BITS), np.uint8)
    readable = np.zeros(len(smiles), bool)
    with quiet():
        for n, text in enumerate(smiles):
            molecule = read(text)
            if molecule is not None and molecule.GetNumAtoms():
                bits[n] = generator.GetFingerprintAsNumPy(molecule)
                readable[n] = True
    return bits, readable


def scaffold_groups(smiles: Sequence[str]) -> list[list[int]]:
    """Numbers of the molecules of each Bemis-Murcko scaffold, large groups first.

    Args:
        smiles: molecules that RDKit can read.
    """
    read, _, scaffold, quiet = _rdkit()
    groups: dict[str, list[int]] = defaultdict(list)
    with quiet():
        for n, text in enumerate(smiles):
            groups[scaffold(mol=read(text))].append(n)
    return sorted(groups.values(), key=lambda group: (-len(group), group[0]))
