"""A message-passing network for molecules, with one head per task."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from samo_jax.experiments.data.molecules import Molecules

_BOND_TYPES = 4


class EdgeConvolution(nn.Module):
    r"""Convolution whose weights are a function of the edge.

    $x_i' = W x_i + b + \frac{1}{|N(i)|} \sum_{j \in N(i)} \Theta(e_{ij}) x_j$ with
    $\Theta(e) = \sum_k h_k(e) \Theta_k + \Theta_0$ and $h(e)$ a dense layer with ReLU.

    As $\Theta$ is affine in $h$, the products $\Theta_k x_j$ are taken first, and the
    matrices $\Theta(e_{ij})$ of all pairs are never formed.

    Attributes:
        width: number of features of an atom, before and after.
        hidden: number of features $h$ of an edge.
    """

    width: int
    hidden: int

    @nn.compact
    def __call__(
        self, nodes: jax.Array, edges: jax.Array, neighbours: jax.Array
    ) -> jax.Array:
        """Map nodes (N, A, width), given edges (N, A, A, E), neighbours (N, A, A)."""
        h = nn.relu(nn.Dense(self.hidden, name="edge")(edges))
        h = jnp.concatenate([h, jnp.ones_like(h[..., :1])], axis=-1)
        shares = neighbours / jnp.maximum(neighbours.sum(-1, keepdims=True), 1)
        shape = self.hidden + 1, nodes.shape[-1], self.width
        theta = self.param("theta", nn.initializers.lecun_normal((0, 1)), shape)
        # Two large products: of all atoms, then of all atoms of a molecule.
        messages = jnp.einsum("njd,kdo->njko", nodes, theta)
        mean = jnp.einsum("nijk,njko->nio", shares[..., None] * h, messages)
        return nn.Dense(self.width, name="root")(nodes) + mean


class Set2Set(nn.Module):
    r"""Read a set by repeated attention (Vinyals et al. 2016).

    $q_t = \mathrm{LSTM}([q_{t-1}, r_{t-1}])$, $a_i = \mathrm{softmax}_i(x_i \cdot q_t)$
    and $r_t = \sum_i a_i x_i$.

    Attributes:
        steps: number of steps.
    """

    steps: int

    @nn.compact
    def __call__(self, nodes: jax.Array, present: jax.Array) -> jax.Array:
        """Map nodes (N, A, D), of which `present` (N, A) count, to (N, 2 D)."""
        lstm = nn.OptimizedLSTMCell(nodes.shape[-1])
        carry = lstm.initialize_carry(jax.random.key(0), nodes[:, 0].shape)
        query = jnp.zeros_like(nodes[:, 0])
        read = query
        for _ in range(self.steps):
            carry, query = lstm(carry, jnp.concatenate([query, read], axis=-1))
            scores = jnp.einsum("nad,nd->na", nodes, query)
            attention = nn.softmax(scores, where=present, axis=-1)
            read = jnp.einsum("na,nad->nd", attention, nodes)
        return jnp.concatenate([query, read], axis=-1)


class MessagePassingNet(nn.Module):
    """Message passing with edge networks, gated updates and a set-to-set readout.

    The network of Gilmer et al. (2017) in the form that the QM9 trainers of Nash-MTL
    and SAMO use: every atom is a neighbour of every other one, an edge carries the
    one-hot bond type and the distance, and one convolution and one GRU cell are
    applied three times. An atom carries its one-hot element, atomic number and number
    of bonded hydrogens.

    Attributes:
        tasks: names of the tasks; head parameters carry them.
        width: number of features of an atom.
        hidden: number of features of an edge.
        rounds: number of times that messages are passed.
        reads: number of steps of the readout.
        elements: the atomic numbers that occur.
    """

    tasks: Sequence[str]
    width: int = 64
    hidden: int = 128
    rounds: int = 3
    reads: int = 3
    elements: Sequence[int] = (1, 6, 7, 8, 9)

    @nn.compact
    def __call__(self, molecules: Molecules) -> dict[str, jax.Array]:
        """Map molecules to a number (N,) for each task."""
        present = jnp.asarray(molecules.atoms) > 0
        nodes, edges, neighbours = features(molecules, self.elements)
        convolution = EdgeConvolution(self.width, self.hidden, name="convolution")
        gru = nn.GRUCell(self.width, name="gru")
        state = nn.relu(nn.Dense(self.width, name="embedding")(nodes))
        for _ in range(self.rounds):
            state, _ = gru(state, nn.relu(convolution(state, edges, neighbours)))
        read = Set2Set(self.reads, name="readout")(state, present)
        x = nn.relu(nn.Dense(self.width, name="shared")(read))
        return {task: nn.Dense(1, name=task)(x)[:, 0] for task in self.tasks}


def features(
    molecules: Molecules, elements: Sequence[int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features of atoms and of pairs of atoms.

    Returns:
        `(nodes, edges, neighbours)`: one-hot element, atomic number and number of
        bonded hydrogens, (N, A, E + 2); one-hot bond type and distance in angstrom,
        (N, A, A, 5); and 1 for two different present atoms, otherwise 0, (N, A, A).
    """
    atoms, bonds, positions = map(jnp.asarray, molecules)
    present = atoms > 0
    different = ~jnp.eye(atoms.shape[1], dtype=bool)
    neighbours = present[:, :, None] & present[:, None] & different
    kinds = jnp.where(neighbours, bonds, 0)
    hydrogens = jnp.sum((kinds > 0) & (atoms == 1)[:, None], axis=-1)
    nodes = jnp.concatenate(
        [
            atoms[..., None] == jnp.array(elements),
            jnp.stack([atoms, hydrogens], axis=-1),
        ],
        axis=-1,
    )
    distances = jnp.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
    types = jax.nn.one_hot(kinds - 1, _BOND_TYPES, dtype=distances.dtype)
    edges = jnp.concatenate([types, distances[..., None]], axis=-1)
    return nodes.astype(edges.dtype), edges, neighbours.astype(edges.dtype)
