"""CelebA and Office-Home from miniature folders in exactly their formats."""

import io
import os
import pickle
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from samo_jax.experiments.data.image_folders import (
    OFFICE_DOMAINS,
    celeba,
    office_home,
)
from samo_jax.experiments.data.loading import shuffled_batches

from miniatures import (
    ATTRIBUTES,
    CELEBA_LAYOUTS,
    FACES,
    colour,
    write_celeba,
    write_image,
    write_office,
)


@pytest.mark.parametrize("layout", CELEBA_LAYOUTS)
def test_celeba(tmp_path, layout):
    write_celeba(tmp_path, layout)
    for part, split in enumerate(("train", "validation", "test")):
        faces = celeba(tmp_path, split)
        expected = [
            (k, values) for k, (of, values) in enumerate(FACES.values()) if of == part
        ]
        assert len(faces) == len(expected)
        for i, (k, values) in enumerate(expected):
            image, labels = faces[i]
            assert image.shape == (64, 64, 3)
            assert image.dtype == np.float32
            np.testing.assert_allclose(
                image,
                np.broadcast_to(np.array(colour(k)) / 255, image.shape),
                atol=0.02,
            )
            assert list(labels) == ATTRIBUTES
            assert list(labels.values()) == [int(value == 1) for value in values]


def test_resizing_is_bilinear_and_keeps_rows_and_columns(tmp_path):
    """Half a picture black, half white, on a PNG without loss."""
    write_celeba(tmp_path)
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:64] = 255
    path = tmp_path / "img_align_celeba/000001.jpg"
    Image.fromarray(pixels).save(path, format="png")
    image, _ = celeba(tmp_path, "train")[0]
    assert np.all(image[:31] == 1)
    assert np.all(image[33:] == 0)
    assert np.all(np.diff(image[30:34, 0, 0]) <= 0)


@pytest.mark.parametrize("images", ["office", "."])
def test_office_home(tmp_path, images):
    write_office(tmp_path, images)
    for split in ("train", "validation", "test"):
        sources = office_home(tmp_path, split)
        assert tuple(sources) == OFFICE_DOMAINS
        for k, (domain, source) in enumerate(sources.items()):
            assert [source[i][1] for i in range(2)] == [{domain: 0}, {domain: 29}]
            image, _ = source[1]
            assert image.shape == (224, 224, 3)
            assert image.dtype == np.float32
            raw = np.array(colour(k + 1)) / 255
            expected = (raw - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            np.testing.assert_allclose(
                image, np.broadcast_to(expected, image.shape), atol=0.05
            )


def test_sources_can_go_to_other_processes(tmp_path):
    write_celeba(tmp_path)
    faces = celeba(tmp_path, "train")
    copy = pickle.loads(pickle.dumps(faces))
    assert repr(copy) == repr(faces)
    assert "0x" not in repr(faces)
    np.testing.assert_array_equal(copy[1][0], faces[1][0])


def test_batches(tmp_path):
    write_celeba(tmp_path)
    images, labels = next(shuffled_batches(celeba(tmp_path, "train"), 2, seed=0))
    assert images.shape == (2, 64, 64, 3)
    assert sorted(labels["5_o_Clock_Shadow"]) == [0, 1]
    np.testing.assert_array_equal(labels["Male"], [1, 1])


def lines(path, *, number, become):
    """Replace one line, counted from 1; None removes it and what follows."""
    text = path.read_text().splitlines()
    if become is None:
        path.write_text("\n".join(text[: number - 1]) + "\n")
    else:
        text[number - 1] = become
        path.write_text("\n".join(text) + "\n")


@pytest.mark.parametrize(
    ("name", "number", "become", "message"),
    [
        ("list_attr_celeba", 4, "000002.jpg 1 -1", r"attr_celeba.txt:4: .*of 3 attrib"),
        ("list_attr_celeba", 4, "000002.jpg 1 0 1", r"attr_celeba.txt:4: .*-1 or 1"),
        ("list_attr_celeba", 4, "other.jpg 1 1 1", r"same images, got '000002.jpg' in"),
        ("list_attr_celeba", 4, "000001.jpg 1 1 1", r"each image once, got '000001"),
        ("list_attr_celeba", 2, "Male Young Male", r"attribute once, got 'Male' 2"),
        ("list_attr_celeba", 2, "", r"txt:1: must be the number of images, with"),
        ("list_attr_celeba", 1, "5", r"txt must list the 5 images .*, got 4: is it"),
        ("list_attr_celeba", 1, "<html>", r"txt:1: must be the number of images"),
        ("list_attr_celeba", 6, None, r"must list the 4 images .* got 3"),
        ("list_eval_partition", 2, "000002.jpg 3", r"partition.txt:2: .* 0, 1 or 2"),
        ("list_eval_partition", 2, "", r"partition.txt:2: .* got \[\]"),
        ("list_eval_partition", 2, "000001.jpg 1", r"each image once, got '000001.jpg"),
    ],
)
def test_malformed_celeba(tmp_path, name, number, become, message):
    write_celeba(tmp_path)
    lines(tmp_path / f"{name}.txt", number=number, become=become)
    with pytest.raises(ValueError, match=message):
        celeba(tmp_path, "train")


@pytest.mark.parametrize("name", ["list_attr_celeba", "list_eval_partition"])
def test_a_table_needs_its_header(tmp_path, name):
    """Else its first image would be left out."""
    write_celeba(tmp_path, "csv")
    path = tmp_path / f"{name}.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=rf"{name}.csv:1: must be .*image_id"):
        celeba(tmp_path, "train")


def test_lists_that_are_no_text(tmp_path):
    write_celeba(tmp_path / "faces")
    write_office(tmp_path / "office")
    for path, read in (
        ("faces/list_eval_partition.txt", celeba),
        ("office/split/Art_train.txt", office_home),
    ):
        (tmp_path / path).write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=rf"{path} must be text in UTF-8, got"):
            read(tmp_path / Path(path).parts[0], "train")


def test_the_archives_name_of_a_domain(tmp_path):
    """Of the folder alone, and in the lists as well."""
    write_office(tmp_path)
    expected, _ = office_home(tmp_path, "train")["Real_World"][0]
    (tmp_path / "office/Real_World").rename(tmp_path / "office/Real World")
    for listed in ("Real_World", "Real World"):
        listing = tmp_path / "split/Real_World_train.txt"
        listing.write_text(listing.read_text().replace("Real_World", listed))
        image, label = office_home(tmp_path, "train")["Real_World"][0]
        np.testing.assert_array_equal(image, expected)
        assert label == {"Real_World": 0}


def test_an_empty_list(tmp_path):
    write_office(tmp_path)
    (tmp_path / "split/Art_train.txt").write_text("")
    with pytest.raises(ValueError, match=r"Art_train.txt must list images, got none"):
        office_home(tmp_path, "train")


def png(width, height):
    """A picture that says it has this size."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, format="png")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an image in JPEG, PNG"),
        (b"<html></html>", "is not an image in JPEG, PNG"),
        (EPS, "is not an image in JPEG, PNG"),
        (png(1, 1)[:40], "is not an image in JPEG, PNG"),
        (png(9000, 9000), r"is not an image .*9000 x 9000 pixels, more than"),
        (png(2**30, 2**30), r"is not an image"),
        (None, "must be a regular file, got a folder, pipe or device"),
    ],
    ids=["empty", "html", "eps", "cut", "large", "bomb", "pipe"],
)
def test_what_is_not_an_image(tmp_path, monkeypatch, content, message):
    """And no other program is started to find that out."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    write_celeba(tmp_path)
    faces = celeba(tmp_path, "train")
    path = tmp_path / "img_align_celeba/000001.jpg"
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"000001.jpg {message}.* unpack the data"):
        faces[0]
    assert not started


@pytest.mark.parametrize(
    ("become", "message"),
    [
        ("Art/Calendar/00001.jpg", r"Art_train.txt:1: .* class from 0 to 64"),
        ("Art/Calendar/00001.jpg 65", r"Art_train.txt:1: .* class from 0 to 64"),
        ("Art/Calendar/00001.jpg -1", r"Art_train.txt:1: .* class from 0 to 64"),
        ("Art/Calendar/00001.jpg \N{SUPERSCRIPT TWO}", r"txt:1: .* class from 0 to 64"),
        ("Art/Calendar/00009.jpg 0", r"1 of 2 listed images are missing.*00009.jpg"),
        ("../secret.jpg 0", r"'../secret.jpg' must be a path within"),
        ("Art/../../secret.jpg 0", r"must be a path within"),
        ("/etc/passwd 0", r"'/etc/passwd' must be a path within"),
    ],
)
def test_malformed_office_home(tmp_path, become, message):
    write_office(tmp_path)
    lines(tmp_path / "split/Art_train.txt", number=1, become=become)
    with pytest.raises(ValueError, match=message):
        office_home(tmp_path, "train")


def test_links_out_of_the_folder_are_refused(tmp_path):
    write_office(tmp_path / "data")
    write_image(tmp_path / "secret.jpg", (0, 0, 0))
    link = tmp_path / "data/office/Art/Calendar/00001.jpg"
    link.unlink()
    link.symlink_to(tmp_path / "secret.jpg")
    source = office_home(tmp_path / "data", "train")["Art"]
    with pytest.raises(ValueError, match="must lie within"):
        source[0]
    assert source[1][1] == {"Art": 29}


def test_a_linked_image_folder_is_the_users_own(tmp_path):
    write_celeba(tmp_path / "data")
    os.rename(tmp_path / "data/img_align_celeba", tmp_path / "elsewhere")
    (tmp_path / "data/img_align_celeba").symlink_to(tmp_path / "elsewhere")
    assert celeba(tmp_path / "data", "test")[0][0].shape == (64, 64, 3)


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match="must hold img_align_celeba"):
        celeba(tmp_path, "train")
    with pytest.raises(ValueError, match=r"must hold split/Art_val\.txt"):
        office_home(tmp_path, "validation")
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba/000003.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 listed images .* '000003.jpg'"):
        celeba(tmp_path, "train")


@pytest.mark.parametrize("read", [celeba, office_home])
def test_unknown_split(tmp_path, read):
    with pytest.raises(ValueError, match=r"`split` must be one of .* got 'val'"):
        read(tmp_path, "val")
