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

from samo_jax.experiments.data.checked_files import (
    read_image,
    short,
    text_lines,
    whole_number,
    without_repetition,
)
from samo_jax.experiments.data.malformed import MalformedFileError

OFFICE_DOMAINS = ("Art", "Clipart", "Product", "Real_World")
OFFICE_CLASSES = 65
Split: TypeAlias = Literal["train", "validation", "test"]

_SPLITS = ("train", "validation", "test")
_MAX_LIST_BYTES = 2**28
_REMEDY = "unpack the data set again"
_LISTS = "take LibMTL's lists again"
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
            folder: folder with the images.
            files: paths in `folder`, N of them.
            labels: labels by task, shape (N,).
            side: height and width that images are resized to, in pixels.
            mean: mean of red, green and blue in [0, 1], which is subtracted.
            deviation: deviation of the three, which is divided by.

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
            MalformedFileError: it is a link out of the folder, or not an image of the
                formats and the size that `read_image` takes.
        """
        path = (self.folder / self.files[index]).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise MalformedFileError(
                f"{path} must lie within {self.folder}, not be linked to"
            )
        size = (self.side, self.side)
        small = read_image(path, _REMEDY).resize(size, Image.Resampling.BILINEAR)
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

    part_of = _read_partition(partition)
    names, attributes_of = _read_attributes(attributes)
    if part_of.keys() != attributes_of.keys():
        alone = min(part_of.keys() ^ attributes_of.keys())
        raise MalformedFileError(
            f"{attributes} and {partition} must list the same images, got "
            f"{short(repr(alone))} in one alone: {_REMEDY}"
        )
    files = [file for file in attributes_of if part_of[file] == part]
    values = [attributes_of[file] for file in files]
    columns = np.array(values, np.int32).reshape(-1, len(names)).T
    labels = dict(zip(names, columns, strict=True))
    return LabelledImages(images, files, labels, side=64)


def _read_partition(path: Path) -> dict[str, str]:
    """The part of each image."""
    rows = _rows(path)
    if path.suffix == ".csv":
        header = next(rows, (1, []))[1]
        if header != ["image_id", "partition"]:
            raise MalformedFileError(
                f"{path}:1: must be image_id,partition, got {short(header)}: {_REMEDY}"
            )
    read = []
    for number, row in rows:
        if len(row) != 2 or row[1] not in {"0", "1", "2"}:
            raise MalformedFileError(
                f"{path}:{number}: must be a file name and 0, 1 or 2, got "
                f"{short(row)}: {_REMEDY}"
            )
        read.append(row)
    without_repetition(path, "image", (file for file, _ in read), _REMEDY)
    return dict(read)


def _read_attributes(path: Path) -> tuple[list[str], dict[str, list[bool]]]:
    """Names of the attributes, and whether each image has them."""
    rows = _rows(path)
    header = next(rows, (1, []))[1]
    if path.suffix == ".csv":
        is_header, names = header[:1] == ["image_id"], header[1:]
    else:
        is_header, names = "".join(header).isdecimal(), next(rows, (2, []))[1]
    if not (is_header and names):
        raise MalformedFileError(
            f"{path}:1: must be the number of images, with the attributes in line 2, "
            f"or, in a .csv, image_id and the attributes, got {short(header)}: "
            f"{_REMEDY}"
        )
    without_repetition(path, "attribute", names, _REMEDY)
    read = []
    for number, row in rows:
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"-1", "1"}:
            raise MalformedFileError(
                f"{path}:{number}: must be a file name and -1 or 1 for each of "
                f"{len(names)} attributes, got {short(row)}: {_REMEDY}"
            )
        read.append((row[0], [value == "1" for value in row[1:]]))
    without_repetition(path, "image", (file for file, _ in read), _REMEDY)
    if path.suffix != ".csv" and header != [str(len(read))]:
        raise MalformedFileError(
            f"{path} must list the {short(header[0])} images of its first line, "
            f"got {len(read)}: is it cut off? {_REMEDY}"
        )
    return names, dict(read)


def office_home(folder: Path, split: Split) -> dict[str, LabelledImages]:
    """Office-Home at 224 x 224, standardised as for ImageNet; a source per domain.

    Sizes are those of SAMO's and LibMTL's trainers. Each domain is one task with 65
    classes and images of its own. The files are:

    - `split/Art_train.txt`, `split/Art_val.txt`, ..., LibMTL's lists (its folder
      `examples/office/data_txt/office-home`): lines such as
      `Art/Calendar/00017.jpg 0`;
    - the images, in `office` or in `folder` itself; `Real_World`, its name in the
      lists, may be `Real World`, its name in the archive.

    Raises:
        ValueError: a file is missing or malformed.
    """
    suffix = ("train", "val", "test")[_index_of(split)]
    images = folder / "office" if (folder / "office").is_dir() else folder

    def source(domain: str) -> LabelledImages:
        listing = _find(folder, f"split/{domain}_{suffix}.txt")
        names = (domain, domain.replace("_", " "))
        there = next((name for name in names if (images / name).is_dir()), domain)
        files, classes = [], []
        for number, line in text_lines(listing, _MAX_LIST_BYTES, _LISTS):
            try:
                file, label = line.rsplit(maxsplit=1)
                classes.append(whole_number(label, 0, OFFICE_CLASSES - 1))
            except ValueError as error:
                raise MalformedFileError(
                    f"{listing}:{number}: must be an image and a class from 0 to "
                    f"{OFFICE_CLASSES - 1}, got {short(repr(line.rstrip()))}: {_LISTS}"
                ) from error
            top, slash, rest = file.partition("/")
            files.append((there if top in names else top) + slash + rest)
        if not files:
            raise MalformedFileError(f"{listing} must list images, got none: {_LISTS}")
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


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and words, between blanks or commas, of each line."""
    for number, line in text_lines(path, _MAX_LIST_BYTES, _REMEDY):
        yield number, line.replace(",", " ").split()
