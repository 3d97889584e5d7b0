"""The convolutional network of the CelebA benchmark, with one head per attribute."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

# Channels of the convolutions, in units of the width; stages are pooled in between.
_STAGES = ((1,), (2, 2), (4, 4), (8, 8))


class CelebANet(nn.Module):
    """Seven convolutions and two dense layers, with batch norm, and linear heads.

    The network of SAMO's CelebA trainer, whose heads give logits here.

    Attributes:
        tasks: names of the attributes; head parameters carry them.
        width: channels of the first convolution; 64 in the paper, 8 times that in the
            last.
    """

    tasks: Sequence[str]
    width: int = 64

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Map images (N, H, W, 3) to a logit (N,) for each attribute."""
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = images
        for stage, factors in enumerate(_STAGES):
            if stage > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for factor in factors:
                x = nn.Conv(factor * self.width, (3, 3), use_bias=False)(x)
                x = nn.relu(norm()(x))
        x = x.mean((1, 2))
        for _ in range(2):
            x = nn.relu(norm()(nn.Dense(x.shape[-1], use_bias=False)(x)))
        return {task: nn.Dense(1, name=task)(x)[:, 0] for task in self.tasks}
