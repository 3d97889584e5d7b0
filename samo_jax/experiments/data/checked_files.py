"""Files of data sets, and what they hold: one check per kind.

Each fault is a `MalformedFileError` in one line: the file, what was expected, what was
got, and the way out.
"""

import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from samo_jax.experiments.data.malformed import MalformedFileError

# No data set has greater ones, and float32 can hold multiples of them.
LARGEST_NUMBER = 1e30
MAX_ARRAY_BYTES = 2**30
MAX_IMAGE_BYTES = MAX_IMAGE_PIXELS = 2**26
# Those that Pillow decodes itself: for EPS, say, it starts another program.
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP")


def short(value: object) -> str:
    r"""The text of a value in one line of at most 160 characters, for an error.

    >>> short("one\ntwo")
    'one two'
    """
    text = " ".join(str(value).split())
    return text if len(text) <= 160 else f"{text[:157]}..."


def regular_file(path: Path, max_bytes: int, remedy: str) -> Path:
    """The path, of a regular file of at most `max_bytes`.

    It is not opened, as opening a pipe waits for its writer.

    Args:
        path: path of the file.
        max_bytes: greatest size of the file.
        remedy: way out where it is something else, for the error.

    Raises:
        MalformedFileError: it is something else.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise MalformedFileError(f"{path} is missing: {remedy}") from error
    if not stat.S_ISREG(status.st_mode):
        raise MalformedFileError(
            f"{path} must be a regular file, got a folder, pipe or device: {remedy}"
        )
    if status.st_size > max_bytes:
        raise MalformedFileError(
            f"{path} must have at most {max_bytes} bytes, got {status.st_size}: "
            f"{remedy}"
        )
    return path


def text_lines(path: Path, max_bytes: int, remedy: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of a file in UTF-8.

    Arguments and errors are those of `regular_file`.
    """
    with regular_file(path, max_bytes, remedy).open(encoding="utf-8-sig") as lines:
        try:
            yield from enumerate(lines, 1)
        except UnicodeDecodeError as error:
            raise MalformedFileError(
                f"{path} must be text in UTF-8, got other bytes ({error}): {remedy}"
            ) from error


def whole_number(text: str, low: int, high: int) -> int:
    """The whole number from `low` to `high` that a text is.

    Raises:
        ValueError: it is not.
    """
    # int() takes 1_0 and digits of all scripts, too.
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) or not low <= int(text) <= high:
        raise ValueError(text)
    return int(text)


def finite_number(text: str) -> float:
    """The number that a text is, of at most `LARGEST_NUMBER`.

    Raises:
        ValueError: it is not.
    """
    if "_" in text or not abs(float(text)) <= LARGEST_NUMBER:
        raise ValueError(text)
    return float(text)


def without_repetition(path: Path, what: str, values: Iterable, remedy: str) -> None:
    """Check that each of the values is there once.

    Raises:
        MalformedFileError: the first that is there again.
    """
    for value, count in Counter(values).items():
        if count > 1:
            raise MalformedFileError(
                f"{path} must name each {what} once, got {short(repr(value))} {count} "
                f"times: {remedy}"
            )


def read_array(
    path: Path,
    shape: tuple[int, ...],
    remedy: str,
    *,
    low: float = -LARGEST_NUMBER,
    high: float = LARGEST_NUMBER,
    whole: bool = False,
) -> np.ndarray:
    """The numbers of a NumPy file, float32.

    Args:
        path: path of the file.
        shape: shape that it must have.
        remedy: way out where it holds something else, for the error.
        low: the least number allowed.
        high: the greatest number allowed.
        whole: whether all have to be whole.

    Raises:
        MalformedFileError: it holds something else.
    """
    regular_file(path, MAX_ARRAY_BYTES, remedy)
    try:
        # Mapped, so that a header takes no memory, whatever shape it claims.
        stored = np.lib.format.open_memmap(path, mode="r")
        if stored.dtype.kind not in "biuf":
            raise ValueError(f"its type is {stored.dtype}")
    except Exception as error:  # whatever the parser of headers meets in some bytes
        raise MalformedFileError(
            f"{path} is not a NumPy array of numbers ({short(error)}); {remedy}"
        ) from error
    if stored.shape != shape:
        raise MalformedFileError(
            f"{path} has shape {stored.shape}, expected {shape}; {remedy}"
        )
    with np.errstate(over="ignore"):
        array = np.array(stored, np.float32)
    least, greatest = array.min(), array.max()
    in_range = low <= least and greatest <= high  # which NaN is not
    if not in_range or (whole and np.any(array != np.rint(array))):
        raise MalformedFileError(
            f"{path} has numbers from {least:g} to {greatest:g}, expected "
            f"{'whole' if whole else 'finite'} numbers from {low:g} to {high:g}; "
            f"{remedy}"
        )
    return array


def read_image(path: Path, remedy: str) -> Image.Image:
    """The picture in a file of one of `IMAGE_FORMATS`, in red, green and blue.

    Args:
        path: path of the file.
        remedy: way out where it holds something else, for the error.

    Raises:
        MalformedFileError: it holds something else, or more than `MAX_IMAGE_PIXELS`.
    """
    regular_file(path, MAX_IMAGE_BYTES, remedy)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, more than "
                    f"{MAX_IMAGE_PIXELS}"
                )
            return image.convert("RGB")
    except Exception as error:  # whatever Pillow meets in some bytes
        raise MalformedFileError(
            f"{path} is not an image in {', '.join(IMAGE_FORMATS)} ({short(error)}); "
            f"{remedy}"
        ) from error
