"""The models of step.py: parameters, losses and data, as pure functions."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import samo_jax

SIZE = 64  # pixels of the dense tasks' images
CLASSES = 7


@dataclass
class Model:
    """A model with K losses.

    `losses(params, data)` is a dict by task; `labels` tells heads from the trunk.
    """

    description: str
    params: Any
    labels: Any
    losses: Callable[..., dict[str, jax.Array]]
    data: Any
    kind: str

    @property
    def tasks(self) -> list[str]:
        """In task order."""
        return sorted(self.params["heads"])

    @property
    def num_tasks(self) -> int:
        """K."""
        return len(self.tasks)


def init(shapes: Any) -> Any:
    """He-normal weights, drawn in NumPy."""
    rng = np.random.default_rng(0)

    def draw(shape):
        fan_in = np.prod(shape[:-1])
        return jnp.asarray(rng.normal(size=shape) * np.sqrt(2 / fan_in), jnp.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """3 x 3 convolution of images, NHWC."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions
    )


def enlarge(x: jax.Array) -> jax.Array:
    """Twice the size, nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def build(description, kind, trunk, heads, losses, data) -> Model:
    """A model with its labels."""
    params = init({"trunk": trunk, "heads": heads})
    labels = {"trunk": "shared", "heads": {name: name for name in heads}}
    return Model(description, params, labels, losses, data, kind)


def dense(num_tasks: int, size: int = SIZE) -> Model:
    """Segmentation, depth and normals by a convolutional encoder-decoder."""
    rng = np.random.default_rng(1)
    batch = (8, size, size)
    normals = rng.normal(size=(*batch, 3))
    data = {
        "x": rng.normal(size=(*batch, 3)).astype(np.float32),
        "segmentation": rng.integers(0, CLASSES, batch),
        "depth": rng.uniform(1, 5, (*batch, 1)).astype(np.float32),
        "normals": normals.astype(np.float32),
    }
    widths = {"depth": 1, "normals": 3, "segmentation": CLASSES}
    tasks = ["depth", "segmentation", "normals"][:num_tasks]
    trunk = {
        "down1": (3, 3, 3, 32),
        "down2": (3, 3, 32, 64),
        "middle": (3, 3, 64, 64),
        "up1": (3, 3, 64, 32),
        "up2": (3, 3, 32, 32),
    }

    def losses(params, data):
        trunk = params["trunk"]
        h = jax.nn.relu(conv(data["x"], trunk["down1"], 2))
        h = jax.nn.relu(conv(h, trunk["down2"], 2))
        h = jax.nn.relu(conv(h, trunk["middle"]))
        h = jax.nn.relu(conv(enlarge(h), trunk["up1"]))
        h = jax.nn.relu(conv(enlarge(h), trunk["up2"]))
        out = {name: conv(h, params["heads"][name]) for name in tasks}
        found = {"depth": jnp.mean(jnp.abs(out["depth"] - data["depth"]))}
        labels = data["segmentation"]
        found["segmentation"] = jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(out["segmentation"], labels)
        )
        if "normals" in out:
            found["normals"] = jnp.mean(
                1
                - optax.cosine_similarity(out["normals"], data["normals"], epsilon=1e-6)
            )
        return found

    heads = {name: (3, 3, 32, widths[name]) for name in tasks}
    return build(
        f"convolutional encoder-decoder, {num_tasks} dense tasks, 8 images of "
        f"{size} x {size}",
        "dense",
        trunk,
        heads,
        losses,
        data,
    )


def mlp(inputs: int, widths: list[int], batch: int) -> Model:
    """11 regressions."""
    rng = np.random.default_rng(1)
    tasks = [f"target{i:02d}" for i in range(11)]
    data = {
        "x": rng.normal(size=(batch, inputs)).astype(np.float32),
        "y": rng.normal(size=(batch, 11)).astype(np.float32),
    }

    def losses(params, data):
        h = data["x"]
        for kernel in params["trunk"].values():
            h = jax.nn.relu(h @ kernel)
        return {
            name: jnp.mean(
                jnp.square(h @ params["heads"][name] - data["y"][:, i, None])
            )
            for i, name in enumerate(tasks)
        }

    shapes = itertools.pairwise([inputs, *widths])
    trunk = {f"layer{i}": shape for i, shape in enumerate(shapes, 1)}
    heads = {name: (widths[-1], 1) for name in tasks}
    layers = "-".join(map(str, widths))
    description = f"MLP {layers}, 11 regressions, batch {batch}"
    return build(description, "mlp", trunk, heads, losses, data)


def cnn(num_tasks: int = 40, images: int = 64, size: int = 32) -> Model:
    """Binary attributes."""
    rng = np.random.default_rng(1)
    tasks = [f"attribute{i:02d}" for i in range(num_tasks)]
    data = {
        "x": rng.normal(size=(images, size, size, 3)).astype(np.float32),
        "y": rng.integers(0, 2, (images, num_tasks)).astype(np.float32),
    }

    def losses(params, data):
        trunk = params["trunk"]
        h = jax.nn.relu(conv(data["x"], trunk["conv1"], 2))
        h = jax.nn.relu(conv(h, trunk["conv2"], 2))
        h = jax.nn.relu(conv(h, trunk["conv3"], 2))
        h = jax.nn.relu(h.reshape(len(h), -1) @ trunk["dense"])
        return {
            name: jnp.mean(
                optax.sigmoid_binary_cross_entropy(
                    h @ params["heads"][name], data["y"][:, i, None]
                )
            )
            for i, name in enumerate(tasks)
        }

    trunk = {
        "conv1": (3, 3, 3, 16),
        "conv2": (3, 3, 16, 32),
        "conv3": (3, 3, 32, 64),
        "dense": (size**2, 128),
    }
    heads = {name: (128, 1) for name in tasks}
    return build(
        f"CNN, {num_tasks} binary attributes, {images} images of {size} x {size}",
        "cnn",
        trunk,
        heads,
        losses,
        data,
    )


def transformer(
    num_tasks: int = 8,
    layers: int = 12,
    width: int = 768,
    vocabulary: int = 16384,
    batch: tuple[int, int] = (32, 256),
    compute: Any = jnp.bfloat16,
) -> Model:
    """Classifications of texts, computed in bfloat16 with float32 masters."""
    rng = np.random.default_rng(1)
    tasks = [f"class{i}" for i in range(num_tasks)]
    classes = 16
    data = {
        "x": rng.integers(0, vocabulary, batch).astype(np.int32),
        "y": rng.integers(0, classes, (batch[0], num_tasks)).astype(np.int32),
    }

    def standardize(h):
        return jax.nn.standardize(h.astype(jnp.float32)).astype(h.dtype)

    def layer(h, weights):
        heads = (*h.shape[:-1], width // 64, 64)
        parts = jnp.split(standardize(h) @ weights["qkv"], 3, axis=-1)
        attended = jax.nn.dot_product_attention(*(p.reshape(heads) for p in parts))
        h = h + attended.reshape(h.shape) @ weights["out"]
        wide = jax.nn.gelu(standardize(h) @ weights["up"], approximate=True)
        return h + wide @ weights["down"], None

    def half_losses(params, data):
        trunk = params["trunk"]
        h = trunk["embedding"][data["x"]] + trunk["positions"]
        h, _ = lax.scan(layer, h, trunk["layers"])
        h = jnp.mean(standardize(h), axis=1)
        return {
            name: jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(
                    (h @ params["heads"][name]).astype(jnp.float32), data["y"][:, i]
                )
            )
            for i, name in enumerate(tasks)
        }

    def losses(params, data):
        return samo_jax.mixed_precision(half_losses, compute)(params, data)

    trunk = {
        "embedding": (vocabulary, width),
        "positions": (batch[1], width),
        "layers": {
            "qkv": (layers, width, 3 * width),
            "out": (layers, width, width),
            "up": (layers, width, 4 * width),
            "down": (layers, 4 * width, width),
        },
    }
    heads = {name: (width, classes) for name in tasks}
    millions = 1e-6 * (width * (vocabulary + batch[1]) + 12 * layers * width**2)
    return build(
        f"transformer of {layers} layers, width {width}, {millions:.1f} M parameters, "
        f"{num_tasks} classifications, {batch[0]} texts of {batch[1]} tokens, computed "
        f"in {jnp.dtype(compute).name}",
        "transformer",
        trunk,
        heads,
        losses,
        data,
    )


MODELS: dict[str, Callable[[], Model]] = {
    "dense2": lambda: dense(2),
    "dense3": lambda: dense(3),
    # The layers of docs/local_parts.md's, without biases; and one whose time is in its
    # matrix products.
    "mlp11": lambda: mlp(10, [128, 64], 100),
    "mlp11 wide": lambda: mlp(64, [256, 256, 256], 512),
    "cnn40": cnn,
}
