"""NYU-v2 and Cityscapes as MTAN preprocessed them: a NumPy file per image and label.

    FOLDER/train/image/0.npy, 1.npy, ...   (H, W, 3), colours
    FOLDER/train/label/0.npy, ...          (H, W), classes, -1 where there is none
    FOLDER/train/depth/0.npy, ...          (H, W, 1), depths, 0 where there is none
    FOLDER/train/normal/0.npy, ...         (H, W, 3), normals, 0 where there is none
    FOLDER/val/...

Cityscapes has its seven classes in `label_7`, inverse depths in `depth`, no normals.
This is what the loaders of github.com/lorenmt/mtan (im2im_pred/create_dataset.py),
github.com/median-research-group/LibMTL (examples/nyu/create_dataset.py) and
github.com/OptMN-Lab/SAMO (experiments/nyuv2/data.py, cityscapes/data.py) read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, SupportsIndex

import numpy as np

from samo_jax.experiments.data.checked_files import read_array

Example = tuple[np.ndarray, dict[str, np.ndarray]]

_CHANNELS = {"segmentation": (), "depth": (1,), "normals": (3,)}
_REMEDY = "give the layout of this data set, or unpack it again"


class Layout(NamedTuple):
    """Content of a data set's folders.

    Attributes:
        size: height and width of the images.
        num_classes: number of classes of the segmentation.
        folders: folder of the labels of each task.
    """

    size: tuple[int, int]
    num_classes: int
    folders: Mapping[str, str]


NYU_V2 = Layout(
    (288, 384), 13, {"segmentation": "label", "depth": "depth", "normals": "normal"}
)
# LibMTL's copy has them in `label`; there is one of 256 x 512, too: `_replace` these.
CITYSCAPES = Layout((128, 256), 7, {"segmentation": "label_7", "depth": "depth"})


class DenseFiles:
    """The examples of one split, read as they are asked for.

    `files[i]` is `(image, labels)`: the image (H, W, 3), float32 as stored; labels by
    task, "segmentation" (H, W), int32, the others (H, W, channels), float32. A data
    source for grain: `grain.MapDataset.source(files)`.

    Args:
        folder: the one that holds `train` and `val`.
        layout: `NYU_V2`, `CITYSCAPES` or one like them.
        split: "train" or "val".

    Raises:
        ValueError: if a folder is missing, or lacks a number below the greatest one.
    """

    def __init__(
        self, folder: str | Path, layout: Layout, split: Literal["train", "val"]
    ):
        """List the files, without opening them."""
        self.layout = layout
        self.paths = {
            name: Path(folder, split, part)
            for name, part in {"image": "image", **layout.folders}.items()
        }
        numbers = {path: _numbers(path) for path in self.paths.values()}
        last = max(set.union(*numbers.values()), default=0)
        self.length = last + 1
        for path, present in numbers.items():
            # Not a set of all to the last, whose name may have any number.
            missing = min(set(range(len(present) + 1)) - present)
            if missing <= last:
                raise ValueError(
                    f"{path} lacks {missing}.npy: all folders of {split} must have "
                    f"0.npy to {last}.npy; unpack the data set again"
                )

    def __len__(self) -> int:
        """Number of examples."""
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Read one example.

        Raises:
            IndexError: if there is no such example.
            MalformedFileError: if a file is not a NumPy array of finite numbers, of
                the layout's size, or has a class that is not one of -1, 0, ...,
                `num_classes` - 1.
        """
        name = f"{range(self.length)[index]}.npy"
        size, num_classes, folders = self.layout
        image = read_array(self.paths["image"] / name, (*size, 3), _REMEDY)
        labels = {}
        for task in folders:
            path, shape = self.paths[task] / name, (*size, *_CHANNELS[task])
            if task == "segmentation":
                labels[task] = read_array(
                    path, shape, _REMEDY, low=-1, high=num_classes - 1, whole=True
                ).astype(np.int32)
            else:
                labels[task] = read_array(path, shape, _REMEDY)
        return image, labels


def scale_crop_flip(example: Example, rng: np.random.Generator) -> Example:
    """A random part of an example, enlarged to its size and, half the time, mirrored.

    The augmentation of LibMTL's and SAMO's loaders: the part is the whole picture, or
    1/1.2 or 1/1.5 of its height and width, anywhere. Images and normals are
    interpolated linearly, classes and depths are those of the nearest pixel. Depths are
    divided by the scale (there, Cityscapes' inverse depths are, too). Mirrored normals
    change the sign of their x. With grain: `dataset.random_map(scale_crop_flip)`.

    Args:
        example: `(image, labels)`, as of `DenseFiles`.
        rng: draws scale, place and mirroring.
    """
    image, labels = example
    height, width = image.shape[:2]
    scale = float(rng.choice([1.0, 1.2, 1.5]))
    h, w = int(height / scale), int(width / scale)
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    mirror = rng.random() < 0.5

    def enlarge(array, resize):
        part = resize(array[top : top + h, left : left + w], (height, width))
        return part[:, ::-1] if mirror else part

    labels = {
        task: enlarge(label, _linear if task == "normals" else _nearest)
        for task, label in labels.items()
    }
    if "depth" in labels:
        labels["depth"] = labels["depth"] / scale
    if "normals" in labels and mirror:
        labels["normals"] = labels["normals"] * np.array([-1, 1, 1], np.float32)
    return enlarge(image, _linear), labels


def linear_weights(size: int, new_size: int) -> np.ndarray:
    """Matrix (new_size, size) of linear interpolation, end points on end points.

    >>> linear_weights(2, 3)
    array([[1. , 0. ],
           [0.5, 0.5],
           [0. , 1. ]])
    """
    position = np.linspace(0, size - 1, new_size)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(size)))


def _linear(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = map(linear_weights, array.shape[:2], size)
    resized = np.einsum("ih,jw,hwc->ijc", rows, columns, array, optimize=True)
    return resized.astype(array.dtype)


def _nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        np.arange(new) * old // new
        for old, new in zip(array.shape[:2], size, strict=True)
    )
    return array[rows[:, None], columns]


def _numbers(path: Path) -> set[int]:
    """N of each file N.npy in a folder."""
    if not path.is_dir():
        raise ValueError(
            f"{path} is not a folder; give the folder of a preprocessed data set, with "
            "`train` and `val` in it, and its layout"
        )
    names = (
        re.fullmatch(r"(0|[1-9][0-9]*)\.npy", file.name) for file in path.iterdir()
    )
    return {int(name[1]) for name in names if name}
