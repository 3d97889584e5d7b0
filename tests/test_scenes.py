"""Rendered rooms: labels against geometry, in closed form and by back-projection."""

import numpy as np
import pytest

from samo_jax.experiments.data.rooms import (
    BALL,
    CLASSES,
    Room,
    camera_rays,
    cast,
    draw_room,
)
from samo_jax.experiments.data.scenes import draw_scenes, render

SIZE = (48, 64)


def empty_room(**parts):
    """A room of 4 m x 5 m x 3 m, the camera in the middle of the near wall, level."""
    room = Room(
        size=np.array([4.0, 5.0, 3.0]),
        window=np.array([[1.5, 5, 1.0], [2.5, 5, 2.0]]),
        rug=np.array([[1.0, 3, 0], [3.0, 4, 0]]),
        lamp=np.array([2.0, 2.5, 2.8]),
        box_centres=np.zeros((0, 3)),
        box_axes=np.zeros((0, 3, 3)),
        box_halves=np.zeros((0, 3)),
        ball_centres=np.zeros((0, 3)),
        ball_radii=np.zeros(0),
        camera=np.array([2.0, 0, 1.5]),
        camera_axes=np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
        focal=0.5,
    )
    return room._replace(**parts)


def labels_of(room, size=SIZE):
    return render(room, np.random.default_rng(0), size)[1]


def image_plane(room, size=SIZE):
    """Camera coordinates (x, y, 1) of the pixels' centres."""
    height, width = size
    x = (np.arange(width) + 0.5 - width / 2) / (room.focal * width)
    y = (np.arange(height) + 0.5 - height / 2) / (room.focal * width)
    return np.stack(np.broadcast_arrays(x, y[:, None], 1.0), axis=-1)


def test_empty_room():
    """A pixel at (x, y, 1) sees the floor at depth 1.5 / y, a side wall at 2 / |x|."""
    room = empty_room()
    labels = labels_of(room)
    x, y, _ = np.moveaxis(image_plane(room), -1, 0)
    depths = np.stack([2 / np.abs(x), 1.5 / np.abs(y), np.full(SIZE, 5.0)])
    np.testing.assert_allclose(labels["depth"][..., 0], depths.min(0), rtol=1e-6)

    facing = np.stack(
        [
            np.stack([-np.sign(x), 0 * x, 0 * x], -1),
            np.stack([0 * y, -np.sign(y), 0 * y], -1),
            np.broadcast_to([0, 0, -1], (*SIZE, 3)),
        ]
    )
    normals = np.take_along_axis(facing, depths.argmin(0)[None, ..., None], axis=0)[0]
    np.testing.assert_allclose(labels["normals"], normals, atol=1e-6)

    depth = depths.min(0)
    across, up, forward = 2 + depth * x, 1.5 - depth * y, depth
    rug = (np.abs(across - 2) < 1) & (np.abs(forward - 3.5) < 0.5)
    window = (np.abs(across - 2) < 0.5) & (np.abs(up - 1.5) < 0.5)
    floor, ceiling = (
        (depths.argmin(0) == 1) & (y > 0),
        (depths.argmin(0) == 1) & (y < 0),
    )
    names = np.select(
        [floor & rug, floor, ceiling, (depths.argmin(0) == 2) & window],
        ["rug", "floor", "ceiling", "window"],
        "wall",
    )
    np.testing.assert_array_equal(np.array(CLASSES)[labels["segmentation"]], names)


def test_ball():
    """Ahead of the camera: its silhouette, its nearest point and its normals."""
    radius, distance = 0.8, 3.0
    room = empty_room(
        ball_centres=np.array([[2.0, distance, 1.5]]), ball_radii=np.array([radius])
    )
    labels = labels_of(room, (49, 65))
    plane = image_plane(room, (49, 65))
    tangent = radius / np.sqrt(distance**2 - radius**2)
    seen = np.hypot(plane[..., 0], plane[..., 1]) < tangent
    np.testing.assert_array_equal(labels["segmentation"] == BALL, seen)
    assert labels["depth"][24, 32, 0] == pytest.approx(distance - radius)
    np.testing.assert_allclose(labels["normals"][24, 32], [0, 0, -1], atol=1e-6)
    points = labels["depth"] * plane
    np.testing.assert_allclose(
        labels["normals"][seen], (points[seen] - [0, 0, distance]) / radius, atol=1e-5
    )


def test_turned_box():
    """A box's upright edge towards the camera: both faces at 45 degrees."""
    turn = np.sqrt(0.5)
    room = empty_room(
        box_centres=np.array([[2.0, 3, 1]]),
        box_axes=np.array([[[turn, turn, 0], [-turn, turn, 0], [0, 0, 1]]]),
        box_halves=np.array([[0.5, 0.5, 1]]),
    )
    labels = labels_of(room)
    x = image_plane(room)[24, :, 0]
    seen = np.abs(x) < turn / 3  # the silhouette: corners (+-turn, 3)
    np.testing.assert_array_equal(
        labels["segmentation"][24] == CLASSES.index("box"), seen
    )
    # On the face, depth = 3 - turn + |x| depth
    depth = (3 - turn) / (1 - np.abs(x[seen]))
    np.testing.assert_allclose(labels["depth"][24, seen, 0], depth, rtol=1e-6)
    normals = np.stack([turn * np.sign(x), 0 * x, 0 * x - turn], axis=-1)[seen]
    np.testing.assert_allclose(labels["normals"][24, seen], normals, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_normals_are_those_of_the_depths(seed):
    """Neighbouring points on a plane differ at right angles to its normal."""
    room = draw_room(np.random.default_rng(seed))
    labels = labels_of(room)
    depth, normals = labels["depth"], labels["normals"]
    points = depth * image_plane(room)
    for axis in (0, 1):
        step = np.diff(points, axis=axis)
        first, second = (np.delete(normals, end, axis=axis) for end in (-1, 0))
        thing = np.delete(labels["segmentation"], -1, axis=axis)
        flat = np.all(first == second, axis=-1) & (thing != BALL)
        length = np.linalg.norm(step, axis=-1)
        slope = np.abs(np.sum(first * step, axis=-1)) / length
        # Parallel faces of different things are the exception.
        assert flat.mean() > 0.6
        assert np.mean(slope[flat] < 1e-3) > 0.96


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_well_formed(seed):
    room = draw_room(np.random.default_rng(seed))
    image, labels = render(room, np.random.default_rng(0), SIZE)
    assert image.shape == (*SIZE, 3)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert {name: (a.shape, a.dtype) for name, a in labels.items()} == {
        "segmentation": (SIZE, np.int32),
        "depth": ((*SIZE, 1), np.float32),
        "normals": ((*SIZE, 3), np.float32),
    }
    np.testing.assert_allclose(np.linalg.norm(labels["normals"], axis=-1), 1, rtol=1e-5)
    towards = np.sum(labels["normals"] * image_plane(room), axis=-1)
    assert np.all(towards < 0)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_lies_before_what_is_met(seed):
    """Points along each ray, up to the first hit, are in the room and in no thing."""
    room = draw_room(np.random.default_rng(seed))
    rays = camera_rays(room, (12, 16), (0, 0))
    hits = cast(room, room.camera[:, None], rays)
    for share in np.linspace(0, 1 - 1e-6, 50):
        points = (room.camera[:, None] + share * hits.scale * rays).T
        assert np.all((points > 0) & (points < room.size))
        for centre, radius in zip(room.ball_centres, room.ball_radii, strict=True):
            assert np.all(np.linalg.norm(points - centre, axis=1) > radius)
        for centre, axes, halves in zip(
            room.box_centres, room.box_axes, room.box_halves, strict=True
        ):
            assert np.all(np.any(np.abs((points - centre) @ axes.T) > halves, axis=1))


@pytest.mark.parametrize("seed", range(20))
def test_things_fit_into_the_room(seed):
    room = draw_room(np.random.default_rng(seed))
    radii = np.hypot(*room.box_halves[:, :2].T)
    for centres, reach in (
        (room.box_centres, np.stack([radii, radii, room.box_halves[:, 2]], axis=1)),
        (room.ball_centres, room.ball_radii[:, None]),
    ):
        assert np.all(centres - reach > -1e-9)
        assert np.all(centres + reach < room.size + 1e-9)
    assert len(room.box_centres) >= 1
    np.testing.assert_allclose(
        room.camera_axes @ room.camera_axes.T, np.eye(3), atol=1e-12
    )
    assert np.linalg.det(room.camera_axes) == pytest.approx(1)


def test_same_seed_same_scenes():
    scenes, again, longer = (draw_scenes(n, seed=3, size=(12, 16)) for n in (2, 2, 3))
    other = draw_scenes(2, seed=4, size=(12, 16))
    np.testing.assert_array_equal(scenes.images, again.images)
    np.testing.assert_array_equal(scenes.images, longer.images[:2])
    for task, label in scenes.labels.items():
        np.testing.assert_array_equal(label, longer.labels[task][:2])
    assert not np.array_equal(scenes.images, other.images)
    assert not np.array_equal(scenes.images[0], scenes.images[1])


def test_every_class_is_seen():
    labels = draw_scenes(40, seed=0, size=(24, 32)).labels["segmentation"]
    shares = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert len(shares) == len(CLASSES)
    assert shares.min() > 0.01


def test_shadow():
    """A ball darkens the floor below it, not the floor beside it."""
    ball = {"ball_centres": np.array([[2.0, 2.5, 1.0]]), "ball_radii": np.array([0.4])}
    dark, bright = (
        render(room, np.random.default_rng(0), SIZE)[0]
        for room in (empty_room(**ball), empty_room())
    )
    plane = image_plane(empty_room())
    floor = labels_of(empty_room())["depth"] * plane
    below = np.hypot(floor[..., 0], floor[..., 2] - 2.5) < 0.3
    beside = (np.abs(floor[..., 0]) > 1.2) & (floor[..., 1] > 1.49)
    ratio = dark / bright
    ball_seen = labels_of(empty_room(**ball))["segmentation"] == BALL
    visible = below & (floor[..., 1] > 1.49) & ~ball_seen
    assert visible.any()
    assert np.median(ratio[visible]) < 0.7
    assert abs(np.median(ratio[beside]) - 1) < 0.03


@pytest.mark.parametrize(("count", "size"), [(0, (4, 4)), (1, (0, 4)), (1, (4, -1))])
def test_sizes_must_be_positive(count, size):
    with pytest.raises(ValueError, match="must be positive, got"):
        draw_scenes(count, 0, size=size)
