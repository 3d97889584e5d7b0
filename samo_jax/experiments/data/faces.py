"""Drawn faces with forty binary attributes, as many and as unequal as CelebA's."""

from typing import NamedTuple

import numpy as np

# What a face is drawn from; each is uniform in [-1, 1].
_TRAITS = (
    "width",
    "height",
    "across",
    "down",
    "skin",
    "background",
    "hair_tone",
    "hair_length",
    "fringe",
    "eye_size",
    "eye_distance",
    "gaze",
    "brow_height",
    "brow_slant",
    "brow_weight",
    "nose",
    "mouth_width",
    "smile",
    "mouth_open",
    "beard",
    "glasses",
    "hat",
    "light",
    "warmth",
)

# Each attribute: the share of faces that have it, and the traits that speak for it.
_ATTRIBUTES: dict[str, tuple[float, str]] = {
    "round_face": (0.4, "width -height"),
    "large_face": (0.3, "width height"),
    "left_of_centre": (0.5, "-across"),
    "low_in_picture": (0.5, "down"),
    "pale_skin": (0.2, "skin"),
    "bright_background": (0.5, "background"),
    "black_hair": (0.25, "-hair_tone"),
    "blond_hair": (0.15, "hair_tone warmth"),
    "grey_hair": (0.1, "hair_tone -warmth"),
    "long_hair": (0.4, "hair_length"),
    "bald": (0.1, "-hair_length -fringe"),
    "fringe": (0.3, "fringe"),
    "big_eyes": (0.4, "eye_size"),
    "narrow_eyes": (0.15, "-eye_size"),
    "wide_set_eyes": (0.4, "eye_distance -width"),
    "looks_left": (0.5, "-gaze"),
    "high_brows": (0.3, "brow_height"),
    "arched_brows": (0.3, "brow_slant brow_height"),
    "angry_brows": (0.2, "-brow_slant -brow_height"),
    "bushy_brows": (0.2, "brow_weight"),
    "long_nose": (0.3, "nose"),
    "small_nose": (0.2, "-nose"),
    "wide_mouth": (0.4, "mouth_width"),
    "smiling": (0.5, "smile"),
    "mouth_open": (0.4, "mouth_open"),
    "laughing": (0.2, "smile mouth_open"),
    "pouting": (0.1, "-smile -mouth_width"),
    "beard": (0.2, "beard"),
    "no_beard": (0.6, "-beard"),
    "glasses": (0.15, "glasses"),
    "hat": (0.1, "hat"),
    "lit_from_left": (0.5, "-light"),
    "warm_light": (0.5, "warmth"),
    "friendly": (0.4, "smile brow_slant eye_size"),
    "tired": (0.2, "-eye_size -brow_height -mouth_open"),
    "surprised": (0.15, "eye_size brow_height mouth_open"),
    "stern": (0.2, "-smile -brow_slant brow_weight"),
    "young": (0.7, "eye_size -nose -beard hair_length"),
    "dressed_up": (0.2, "hat glasses -beard"),
    "high_contrast": (0.4, "skin -background"),
}
ATTRIBUTES = tuple(_ATTRIBUTES)


class Faces(NamedTuple):
    """Pictures and their attributes.

    Attributes:
        images: shape (N, size, size, 3), float32, in [0, 1] but for noise.
        labels: shape (N,) ints, 0 or 1, for each of `ATTRIBUTES`.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]


def draw_faces(
    count: int, seed: int, *, size: int = 16, noise: float = 0.05, wrong: float = 0.0
) -> Faces:
    """Faces with all their attributes, the same for a seed.

    An attribute is whether the sum of its traits is above a fixed threshold, so that
    attributes share traits, agree and contradict each other.

    Args:
        count: N, number of faces.
        seed: seed of traits, noise and wrong labels.
        size: height and width in pixels.
        noise: standard deviation of the pixels' noise.
        wrong: share of labels that are wrong, the same for every attribute.

    Returns:
        The faces.
    """
    rng = np.random.default_rng(seed)
    traits = rng.uniform(-1, 1, (count, len(_TRAITS)))
    images = _draw(dict(zip(_TRAITS, traits.T, strict=True)), size)
    images += noise * rng.normal(size=images.shape)
    # Thresholds are quantiles, always of the same sample.
    reference = np.random.default_rng(0).uniform(-1, 1, (10_000, len(_TRAITS)))
    labels = {}
    for attribute, (share, speaking) in _ATTRIBUTES.items():
        signs = np.zeros(len(_TRAITS))
        for trait in speaking.split():
            signs[_TRAITS.index(trait.strip("-"))] = -1 if trait[0] == "-" else 1
        threshold = np.quantile(reference @ signs, 1 - share)
        has = traits @ signs > threshold
        labels[attribute] = (has ^ (rng.random(count) < wrong)).astype(np.int32)
    return Faces(images.astype(np.float32), labels)


def _draw(traits: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Soft ellipses over one another, from the back to the front."""
    t = {name: value[:, None, None] for name, value in traits.items()}
    y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    x, y = x - 0.15 * t["across"], y - 0.1 - 0.1 * t["down"]
    softness = 1 / size
    canvas = np.zeros((*x.shape, 3)) + 0.5 + 0.3 * t["background"][..., None]

    def ellipse(x, y, width, height):
        distance = np.sqrt((x / width) ** 2 + (y / height) ** 2)
        return 1 / (1 + np.exp(np.minimum((distance - 1) * height / softness, 50)))

    def paint(where, brightness, tint=(1.0, 1.0, 1.0)):
        color = np.clip(brightness, 0, 1) * np.array(tint)
        canvas[:] += where[..., None] * (color - canvas)

    width, height = 0.5 + 0.1 * t["width"], 0.65 + 0.08 * t["height"]
    hair = (0.4 + 0.35 * t["hair_tone"])[..., None], (1.0, 0.85, 0.65)
    length = 0.5 + 0.5 * t["hair_length"]
    paint(
        ellipse(x, y + 0.15 - 0.3 * length, width + 0.15, height + 0.1) * length, *hair
    )
    paint(
        ellipse(x, y, width, height), (0.6 + 0.25 * t["skin"])[..., None], (1, 0.8, 0.7)
    )
    above = 1 / (1 + np.exp((y + 0.35 * height - 0.15 * t["fringe"]) / softness))
    paint(ellipse(x, y, width, height) * above * (t["fringe"] > -0.5), *hair)

    apart, brow = 0.2 + 0.05 * t["eye_distance"], -0.3 - 0.06 * t["brow_height"]
    for side in (-1, 1):
        at = x - side * apart
        open_ = 0.07 + 0.04 * t["eye_size"]
        paint(ellipse(at, y + 0.12, 0.12, open_), 1.0)
        paint(ellipse(at - 0.05 * t["gaze"], y + 0.12, 0.05, open_), 0.1)
        slant = side * at * t["brow_slant"]
        paint(
            ellipse(at, y - brow + 0.5 * slant, 0.14, 0.04 + 0.025 * t["brow_weight"]),
            0.15,
        )
        ring = ellipse(at, y + 0.12, 0.2, 0.17) - ellipse(at, y + 0.12, 0.15, 0.12)
        paint(ring * (t["glasses"] > 0.7), 0.05)
    paint(ellipse(x, y - 0.08, 0.05, 0.1 + 0.06 * t["nose"]), 0.35)
    wide = 0.25 + 0.08 * t["mouth_width"]
    bend = y - 0.35 + 0.12 * t["smile"] * (np.clip(x / wide, -1, 1) ** 2 - 0.5)
    chin = ellipse(x, y - 0.1, width, height - 0.1) * (y > 0.2)
    paint(chin * np.clip(t["beard"], 0, 1), 0.25)
    paint(ellipse(x, bend, wide, 0.06 + 0.05 * t["mouth_open"]), 0.4, (1.0, 0.3, 0.3))
    brim = ellipse(x, y + 0.75 * height, width + 0.25, 0.12)
    paint(np.maximum(brim, ellipse(x, y + height, width, 0.3)) * (t["hat"] > 0.8), 0.2)

    light = 1 + 0.25 * t["light"] * x
    tint = 0.12 * t["warmth"][..., None] * np.array([1.0, 0.0, -1.0])
    return canvas * light[..., None] + tint
