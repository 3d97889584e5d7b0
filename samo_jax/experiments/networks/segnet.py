"""SegNet and SegNet-MTAN, the networks of MTAN's NYU-v2 and Cityscapes experiments.

The architectures are those of github.com/lorenmt/mtan (im2im_pred/model_segnet_split.py
and model_segnet_mtan.py), which github.com/OptMN-Lab/SAMO uses, too. Heads return
logits and vectors of any length here; the losses normalise them.

The parameters have one top-level part of each task's name, with all that is this task's
own. In SegNet that is its head, in SegNet-MTAN its head (`head`) and its attention
modules. SAMO's code counts the attention modules as shared, though one task alone
reaches each, and the heads alone as the tasks' own.

References:
    [1] Badrinarayanan, Kendall & Cipolla, "SegNet: a deep convolutional encoder-decoder
        architecture for image segmentation", TPAMI 2017.
    [2] Liu, Johns & Davison, "End-to-end multi-task learning with attention", CVPR
        2019.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from samo_jax.experiments.data.dense_files import linear_weights

# Of the five stages, from the image's resolution down, at width 1.
CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)

_XAVIER = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


class SegNet(nn.Module):
    """A SegNet shared by all tasks, which splits into their heads at the last layer.

    Attributes:
        outputs: number of output channels of each task.
        width: factor of all hidden channels, 1 in the reference.
    """

    outputs: Mapping[str, int]
    width: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Map images (N, H, W, 3) to outputs (N, H, W, channels) of each task.

        Args:
            images: images of height and width that are multiples of 32.
            train: whether batch norm uses, and averages into its own, the statistics of
                these images.

        Raises:
            ValueError: if H or W is not a multiple of 32.
        """
        stages = Trunk(_scaled(self.width), name="trunk")(images, train)
        return {
            task: Head(channels, name=task)(stages[0].decoded)
            for task, channels in self.outputs.items()
        }


class SegNetMTAN(nn.Module):
    """A SegNet shared by all tasks, from which each selects features by attention.

    Attributes:
        outputs: number of output channels of each task.
        width: factor of all hidden channels, 1 in the reference.
    """

    outputs: Mapping[str, int]
    width: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Map images to the outputs of each task: arguments as of `SegNet`."""
        channels = _scaled(self.width)
        stages = Trunk(channels, name="trunk")(images, train)
        # They take what a task selected to the next stage, the same for all tasks.
        down = [Layer(c, name=f"down_{i}") for i, c in enumerate(_next(channels))]
        up = [Layer(c, name=f"up_{i}") for i, c in enumerate(_previous(channels))]
        return {
            task: TaskBranch(size, name=task)(stages, down, up, train)
            for task, size in self.outputs.items()
        }


class Stage(NamedTuple):
    """Features of the shared network at one resolution.

    Attributes:
        first: features after the encoder's first convolution.
        last: features after the encoder's last convolution.
        unpooled: features before the decoder's first convolution.
        decoded: features after the decoder's last convolution.
    """

    first: jax.Array
    last: jax.Array
    unpooled: jax.Array
    decoded: jax.Array


class Trunk(nn.Module):
    """The shared SegNet: VGG-16's convolutions down, their mirror image up.

    Attributes:
        channels: channels of each stage.
    """

    channels: Sequence[int]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> list[Stage]:
        """Map images (N, H, W, 3) to the features of each stage."""
        stride = 2 ** len(self.channels)
        if images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"`images` must have height and width that are multiples of {stride}, "
                f"got shape {images.shape}; crop or pad them"
            )
        x, encoded = images, []
        for i, (channels, depth) in enumerate(
            zip(self.channels, CONVOLUTIONS, strict=True)
        ):
            first = last = Layer(channels, name=f"encoder_{i}_0")(x, train)
            for j in range(1, depth):
                last = Layer(channels, name=f"encoder_{i}_{j}")(last, train)
            x, places = max_pool(last)
            encoded.append((first, last, places))
        stages = []
        for i, channels in reversed(list(enumerate(_previous(self.channels)))):
            first, last, places = encoded[i]
            x = unpooled = max_unpool(x, places)
            for j in range(CONVOLUTIONS[i]):
                x = Layer(channels, name=f"decoder_{i}_{j}")(x, train)
            stages.append(Stage(first, last, unpooled, decoded=x))
        return stages[::-1]


class TaskBranch(nn.Module):
    """One task's attention modules and head.

    Attributes:
        outputs: number of output channels.
    """

    outputs: int

    @nn.compact
    def __call__(
        self,
        stages: Sequence[Stage],
        down: Sequence[nn.Module],
        up: Sequence[nn.Module],
        train: bool,
    ) -> jax.Array:
        """Map features to outputs (N, H, W, outputs).

        Args:
            stages: the shared network's features.
            down: layers from the selection of a stage to the next, shared by the tasks.
            up: layers to the selection of each stage, from the next.
            train: mode of batch norm.
        """
        x = stages[0].first[..., :0]  # nothing is selected before the first stage
        for i, stage in enumerate(stages):
            mask = Attention(stage.last.shape[-1], name=f"encoder_{i}")
            selected = mask(jnp.concatenate([stage.first, x], -1), train) * stage.last
            x, _ = max_pool(down[i](selected, train))
        for i, stage in reversed(list(enumerate(stages))):
            x = up[i](enlarge(x), train)
            mask = Attention(stage.decoded.shape[-1], name=f"decoder_{i}")
            x = mask(jnp.concatenate([stage.unpooled, x], -1), train) * stage.decoded
        return Head(self.outputs, name="head")(x)


class Attention(nn.Module):
    """A mask in [0, 1] for features, of each pixel alone.

    Attributes:
        channels: channels of the features.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map (N, H, W, C) to (N, H, W, channels)."""
        x = nn.relu(
            _norm(train)(nn.Conv(self.channels, (1, 1), kernel_init=_XAVIER)(x))
        )
        x = _norm(train)(nn.Conv(self.channels, (1, 1), kernel_init=_XAVIER)(x))
        return nn.sigmoid(x)


class Layer(nn.Module):
    """A 3x3 convolution, batch norm and a rectifier.

    Attributes:
        channels: channels of the output.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map (N, H, W, C) to (N, H, W, channels)."""
        x = nn.Conv(self.channels, (3, 3), kernel_init=_XAVIER)(x)
        return nn.relu(_norm(train)(x))


class Head(nn.Module):
    """A 3x3 and a 1x1 convolution, nothing between them.

    Attributes:
        outputs: number of output channels.
    """

    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (N, H, W, C) to (N, H, W, outputs)."""
        x = nn.Conv(x.shape[-1], (3, 3), kernel_init=_XAVIER)(x)
        return nn.Conv(self.outputs, (1, 1), kernel_init=_XAVIER)(x)


def max_pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greatest value of each 2x2 window, and its place in it: 0 to 3 in reading order.

    Args:
        x: (N, 2 H, 2 W, C).

    Returns:
        Both (N, H, W, C); of equal values, the first counts.
    """
    n, height, width, c = x.shape
    windows = x.reshape(n, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    windows = windows.reshape(*windows.shape[:4], 4)
    places = windows.argmax(-1)
    return jnp.sum(windows * jax.nn.one_hot(places, 4, dtype=x.dtype), -1), places


def max_unpool(x: jax.Array, places: jax.Array) -> jax.Array:
    """Each value at its place in a 2x2 window of zeros.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_unpool(*max_pool(x))[0, :, :, 0]
    Array([[ 0.,  0.,  0.,  0.],
           [ 0.,  5.,  0.,  7.],
           [ 0.,  0.,  0.,  0.],
           [ 0., 13.,  0., 15.]], dtype=float32)
    """
    n, height, width, c = x.shape
    windows = x[..., None] * jax.nn.one_hot(places, 4, dtype=x.dtype)
    windows = windows.reshape(n, height, width, c, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return windows.reshape(n, 2 * height, 2 * width, c)


def enlarge(x: jax.Array) -> jax.Array:
    """Twice the height and width by linear interpolation, corners on corners."""
    rows, columns = (linear_weights(n, 2 * n).astype(x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ih,jw,nhwc->nijc", rows, columns, x)


def _norm(train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)


def _scaled(width: float) -> tuple[int, ...]:
    return tuple(round(width * channels) for channels in CHANNELS)


def _next(channels: Sequence[int]) -> tuple[int, ...]:
    return (*channels[1:], channels[-1])


def _previous(channels: Sequence[int]) -> tuple[int, ...]:
    return (channels[0], *channels[:-1])
