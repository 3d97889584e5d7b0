"""Features of sentences by a pretrained encoder, computed once."""

import os
from hashlib import sha256

import jax
import numpy as np
from rich.progress import track

from samo_jax.experiments.data.caches import cache_folder
from samo_jax.experiments.data.checked_files import short
from samo_jax.experiments.data.malformed import MalformedFileError
from samo_jax.experiments.networks.minilm import Encoder
from samo_jax.experiments.networks.pretrained import Pretrained
from samo_jax.experiments.problems.texts import Texts

_BATCH = 256


def sentence_features(
    pretrained: Pretrained, tokens: np.ndarray, lengths: tuple[int, ...]
) -> np.ndarray:
    """The encoder's output for each sentence, shape (N, width), float32.

    They are computed under a progress bar, and kept in the user's folder for caches.

    Args:
        pretrained: encoder.
        tokens: tokens of the sentences, shape (N, longest).
        lengths: lengths that batches are padded to, ascending.

    Raises:
        MalformedFileError: what was kept cannot be read.
    """
    digest = sha256(tokens.tobytes())
    for leaf in jax.tree.leaves(pretrained.params):
        digest.update(leaf.tobytes())
    cache = cache_folder() / f"sentences-{digest.hexdigest()[:16]}.npy"
    if cache.exists():
        return _kept(cache, (len(tokens), pretrained.size.width))
    apply = jax.jit(Encoder(pretrained.size).apply)
    texts = Texts(tokens, {"row": np.arange(len(tokens))}, lengths)
    features = np.empty((len(tokens), pretrained.size.width), np.float32)
    batches = -(-len(tokens) // _BATCH)
    for batch in track(texts.batches(_BATCH), "Encoding sentences", batches):
        outputs = apply({"params": pretrained.params}, batch.inputs)
        features[batch.labels["row"]] = outputs
    cache.parent.mkdir(parents=True, exist_ok=True)
    part = cache.with_suffix(f".{os.getpid()}.npy")
    np.save(part, features)
    part.replace(cache)
    return features


def _kept(cache, shape: tuple[int, int]) -> np.ndarray:
    try:
        features = np.load(cache)
        if features.shape != shape or features.dtype != np.float32:
            raise ValueError(f"shape {features.shape}, {features.dtype}")
    except (OSError, ValueError, EOFError) as error:
        raise MalformedFileError(
            f"{cache} cannot be read ({short(error)}): delete it, and it is made anew"
        ) from error
    return features
