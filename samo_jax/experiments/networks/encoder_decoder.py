"""A small convolutional encoder-decoder with one head per task."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp


class EncoderDecoder(nn.Module):
    """Three halvings of the image and back, with skip connections, shared by all tasks.

    A task's head is two convolutions, on all pixels. There is no normalisation layer,
    so that the loss of an image does not depend on its batch. About 300,000 parameters
    for three tasks.

    Attributes:
        outputs: number of output channels of each task; head parameters carry its name.
        widths: channels at each resolution, from the image's own down.

    >>> net = EncoderDecoder({"segmentation": 7, "depth": 1})
    >>> images = jnp.zeros((2, 48, 64, 3))
    >>> outputs = jax.eval_shape(net.init_with_output, jax.random.key(0), images)[0]
    >>> outputs["segmentation"].shape, outputs["depth"].shape
    ((2, 48, 64, 7), (2, 48, 64, 1))
    """

    outputs: Mapping[str, int]
    widths: tuple[int, ...] = (16, 32, 64, 96)

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Map images (N, H, W, 3) to outputs (N, H, W, channels) of each task.

        Raises:
            ValueError: if H or W is not a multiple of 8 (of 2 to the number of
                halvings).
        """
        stride = 2 ** (len(self.widths) - 1)
        if images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(
                f"`images` must have height and width that are multiples of {stride}, "
                f"got shape {images.shape}; crop or pad them, or give fewer `widths`"
            )
        first, *deeper = self.widths
        x = Layer(first, name="encoder_0")(images)
        skips = []
        for level, width in enumerate(deeper, start=1):
            skips.append(x)
            x = Layer(width, strides=2, name=f"encoder_{level}")(x)
        x = Layer(self.widths[-1], name="middle")(x)
        for level, skip in reversed(list(enumerate(skips))):
            x = jnp.concatenate([_twice(x), skip], axis=-1)
            x = Layer(self.widths[level], name=f"decoder_{level}")(x)
        return {
            task: Head(first, channels, name=task)(x)
            for task, channels in self.outputs.items()
        }


class Layer(nn.Module):
    """A 3x3 convolution and a rectifier.

    Attributes:
        width: output channels.
        strides: strides of the convolution.
    """

    width: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (N, H, W, C) to (N, H / strides, W / strides, width)."""
        init = nn.initializers.he_normal()
        conv = nn.Conv(self.width, (3, 3), self.strides, kernel_init=init)
        return nn.relu(conv(x))


class Head(nn.Module):
    """A layer, and a linear map of each pixel.

    Attributes:
        width: channels of the layer.
        channels: output channels.
    """

    width: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features (N, H, W, C) to outputs (N, H, W, channels)."""
        return nn.Conv(self.channels, (1, 1))(Layer(self.width)(x))


def _twice(x: jax.Array) -> jax.Array:
    """Each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
