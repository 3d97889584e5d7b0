"""Features of sentences by a pretrained encoder, computed once."""

from hashlib import sha256
from pathlib import Path

import jax
import numpy as np
from rich.progress import track

from samo_jax.experiments.data.caches import cache_folder, cached
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
    shape = len(tokens), pretrained.size.width

    def load(path: Path) -> np.ndarray:
        features = np.load(path)
        if features.shape != shape or features.dtype != np.float32:
            raise ValueError(f"shape {features.shape}, {features.dtype}")
        return features

    def make() -> np.ndarray:
        apply = jax.jit(Encoder(pretrained.size).apply)
        texts = Texts(tokens, {"row": np.arange(len(tokens))}, lengths)
        features = np.empty(shape, np.float32)
        batches = -(-len(tokens) // _BATCH)
        for batch in track(texts.batches(_BATCH), "Encoding sentences", batches):
            outputs = apply({"params": pretrained.params}, batch.inputs)
            features[batch.labels["row"]] = outputs
        return features

    file = cache_folder() / f"sentences-{digest.hexdigest()[:16]}.npy"
    return cached(file, load, make, np.save)
