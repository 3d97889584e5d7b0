"""Random rooms, and what rays from a camera meet in them.

A box-shaped room with a window, a rug and a lamp; boxes and balls stand in it.
World axes, in metres, from a corner of the floor: x to the right, y to the far wall, z
up. Camera axes: x to the right, y down, z forward. The vectors of R rays are columns,
(3, R), and so are those of their points.
"""

from typing import NamedTuple

import numpy as np

CLASSES = ("floor", "rug", "wall", "window", "ceiling", "box", "ball")
FLOOR, RUG, WALL, WINDOW, CEILING, BOX, BALL = range(len(CLASSES))


class Room(NamedTuple):
    """A room, B boxes and S balls in it, and the camera, in world axes and metres.

    Attributes:
        size: (3,).
        window: (2, 3), its least and its greatest corner, on a wall.
        rug: (2, 3), its least and its greatest corner, on the floor.
        lamp: (3,), its middle.
        box_centres: (B, 3).
        box_axes: (B, 3, 3), rows: unit vectors along each box's edges.
        box_halves: (B, 3), half of each edge.
        ball_centres: (S, 3).
        ball_radii: (S,).
        camera: (3,).
        camera_axes: (3, 3), rows: the camera's x, y and z.
        focal: focal length, as a share of the picture's width.
    """

    size: np.ndarray
    window: np.ndarray
    rug: np.ndarray
    lamp: np.ndarray
    box_centres: np.ndarray
    box_axes: np.ndarray
    box_halves: np.ndarray
    ball_centres: np.ndarray
    ball_radii: np.ndarray
    camera: np.ndarray
    camera_axes: np.ndarray
    focal: float


class Hits(NamedTuple):
    """Surfaces that R rays meet first.

    Attributes:
        scale: (R,); the point met is `origin + scale * direction`.
        points: (3, R).
        normals: (3, R), unit vectors out of what is met.
        things: (R,), 0 for the room, then the boxes, then the balls.
        kinds: (R,), indices of `CLASSES`.
    """

    scale: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    things: np.ndarray
    kinds: np.ndarray


def draw_room(rng: np.random.Generator) -> Room:
    """A random room: the camera near one wall, looking at the middle."""
    size = rng.uniform([3.5, 4, 2.4], [6, 6.5, 3])
    camera = rng.uniform([0.3, 0.05, 0.45], [0.7, 0.12, 0.7]) * size
    target = rng.uniform([0.25, 0.55, 0.2], [0.75, 0.7, 0.5]) * size
    forward = _unit(target - camera)
    right = _unit(np.cross(forward, [rng.normal(0, 0.03), 0, 1]))

    discs = _scatter(rng, size[:2], camera[:2])
    boxes, balls = np.split(discs, [rng.integers(2, 5)])

    slant = rng.uniform(0.4, 1.1, len(boxes))
    heights = rng.uniform(0.15, 0.7, len(boxes))
    length, width = boxes[:, 2] * [np.cos(slant), np.sin(slant)]
    box_halves = np.stack([length, width, heights], axis=1)
    turn = rng.uniform(0, np.pi, len(boxes))
    box_axes = np.tile(np.eye(3), (len(boxes), 1, 1))
    box_axes[:, 0, :2] = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    box_axes[:, 1, :2] = np.stack([-np.sin(turn), np.cos(turn)], axis=1)

    topped = rng.random(len(boxes)) < 0.4
    ball_radii = 0.7 * np.concatenate([balls[:, 2], boxes[topped, 2] / 2])
    ball_middles = np.concatenate([balls[:, :2], boxes[topped, :2]])
    ground = np.concatenate([np.zeros(len(balls)), 2 * heights[topped]])

    axis, plane = ((0, 0), (0, size[0]), (1, size[1]))[rng.integers(3)]
    window_middle = rng.uniform([0.35, 0.6, 0.5], [0.65, 0.8, 0.6]) * size
    window_half = rng.uniform([0.4, 0.4, 0.35], [0.9, 0.9, 0.6])
    window_middle[axis], window_half[axis] = plane, 0
    rug_middle = rng.uniform([0.35, 0.45, 0], [0.65, 0.65, 0]) * size
    rug_half = rng.uniform([0.5, 0.5, 0], [1.2, 1.0, 0])
    return Room(
        size=size,
        window=np.array([window_middle - window_half, window_middle + window_half]),
        rug=np.array([rug_middle - rug_half, rug_middle + rug_half]),
        lamp=rng.uniform([0.1, 0.1, 0.75], [0.9, 0.9, 0.95]) * size,
        box_centres=np.column_stack([boxes[:, :2], heights]),
        box_axes=box_axes,
        box_halves=box_halves,
        ball_centres=np.column_stack([ball_middles, ground + ball_radii]),
        ball_radii=ball_radii,
        camera=camera,
        camera_axes=np.array([right, np.cross(forward, right), forward]),
        focal=rng.uniform(0.65, 0.9),
    )


def _scatter(
    rng: np.random.Generator, size: np.ndarray, camera: np.ndarray
) -> np.ndarray:
    """Middles and radii (up to 7, 3) of discs on the floor, all apart."""
    discs = [np.array([*camera, 1.2])]
    for disc in rng.uniform([0, 0, 0.2], [*size, 0.6], (40, 3)):
        middle, radius = disc[:2], disc[2]
        gaps = [np.hypot(*(middle - d[:2])) - d[2] for d in discs]
        if min(*middle, *(size - middle), *gaps) > radius:
            discs.append(disc)
    return np.array(discs[1:8])


def camera_rays(
    room: Room, size: tuple[int, int], offset: tuple[float, float]
) -> np.ndarray:
    """Directions (3, H W) through the pixels, their z in camera axes 1.

    The scale at which such a ray meets something is its depth.

    Args:
        room: the camera.
        size: height and width in pixels.
        offset: x and y from the pixels' centres, in pixels.
    """
    height, width = size
    row, column = np.indices(size).reshape(2, -1)
    x = (column + 0.5 + offset[0] - width / 2) / (room.focal * width)
    y = (row + 0.5 + offset[1] - height / 2) / (room.focal * width)
    return room.camera_axes.T @ np.stack([x, y, np.ones_like(x)])


def scales(room: Room, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Scale at which each ray meets the room, each box and each ball, or infinity.

    Args:
        room: room that the rays meet.
        origins: (3, R) or (3, 1), within the room and outside its things.
        directions: (3, R), of any length.

    Returns:
        Shape (1 + B + S, R).
    """
    half = room.size[:, None] / 2
    _, leave = _slabs(origins - half, directions, half)
    enter_box, leave_box = _slabs(
        room.box_axes @ (origins - room.box_centres[:, :, None]),
        room.box_axes @ directions,
        room.box_halves[:, :, None],
    )
    # |offset + scale direction|^2 = radius^2
    offset = origins - room.ball_centres[:, :, None]
    a = np.sum(directions**2, axis=0)
    b = np.sum(offset * directions, axis=1)
    c = np.sum(offset**2, axis=1) - room.ball_radii[:, None] ** 2
    discriminant = b**2 - a * c
    enter_ball = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.concatenate(
        [
            leave[None],
            np.where((enter_box < leave_box) & (enter_box > 0), enter_box, np.inf),
            np.where((discriminant > 0) & (enter_ball > 0), enter_ball, np.inf),
        ]
    )


def cast(room: Room, origins: np.ndarray, directions: np.ndarray) -> Hits:
    """The surface that each ray meets first; arguments as of `scales`."""
    candidates = scales(room, origins, directions)
    things = candidates.argmin(0)
    scale = candidates.min(0)
    points = origins + scale * directions

    half = room.size[:, None] / 2
    normals = -_face(points - half, half)
    kinds = np.choose(normals[2].astype(int) + 1, [CEILING, WALL, FLOOR])
    kinds[_within(points, room.rug)] = RUG
    kinds[_within(points, room.window)] = WINDOW
    for index, axes in enumerate(room.box_axes):
        met = things == 1 + index
        local = axes @ (points[:, met] - room.box_centres[index, :, None])
        normals[:, met] = axes.T @ _face(local, room.box_halves[index, :, None])
        kinds[met] = BOX
    for index, centre in enumerate(room.ball_centres):
        met = things == 1 + len(room.box_axes) + index
        normals[:, met] = (points[:, met] - centre[:, None]) / room.ball_radii[index]
        kinds[met] = BALL
    return Hits(scale, points, normals, things, kinds)


def _slabs(
    origins: np.ndarray, directions: np.ndarray, halves: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scales at which rays enter and leave boxes about zero, along their axes."""
    steps = np.where(directions == 0, 1e-99, directions)
    reach = np.copysign(halves, steps)
    enter, leave = (-reach - origins) / steps, (reach - origins) / steps
    return enter.max(-2), leave.min(-2)


def _face(points: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Outward normals (3, R) at points on a box about zero, along its axes."""
    ratio = points / halves
    axis = np.abs(ratio).argmax(0)
    return np.where(axis == np.arange(3)[:, None], np.sign(ratio), 0)


def _within(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    low, high = corners[:, :, None]
    return np.all((points > low - 1e-9) & (points < high + 1e-9), axis=0)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
