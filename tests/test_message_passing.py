"""The message-passing network: its layers by brute force, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from samo_jax.experiments.data.molecules import (
    Molecules,
    draw_molecules,
    random_molecules,
    standardised,
)
from samo_jax.experiments.networks.message_passing import (
    EdgeConvolution,
    MessagePassingNet,
    Set2Set,
    features,
)

TASKS = ("mass", "gap")
NET = MessagePassingNet(TASKS, width=8, hidden=6)
apply = jax.jit(NET.apply)


@pytest.fixture(scope="module")
def molecules():
    return draw_molecules(20, seed=0)


@pytest.fixture(scope="module")
def variables(molecules):
    return jax.jit(NET.init)(jax.random.key(0), molecules)


def assert_same_outputs(variables, molecules, other):
    outputs, same = apply(variables, molecules), apply(variables, other)
    for task in TASKS:
        assert outputs[task].shape == (20,)
        assert np.ptp(outputs[task]) > 1e-3
        np.testing.assert_allclose(same[task], outputs[task], rtol=1e-5, atol=1e-5)


def test_permutation_of_the_atoms_changes_nothing(variables, molecules):
    order = np.random.default_rng(0).permutation(molecules.atoms.shape[1])
    permuted = Molecules(
        molecules.atoms[:, order],
        molecules.bonds[:, order][:, :, order],
        molecules.positions[:, order],
    )
    assert_same_outputs(variables, molecules, permuted)


def test_more_padding_changes_nothing(variables, molecules):
    atoms, bonds, positions = molecules
    padded = Molecules(
        np.pad(atoms, ((0, 0), (0, 5))),
        np.pad(bonds, ((0, 0), (0, 5), (0, 5))),
        np.pad(positions, ((0, 0), (0, 5), (0, 0))),
    )
    assert_same_outputs(variables, molecules, padded)


def test_absent_atoms_do_not_matter(variables, molecules):
    rng = np.random.default_rng(0)
    atoms, bonds, positions = molecules
    present = atoms > 0
    pairs = present[:, :, None] & present[:, None]
    changed = Molecules(
        atoms,
        np.where(pairs, bonds, rng.integers(0, 4, bonds.shape)).astype(np.uint8),
        np.where(present[..., None], positions, rng.normal(size=positions.shape)),
    )
    assert not np.array_equal(changed.bonds, bonds)
    assert_same_outputs(variables, molecules, changed)


def test_bonds_and_positions_of_present_atoms_matter(variables, molecules):
    outputs = apply(variables, molecules)
    for changed in (
        molecules._replace(bonds=np.minimum(molecules.bonds, 1)),
        molecules._replace(positions=2 * molecules.positions),
    ):
        other = apply(variables, changed)
        assert np.max(np.abs(other["gap"] - outputs["gap"])) > 1e-3


def test_features_of_water():
    """H, O, padding, H: two single bonds, one of 1 and one of 2 angstrom."""
    water = Molecules(
        np.array([[1, 8, 0, 1]], np.uint8),
        np.array([[[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]], np.uint8),
        np.array([[[1, 0, 0], [0, 0, 0], [7, 7, 7], [0, 2, 0]]], np.float32),
    )
    nodes, edges, neighbours = features(water, (1, 6, 8))
    hydrogen, oxygen = [1, 0, 0, 1, 0], [0, 0, 1, 8, 2]
    np.testing.assert_array_equal(nodes[0], [hydrogen, oxygen, [0] * 5, hydrogen])
    single = [1, 0, 0, 0]
    np.testing.assert_array_equal(edges[0, 0, 1], [*single, 1])
    np.testing.assert_array_equal(edges[0, 3, 1], [*single, 2])
    np.testing.assert_allclose(edges[0, 0, 3], [0, 0, 0, 0, 5**0.5])
    expected = [[0, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(neighbours[0], expected)


def test_edge_convolution_by_brute_force(key):
    """One matrix for each pair, formed and applied one at a time."""
    keys = jax.random.split(key, 4)
    nodes = jax.random.normal(keys[0], (1, 4, 3))
    edges = jax.random.normal(keys[1], (1, 4, 4, 2))
    neighbours = jnp.array([[[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0] * 4]])
    layer = EdgeConvolution(width=3, hidden=5)
    output, variables = jax.jit(layer.init_with_output)(
        keys[2], nodes, edges, neighbours
    )
    p = jax.tree.map(np.asarray, variables["params"])
    x, e = np.asarray(nodes[0]), np.asarray(edges[0])
    for i in range(4):
        expected = x[i] @ p["root"]["kernel"] + p["root"]["bias"]
        around = [j for j in range(4) if neighbours[0, i, j]]
        for j in around:
            h = np.maximum(e[i, j] @ p["edge"]["kernel"] + p["edge"]["bias"], 0)
            theta = p["theta"][-1]
            for k in range(5):
                theta = theta + h[k] * p["theta"][k]
            expected = expected + x[j] @ theta / len(around)
        np.testing.assert_allclose(output[0, i], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_readout_of_equal_atoms_is_the_atom(key):
    """Attention sums to one over the atoms that are present, and only over them."""
    atom = jnp.array([0.5, -1.0, 2.0])
    nodes = jnp.stack([atom, atom, atom, 9 * atom])[None]
    present = jnp.array([[True, True, True, False]])
    read, _ = jax.jit(Set2Set(steps=3).init_with_output)(key, nodes, present)
    np.testing.assert_allclose(read[0, 3:], atom, rtol=1e-6)


def test_number_of_parameters(molecules):
    """That of the official network with dim 64, by hand."""
    net = MessagePassingNet(("u0", "gap"))
    params = jax.eval_shape(net.init, jax.random.key(0), molecules)["params"]
    d, hidden, nodes, edges = 64, 128, 5 + 2, 4 + 1

    def dense(inputs, outputs):
        return inputs * outputs + outputs

    expected = {
        "embedding": dense(nodes, d),
        "convolution": dense(edges, hidden) + dense(hidden, d * d) + dense(d, d),
        "gru": 3 * dense(d, d) + 2 * d * d + dense(d, d),
        "readout": 4 * (2 * d * d + dense(d, d)),
        "shared": dense(2 * d, d),
        "u0": dense(d, 1),
        "gap": dense(d, 1),
    }
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in params.items()
    }
    assert counts == expected


@pytest.mark.slow
def test_learns():
    """A hundred steps explain half of the variance of unseen molecules."""
    tasks = ("repulsion", "gyration")
    data = random_molecules(num_train=400, num_eval=100)
    net = MessagePassingNet(
        tasks, width=16, hidden=8, rounds=2, reads=1, elements=(6, 7, 8, 9)
    )
    tx = optax.adam(1e-2)

    @jax.jit
    def losses(params, molecules, labels):
        outputs = net.apply({"params": params}, molecules)
        return {t: jnp.mean((outputs[t] - labels[t]) ** 2) for t in tasks}

    @jax.jit
    def step(params, state, molecules, labels):
        grads = jax.grad(lambda p: sum(losses(p, molecules, labels).values()))(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    (train, labels), (test, test_labels) = data.train, data.test
    labels = standardised(labels, data.mean, data.deviation)
    params = jax.jit(net.init)(jax.random.key(0), train)["params"]
    state = tx.init(params)
    for epoch in range(12):
        order = np.random.default_rng(epoch).permutation(400)
        for rows in np.split(order, 8):
            params, state = step(
                params,
                state,
                *jax.tree.map(lambda a, rows=rows: a[rows], (train, labels)),
            )
    unseen = losses(params, test, standardised(test_labels, data.mean, data.deviation))
    assert all(loss < 0.5 for loss in unseen.values()), unseen
