"""Folders of NumPy files in the format of MTAN, written here in miniature, and read."""

import os
import pickle
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

from samo_jax.experiments.data.checked_files import read_array
from samo_jax.experiments.data.dense_files import (
    CITYSCAPES,
    NYU_V2,
    DenseFiles,
    linear_weights,
    scale_crop_flip,
)
from samo_jax.experiments.data.loading import ordered_batches, shuffled_batches

from miniatures import COUNTS, write_dense

LAYOUTS = {"nyu_v2": NYU_V2, "cityscapes": CITYSCAPES}


@pytest.fixture(scope="module", params=LAYOUTS)
def data(request, tmp_path_factory):
    """A folder in the full format and size, and its layout."""
    folder = tmp_path_factory.mktemp(request.param)
    write_dense(folder, LAYOUTS[request.param])
    return folder, LAYOUTS[request.param]


@pytest.fixture
def small(tmp_path):
    """A folder of NYU-v2's format with images of 8 x 12, and its layout."""
    layout = NYU_V2._replace(size=(8, 12))
    write_dense(tmp_path, layout)
    return tmp_path, layout


@pytest.mark.parametrize("split", COUNTS)
def test_reads(data, split):
    folder, layout = data
    files = DenseFiles(folder, layout, split)
    assert len(files) == COUNTS[split]
    for index in range(len(files)):
        image, labels = files[index]
        stored = {
            name: np.load(folder / split / name / f"{index}.npy")
            for name in ("image", *layout.folders.values())
        }
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, stored["image"].astype(np.float32))
        assert set(labels) == set(layout.folders)
        for task, label in labels.items():
            assert label.dtype == (np.int32 if task == "segmentation" else np.float32)
            expected = stored[layout.folders[task]].astype(label.dtype)
            np.testing.assert_array_equal(label, expected)


def test_is_a_sequence(small):
    files = DenseFiles(*small, "train")
    np.testing.assert_array_equal(files[-1][0], files[np.int64(2)][0])
    assert len(list(files)) == 3
    with pytest.raises(IndexError):
        files[3]
    again = pickle.loads(pickle.dumps(files))
    np.testing.assert_array_equal(again[1][0], files[1][0])


def test_batches(small):
    files = DenseFiles(*small, "train")

    def three_epochs(**options):
        batches = shuffled_batches(files, 3, seed=0, **options)
        return [next(batches) for _ in range(3)]

    originals = {image.tobytes() for image, _ in files}
    for images, labels in three_epochs():
        assert {image.tobytes() for image in images} == originals
        assert labels["segmentation"].shape == (3, 8, 12)
    augmented = three_epochs(augment=scale_crop_flip, threads=1)
    again = three_epochs(augment=scale_crop_flip, threads=3)
    jax.tree.map(np.testing.assert_array_equal, augmented, again)
    assert len({image.tobytes() for images, _ in augmented for image in images}) > 5


def test_ordered_batches(small):
    files = DenseFiles(*small, "train")
    first, rest = ordered_batches(files, 2)
    images = np.concatenate([first[0], rest[0]])
    np.testing.assert_array_equal(images, [image for image, _ in files])
    assert rest[1]["depth"].shape == (1, 8, 12, 1)


def test_batches_that_are_too_large(small):
    files = DenseFiles(*small, "train")
    with pytest.raises(ValueError, match=r"at most the number of examples, 3, got 4"):
        shuffled_batches(files, 4, seed=0)


def test_other_files_are_ignored(small):
    folder, layout = small
    for name in (".DS_Store", "._0.npy", "007.npy", "notes.txt"):
        (folder / "train" / "image" / name).write_text("")
    assert len(DenseFiles(folder, layout, "train")) == 3


@pytest.mark.parametrize("part", ["image", "label", "depth", "normal"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_missing_file(small, part, index):
    folder, layout = small
    (folder / "train" / part / f"{index}.npy").unlink()
    with pytest.raises(ValueError, match=rf"{part} lacks {index}\.npy: .* to 2\.npy"):
        DenseFiles(folder, layout, "train")


def test_missing_example(small):
    folder, layout = small
    for file in (folder / "train").glob("*/1.npy"):
        file.unlink()
    with pytest.raises(ValueError, match=r"image lacks 1\.npy: .* 0\.npy to 2\.npy"):
        DenseFiles(folder, layout, "train")


def test_missing_folder(small):
    folder, layout = small
    with pytest.raises(ValueError, match=r"label_7 is not a folder; give the folder"):
        DenseFiles(folder, CITYSCAPES, "train")
    with pytest.raises(ValueError, match=r"nowhere/train/image is not a folder"):
        DenseFiles(folder / "nowhere", layout, "train")


def test_empty_folders(small):
    folder, layout = small
    for file in (folder / "val").glob("*/*.npy"):
        file.unlink()
    with pytest.raises(ValueError, match=r"val/image lacks 0\.npy"):
        DenseFiles(folder, layout, "val")


def test_numbers_far_apart(small):
    """Whatever they are, no more is kept than the names that are there."""
    folder, layout = small
    for number in (30_000_000, 10**200):
        (folder / "train/image" / f"{number}.npy").touch()
        with pytest.raises(ValueError, match=rf"image lacks 3\.npy: .* to {number}\.n"):
            DenseFiles(folder, layout, "train")


def test_what_is_not_a_file(small):
    """A folder, and a pipe that nobody writes to."""
    folder, layout = small
    files = DenseFiles(folder, layout, "val")
    for path, make in (("depth/0", Path.mkdir), ("label/1", os.mkfifo)):
        place = folder / "val" / f"{path}.npy"
        place.unlink()
        make(place)
        with pytest.raises(ValueError, match=rf"{path}.npy must be a regular file"):
            files[int(path[-1])]


def header(shape):
    """A NumPy file of numbers of this shape that ends where they should begin."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("image", np.zeros((8, 12)), r"has shape \(8, 12\), expected \(8, 12, 3\)"),
        ("image", np.zeros((3, 8, 12)), r"has shape \(3, 8, 12\), expected"),
        ("label", np.zeros((8, 12, 1)), r"\(8, 12, 1\), expected \(8, 12\); give the"),
        ("depth", np.zeros((8, 12)), r"has shape \(8, 12\), expected \(8, 12, 1\)"),
        ("normal", np.zeros((12, 8, 3)), r"\(12, 8, 3\), expected \(8, 12, 3\)"),
        (
            "label",
            np.full((8, 12), 13),
            r"from 13 to 13, expected whole numbers from -1 to 12; give the layout",
        ),
        ("label", np.full((8, 12), -2), r"has numbers from -2 to -2, expected"),
        ("label", np.full((8, 12), np.nan), r"from nan to nan, expected whole numbers"),
        ("label", np.full((8, 12), 1.5), r"from 1.5 to 1.5, expected whole numbers"),
        ("depth", np.full((8, 12, 1), np.nan), r"from nan to nan, expected finite num"),
        ("normal", np.full((8, 12, 3), -np.inf), r"from -inf to -inf, expected finite"),
        ("image", np.full((8, 12, 3), 1e300), r"from inf to inf, expected finite num"),
        ("image", np.full((8, 12, 3), "1"), r"not a NumPy array of numbers"),
        ("image", np.full((8, 12, 3), 1j), r"not a NumPy array .*type is complex128"),
        ("image", np.zeros((8, 12, 3), "f4,f4"), r"not a NumPy array .*type is \["),
        ("image", header((10**12, 3)), r"not a NumPy array of numbers \(mmap length"),
        ("image", header((10**40, 3)), r"not a NumPy array of numbers"),
        ("image", header((8, 12, 3)), r"not a NumPy array of numbers \(mmap length"),
        ("image", header((8, -12, 3)), r"not a NumPy array of numbers"),
        ("image", header("(" * 9000), r"not a NumPy array of numbers"),
        ("image", np.full((8, 12, 3), None), r"not a NumPy array of .*Python objects"),
        ("image", np.full((8, 12, 3), "a"), r"not a NumPy array of numbers"),
        ("depth", b"not an array", r"not a NumPy array of numbers"),
        ("depth", b"", r"not a NumPy array of numbers"),
    ],
)
def test_wrong_content(small, part, content, message):
    folder, layout = small
    path = folder / "val" / part / "1.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    files = DenseFiles(folder, layout, "val")
    files[0]
    with pytest.raises(ValueError, match=rf"val/{part}/1\.npy .*{message}"):
        files[1]


class Fixed:
    """A generator that draws the given scale, place and mirroring."""

    def __init__(self, scale, top, left, mirror):
        self.scale, self.places, self.mirror = scale, iter((top, left)), mirror

    def choice(self, scales):
        assert self.scale in scales
        return self.scale

    def integers(self, bound):
        place = next(self.places)
        assert 0 <= place < bound
        return place

    def random(self):
        return 0.0 if self.mirror else 1.0


def ramp(height, width):
    """An example whose image is (row, column, 1), its labels likewise."""
    row, column = np.indices((height, width)).astype(np.float32)
    image = np.stack([row, column, np.ones_like(row)], axis=-1)
    return image, {
        "segmentation": (10 * row + column).astype(np.int32),
        "depth": (10 * row + column)[..., None],
        "normals": image,
    }


@pytest.mark.parametrize("mirror", [False, True])
def test_scale_crop_flip_by_hand(mirror):
    """The 4 x 6 part of a 6 x 9 ramp at row 2 and column 1, enlarged by 1.5."""
    image, labels = scale_crop_flip(ramp(6, 9), Fixed(1.5, 2, 1, mirror))
    row = np.linspace(2, 5, 6)[:, None]
    column = np.linspace(1, 6, 9)[:: -1 if mirror else 1]
    expected = np.stack(np.broadcast_arrays(row, column, 1.0), axis=-1)
    np.testing.assert_allclose(image, expected, rtol=1e-6)
    sign = [-1 if mirror else 1, 1, 1]
    np.testing.assert_allclose(labels["normals"], expected * sign, rtol=1e-6)

    rows = np.array([2, 2, 3, 4, 4, 5])[:, None]
    columns = np.array([1, 1, 2, 3, 3, 4, 5, 5, 6])[:: -1 if mirror else 1]
    np.testing.assert_array_equal(labels["segmentation"], 10 * rows + columns)
    np.testing.assert_allclose(
        labels["depth"][..., 0], (10 * rows + columns) / 1.5, rtol=1e-6
    )
    assert image.dtype == labels["depth"].dtype == labels["normals"].dtype == np.float32
    assert labels["segmentation"].dtype == np.int32


def test_scale_one_leaves_the_example_as_it_is():
    example = ramp(6, 9)
    image, labels = scale_crop_flip(example, Fixed(1.0, 0, 0, False))
    np.testing.assert_array_equal(image, example[0])
    for task, label in labels.items():
        np.testing.assert_array_equal(label, example[1][task])


def test_scale_crop_flip_draws_all_scales_places_and_both_sides():
    """And the same for a seed; the example itself is not changed."""
    example = ramp(6, 9)
    seen = set()
    for seed in range(300):
        image, labels = scale_crop_flip(example, np.random.default_rng(seed))
        top, left = image[0, 0, 0], image[0, :, 1].min()
        seen.add((int(top), int(left), image[0, 0, 1] > left, image[-1, 0, 0] - top))
    # 1, (2 rows x 3 columns) and (3 x 4) places of parts of 6 x 9, 5 x 7 and 4 x 6.
    assert len(seen) == 2 * (1 + 2 * 3 + 3 * 4)
    again, _ = scale_crop_flip(example, np.random.default_rng(299))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(example[0], ramp(6, 9)[0])
    cityscapes = {task: labels[task] for task in CITYSCAPES.folders}
    assert set(
        scale_crop_flip((image, cityscapes), np.random.default_rng(0))[1]
    ) == set(CITYSCAPES.folders)


@pytest.mark.parametrize(("size", "new_size"), [(1, 2), (2, 4), (5, 7), (9, 4), (6, 6)])
def test_linear_weights(size, new_size):
    values = np.random.default_rng(0).normal(size=size)
    expected = np.interp(np.linspace(0, size - 1, new_size), np.arange(size), values)
    np.testing.assert_allclose(linear_weights(size, new_size) @ values, expected)


class Payload:
    """What writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickled", "zipped"])
def test_reading_runs_no_code(tmp_path, kind):
    harm = tmp_path / "harm"
    objects = np.array([Payload(harm)], dtype=object)
    path = tmp_path / "0.npy"
    with path.open("wb") as file:
        (np.save if kind == "pickled" else np.savez)(file, objects)
    with pytest.raises(ValueError, match=r"0\.npy is not a NumPy array of numbers"):
        read_array(path, (1,), "")
    assert not harm.exists()
