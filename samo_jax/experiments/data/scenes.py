"""Pictures of random rooms, with exact segmentation, depth and surface normals."""

from typing import NamedTuple

import numpy as np

from samo_jax.experiments.data.rooms import (
    CEILING,
    FLOOR,
    RUG,
    WALL,
    WINDOW,
    Hits,
    Room,
    camera_rays,
    cast,
    draw_room,
    scales,
)

# Where in a pixel rays go, from its centre: the image is their mean, the labels are the
# first one's.
_OFFSETS = np.array([[0, 0], [-1, -1], [1, -1], [-1, 1], [1, 1]]) / 4


class Scenes(NamedTuple):
    """Pictures of rooms, and what is seen through the centre of each pixel.

    Attributes:
        images: (N, H, W, 3), float32 in [0, 1].
        labels: "segmentation" (N, H, W), int32 indices of `rooms.CLASSES`; "depth"
            (N, H, W, 1), float32 metres along the camera's z axis; "normals"
            (N, H, W, 3), float32 unit vectors towards the camera, in its axes: x to the
            right, y down, z forward.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]


def draw_scenes(count: int, seed: int, *, size: tuple[int, int] = (48, 64)) -> Scenes:
    """Pictures of `count` random rooms, and their labels.

    Args:
        count: number of pictures; the first ones do not depend on it.
        seed: seed of the scenes: the same gives the same scenes.
        size: height and width in pixels.

    Raises:
        ValueError: if `count` or `size` is not positive.

    >>> scenes = draw_scenes(2, seed=0, size=(24, 32))
    >>> scenes.images.shape, scenes.labels["depth"].shape
    ((2, 24, 32, 3), (2, 24, 32, 1))
    """
    if min(count, *size) < 1:
        raise ValueError(
            f"`count` and `size` must be positive, got {count} and {size}; ask for at "
            "least one picture of one pixel"
        )
    generators = [np.random.default_rng((seed, index)) for index in range(count)]
    pictures = [render(draw_room(rng), rng, size) for rng in generators]
    images, labels = zip(*pictures, strict=True)
    return Scenes(
        np.stack(images),
        {task: np.stack([label[task] for label in labels]) for task in labels[0]},
    )


def render(
    room: Room, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Image and labels of one room.

    Args:
        room: the room and the camera.
        rng: draws its colours and patterns, and the camera's noise.
        size: height and width in pixels.
    """
    rays = np.concatenate([camera_rays(room, size, xy) for xy in _OFFSETS], axis=1)
    hits = cast(room, room.camera[:, None], rays)
    radiance = _light(room, hits) * _paint(room, hits, rng)
    radiance = radiance.reshape(3, len(_OFFSETS), *size).mean(1).transpose(1, 2, 0)
    image = (1 - np.exp(-radiance)) ** (1 / 2.2) + rng.normal(0, 0.015, radiance.shape)

    seen = Hits(*(array[..., : size[0] * size[1]] for array in hits))
    normals = (room.camera_axes @ seen.normals).T
    return np.clip(image, 0, 1).astype(np.float32), {
        "segmentation": seen.kinds.reshape(size).astype(np.int32),
        "depth": seen.scale.reshape(*size, 1).astype(np.float32),
        "normals": normals.reshape(*size, 3).astype(np.float32),
    }


def _light(room: Room, hits: Hits) -> np.ndarray:
    """Light (3, R) from the lamp, from the window and scattered; the window's own."""
    # Each of a pixel's rays sees another point of the lamp, hence soft shadows.
    corners = 0.8 * np.pad(_OFFSETS, ((0, 0), (0, 1))).T
    lamp = room.lamp[:, None] + np.repeat(
        corners, len(hits.scale) // len(_OFFSETS), axis=1
    )
    to_lamp = lamp - hits.points
    square = np.sum(to_lamp**2, axis=0)
    cosine = np.maximum(np.sum(hits.normals * to_lamp, axis=0), 0) / np.sqrt(square)
    shadows = scales(room, hits.points + 1e-6 * hits.normals, to_lamp)[1:]
    from_lamp = np.all(shadows > 1, axis=0) * cosine / (0.5 + square)

    to_window = room.window.mean(0)[:, None] - hits.points
    to_window /= np.linalg.norm(to_window, axis=0) + 0.3
    from_window = (1 + np.sum(hits.normals * to_window, axis=0)) / 2

    # Corners of the room, and the foot of what stands in it, get less scattered light.
    gaps = np.sort([*hits.points, *(room.size[:, None] - hits.points)], axis=0)
    gap = np.where(hits.things == 0, gaps[1], hits.points[2])
    scattered = 1 - 0.6 * np.exp(-gap / 0.25)

    light = (
        np.outer([6.0, 5.4, 4.5], from_lamp)
        + np.outer([0.14, 0.17, 0.21], from_window)
        + np.outer([0.12, 0.12, 0.12], scattered)
    )
    return np.where(hits.kinds == WINDOW, 2, light)


def _paint(room: Room, hits: Hits, rng: np.random.Generator) -> np.ndarray:
    """Albedo (3, R), of random colours and patterns."""
    albedo = np.empty_like(hits.points)

    def fill(where, u, v, patterns, saturation, brightness):
        base = _colour(rng, saturation, brightness)
        accent = rng.uniform(0.5, 0.85) * base
        pattern = patterns[rng.integers(len(patterns))]
        albedo[:, where] = base + (accent - base) * pattern(u, v)

    kinds, points = hits.kinds, hits.points
    u, v = _surface(points, hits.normals)
    for kind, patterns, saturation, brightness in (
        (FLOOR, (_boards, _tiles), (0.1, 0.6), (0.4, 0.8)),
        (RUG, (_stripes, _tiles), (0.4, 0.9), (0.4, 0.8)),
        (WALL, (_stripes, _plain, _plain), (0.0, 0.4), (0.7, 0.95)),
        (CEILING, (_plain,), (0.0, 0.05), (0.85, 0.95)),
    ):
        where = kinds == kind
        fill(where, u[where], v[where], patterns, saturation, brightness)
    albedo[:, (kinds == WALL) & (points[2] < 0.1)] = 0.85  # the skirting board
    where = kinds == WINDOW
    albedo[:, where] = _view(room, points[:, where])

    for index, axes in enumerate(room.box_axes):
        where = hits.things == 1 + index
        local = axes @ (points[:, where] - room.box_centres[index, :, None])
        u, v = _surface(local, axes @ hits.normals[:, where])
        fill(where, u, v, (_boards, _stripes, _plain), (0.2, 0.9), (0.35, 0.9))
    for index, radius in enumerate(room.ball_radii):
        where = hits.things == 1 + len(room.box_axes) + index
        x, y, z = hits.normals[:, where]
        u, v = radius * np.arctan2(y, x), radius * np.arcsin(z)
        fill(where, u, v, (_stripes, _plain), (0.4, 1.0), (0.4, 0.9))
    return albedo


def _surface(points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the faces of a box along the axes: level, and upright if it is."""
    x, y, z = points
    facing_x, _, facing_z = np.abs(normals) > 0.5
    return np.where(facing_x, y, x), np.where(facing_z, y, z)


def _view(room: Room, points: np.ndarray) -> np.ndarray:
    """The sky behind the window, and its white frame."""
    low, high = room.window[:, :, None]
    shares = (points - low) / np.maximum(high - low, 1e-9)
    across, up = shares[np.argmax((high - low)[:2])], shares[2]
    sky = np.array([[1.0], [0.95], [0.85]]) + np.outer([-0.6, -0.35, 0.1], up)
    bar = np.minimum(np.abs(across - 0.5), np.minimum(across, 1 - across)) < 0.03
    return np.where(bar | (np.minimum(up, 1 - up) < 0.04), 0.45, sky)


def _colour(rng, saturation, brightness) -> np.ndarray:
    """A random hue (3, 1), with a saturation and a brightness from these ranges."""
    pure = 0.5 + 0.5 * np.cos(2 * np.pi * (rng.random() + np.array([0, 1, 2]) / 3))
    saturated = 1 - rng.uniform(*saturation) * (1 - pure)
    return rng.uniform(*brightness) * saturated[:, None]


# Patterns: how much of the accent, in [0, 1], at coordinates in metres.


def _plain(u, _v):
    return np.zeros_like(u)


def _stripes(u, _v):
    return np.floor(u / 0.15) % 2


def _tiles(u, v):
    return (np.floor(u / 0.4) + np.floor(v / 0.4)) % 2


def _boards(u, v):
    row = np.floor(v / 0.18)
    piece = np.floor(u / 1.1 + 0.37 * row)
    tone = np.sin(127 * row + 311 * piece) ** 2
    return np.where(v / 0.18 % 1 < 0.1, 1.5, tone)
