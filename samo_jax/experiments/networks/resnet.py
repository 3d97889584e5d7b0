"""ResNet-18 with one head per task, for Office-Home."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
from jax.nn.initializers import constant, normal, variance_scaling

_BLOCKS = (2, 2, 2, 2)
_Conv = partial(
    nn.Conv, use_bias=False, kernel_init=variance_scaling(2, "fan_out", "normal")
)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016), a dense layer, and one linear head for each task.

    The network of the Office-Home trainers of LibMTL and SAMO. Those start from weights
    trained on ImageNet, which are not available here: these start at random, and
    results are not comparable with the papers'.

    Every head sees all images: where each task has images of its own, apply the network
    to those of one task and take its output.

    Attributes:
        tasks: names of the tasks; head parameters carry them.
        num_classes: number of classes of every task.
        width: channels of the first stage; 64 in the paper, 8 times that in the last.
        dropout: share of features dropped before the heads; it needs a "dropout" key.
    """

    tasks: Sequence[str]
    num_classes: int = 65
    width: int = 64
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Map images (N, H, W, 3) to logits (N, num_classes) for each task."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = _Conv(self.width, (7, 7), strides=2, padding=3)(images)
        x = nn.relu(norm()(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(_BLOCKS):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                name = f"stage_{stage}_block_{block}"
                x = _Block(self.width * 2**stage, strides, name=name)(x, train)
        x = x.mean((1, 2))
        x = nn.Dense(x.shape[-1], kernel_init=normal(0.005), bias_init=constant(0.1))(x)
        x = nn.relu(norm()(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {task: nn.Dense(self.num_classes, name=task)(x) for task in self.tasks}


class _Block(nn.Module):
    """Two convolutions around which the input goes."""

    width: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        y = _Conv(self.width, (3, 3), self.strides, padding=1)(x)
        y = nn.relu(norm()(y))
        y = norm()(_Conv(self.width, (3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = norm()(_Conv(self.width, (1, 1), self.strides, padding=0)(x))
        return nn.relu(x + y)
