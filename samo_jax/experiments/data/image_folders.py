"""CelebA and Office-Home from their folders, image by image.

Both are for non-commercial research, from their authors' pages: CelebA (Liu et al.
2015), Office-Home (Venkateswara et al. 2017). An image is decoded when it is asked for,
so that `grain.MapDataset.source(images)` can shuffle, batch and prefetch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from samo_jax.experiments.data.malformed import MalformedFileError

OFFICE_DOMAINS = ("Art", "Clipart", "Product", "Real_World")
OFFICE_CLASSES = 65
Split: TypeAlias = Literal["train", "validation", "test"]

_SPLITS = ("train", "validation", "test")
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LabelledImages:
    """Images of a folder and their labels, by index."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        labels: Mapping[str, np.ndarray],
        side: int,
        mean: Sequence[float] = (0, 0, 0),
        deviation: Sequence[float] = (1, 1, 1),
    ):
        """Name the images; none is read yet.

        Args:
            folder: with the images.
            files: paths in `folder`, N of them.
            labels: by task, shape (N,).
            side: height and width that images are resized to, in pixels.
            mean: of red, green and blue in [0, 1], which is subtracted.
            deviation: of the three, which is divided by.

        Raises:
            ValueError: a path leads out of the folder, or there is no such file.
        """
        for file in files:
            if os.path.isabs(file) or ".." in Path(file).parts:
                raise ValueError(f"{file!r} must be a path within {folder}")
        missing = [file for file in files if not os.path.isfile(folder / file)]
        if missing:
            raise ValueError(
                f"{folder}: {len(missing)} of {len(files)} listed images are missing, "
                f"the first is {missing[0]!r}: unpack them there"
            )
        self.folder, self.files, self.labels = folder, files, labels
        self.side = side
        self.mean = np.array(mean, np.float32)
        self.deviation = np.array(deviation, np.float32)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.generic]]:
        """Read one image.

        Returns:
            The image, shape (side, side, 3), float32; and its label for each task.

        Raises:
            MalformedFileError: it is a link out of the folder, or no image.
        """
        path = (self.folder / self.files[index]).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise MalformedFileError(
                f"{path} must lie within {self.folder}, not be linked to"
            )
        size = (self.side, self.side)
        try:
            with Image.open(path) as image:
                small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        except _DECODING_ERRORS as error:
            raise MalformedFileError(
                f"{path} is not an image ({error}); unpack the data set again"
            ) from error
        pixels = (np.array(small, np.float32) / 255 - self.mean) / self.deviation
        return pixels, {task: values[index] for task, values in self.labels.items()}

    def __repr__(self) -> str:
        """Return a description that is the same in every process, as grain needs."""
        return f"LabelledImages({str(self.folder)!r}, {len(self)} images)"


def celeba(folder: Path, split: Split) -> LabelledImages:
    """CelebA's aligned faces at 64 x 64, in [0, 1], with 40 attributes, 0 or 1.

    Size and range are those of SAMO's trainer. The files may lie in `folder` or, as
    distributed, in `Img`, `Anno` and `Eval`:

    - `img_align_celeba/000001.jpg`, ...;
    - `list_attr_celeba.txt`: the number of images, the names of the attributes, then
      lines of a file name and -1 or 1 for each attribute; or `list_attr_celeba.csv`,
      with the header `image_id,5_o_Clock_Shadow,...`;
    - `list_eval_partition.txt`: lines of a file name and 0 for training, 1 for
      validation or 2 for test; or `list_eval_partition.csv`, with the header
      `image_id,partition`.

    Raises:
        ValueError: a file is missing or malformed.
    """
    part = str(_index_of(split))
    images = _find(
        folder,
        "img_align_celeba/img_align_celeba",
        "img_align_celeba",
        "Img/img_align_celeba",
    )
    attributes = _find(
        folder,
        "list_attr_celeba.txt",
        "Anno/list_attr_celeba.txt",
        "list_attr_celeba.csv",
    )
    partition = _find(
        folder,
        "list_eval_partition.txt",
        "Eval/list_eval_partition.txt",
        "list_eval_partition.csv",
    )

    part_of = {}
    for number, row in _rows(partition, header=partition.suffix == ".csv"):
        if len(row) != 2 or row[1] not in {"0", "1", "2"}:
            raise ValueError(
                f"{partition}:{number}: must be a file name and 0, 1 or 2, got {row}"
            )
        part_of[row[0]] = row[1]

    with_id = attributes.suffix == ".csv"
    lines = _rows(attributes, header=not with_id)
    names = next(lines, (0, []))[1][with_id:]
    files, values, count = [], [], 0
    for number, row in lines:
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"-1", "1"}:
            raise ValueError(
                f"{attributes}:{number}: must be a file name and -1 or 1 for each of "
                f"{len(names)} attributes, got {row}"
            )
        if row[0] not in part_of:
            raise ValueError(f"{attributes}:{number}: {row[0]} is not in {partition}")
        count += 1
        if part_of[row[0]] == part:
            files.append(row[0])
            values.append([value == "1" for value in row[1:]])
    if count != len(part_of):
        raise ValueError(
            f"{attributes} must list the {len(part_of)} images of {partition}, got "
            f"{count}: is it cut off?"
        )
    columns = np.array(values, np.int32).reshape(-1, len(names)).T
    labels = dict(zip(names, columns, strict=True))
    return LabelledImages(images, files, labels, side=64)


def office_home(folder: Path, split: Split) -> dict[str, LabelledImages]:
    """Office-Home at 224 x 224, standardised as for ImageNet; a source per domain.

    Sizes are those of SAMO's and LibMTL's trainers. Each domain is one task with 65
    classes and images of its own. The files are:

    - `split/Art_train.txt`, `split/Art_val.txt`, ..., LibMTL's lists (its folder
      `examples/office/data_txt/office-home`): lines such as
      `Art/Calendar/00017.jpg 0`;
    - the images, in `office` or in `folder` itself; the archive's folder `Real World`
      has to be renamed to `Real_World`, which is its name in the lists.

    Raises:
        ValueError: a file is missing or malformed.
    """
    suffix = ("train", "val", "test")[_index_of(split)]
    images = folder / "office" if (folder / "office").is_dir() else folder

    def source(domain: str) -> LabelledImages:
        listing = _find(folder, f"split/{domain}_{suffix}.txt")
        files, classes = [], []
        for number, row in _rows(listing):
            if len(row) != 2 or not row[1].isdigit() or int(row[1]) >= OFFICE_CLASSES:
                raise ValueError(
                    f"{listing}:{number}: must be an image and a class from 0 to "
                    f"{OFFICE_CLASSES - 1}, got {row}"
                )
            files.append(row[0])
            classes.append(int(row[1]))
        return LabelledImages(
            images,
            files,
            {domain: np.array(classes, np.int32)},
            224,
            _IMAGENET_MEAN,
            _IMAGENET_DEVIATION,
        )

    return {domain: source(domain) for domain in OFFICE_DOMAINS}


def _index_of(split: Split) -> int:
    if split not in _SPLITS:
        raise ValueError(f"`split` must be one of {_SPLITS}, got {split!r}")
    return _SPLITS.index(split)


def _find(folder: Path, *names: str) -> Path:
    """The first of the names that exists."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{folder} must hold {' or '.join(names)}: put it there")


def _rows(path: Path, header: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Number and words, between blanks or commas, of each line after the header."""
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if number > header:
                yield number, line.replace(",", " ").split()
