"""The arguments of benchmarks of data in files, and the benchmark that they say."""

import argparse
import inspect
from functools import partial
from typing import Any

from samo_jax.experiments.command import factor, positive_int, share
from samo_jax.experiments.problems import files, registry
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.training.folders import path

# Those that find data themselves.
_FOUND = ("qm9",)
# By name of an argument of a benchmark's function.
_OPTIONS: dict[str, dict[str, Any]] = {
    "width": {
        "type": factor,
        "default": 1.0,
        "metavar": "FACTOR",
        "help": "of the network's channels (default: 1, the paper's)",
    },
    "network": {
        "choices": list(files.NETWORKS),
        "default": "mtan",
        "help": "SegNet-MTAN or SegNet (default: mtan)",
    },
    "permutation": {
        "type": path,
        "metavar": "FILE",
        "help": "order of the molecules that the split is cut from, a NumPy file such "
        "as LibMTL's random_split (default: a random one, always the same)",
    },
    "molecules": {
        "type": partial(positive_int, most=10**6),
        "metavar": "N",
        "help": "take so many molecules, of each part of the split its share (default: "
        "all)",
    },
    "split_by": {
        "choices": ["random", "scaffold"],
        "default": "random",
        "help": "how molecules are split into 80, 10 and 10 %%; by scaffold, those of "
        "the test part are unlike the others (default: random)",
    },
    "inputs": {
        "nargs": "+",
        "metavar": "COLUMN",
        "help": "columns to predict from (default: all with a name but the tasks)",
    },
    "tasks": {
        "nargs": "+",
        "metavar": "COLUMN",
        "help": "columns to be predicted, each a task (required)",
    },
    "classes": {
        "nargs": "+",
        "metavar": "COLUMN",
        "help": "tasks whose numbers are classes (default: none)",
    },
}
# The same, of one benchmark.
_OPTIONS_OF: dict[str, dict[str, dict[str, Any]]] = {
    "emotions": {
        "train": {
            "choices": ["heads", "lora", "all"],
            "default": "lora",
            "help": "what is trained: heads on what the frozen encoder says, adapters "
            "too, or all parameters (default: lora)",
        },
        "tasks": {
            "choices": ["28", "3"],
            "default": "28",
            "help": "28, one for each emotion, or 3: emotions, sentiments and Ekman's "
            "groups (default: 28)",
        },
        "examples": {
            "type": partial(positive_int, most=10**6),
            "metavar": "N",
            "help": "train on so many sentences (default: all)",
        },
        "rank": {
            "type": partial(positive_int, most=384),
            "default": 8,
            "help": "of the adapters (default: 8)",
        },
        "compute": {
            "choices": ["float32", "bfloat16"],
            "default": "float32",
            "help": "dtype of the encoder's products; parameters and optimiser stay "
            "float32 (default: float32)",
        },
        "class_weights": {
            "type": share,
            "default": 0.5,
            "metavar": "POWER",
            "help": "an emotion's presence weighs as much as it is rare, to this "
            "power; 0: as its absence (default: 0.5)",
        },
        "model": {
            "type": path,
            "metavar": "FOLDER",
            "help": "with config.json, model.safetensors and tokenizer.json of another "
            "BERT encoder (default: those of the package)",
        },
    },
}


def add_data_arguments(
    parser: argparse.ArgumentParser, name: str, batch_size: int
) -> None:
    """Declare the arguments of a benchmark of `registry.OF_DATA`."""
    data, *_ = _parameters(name)
    parser.add_argument(
        "--data",
        type=path,
        metavar=data.upper(),
        help="of the data set, see above"
        + (" (default: those of a package)" if name in _FOUND else " (required)"),
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        help=f"examples a step (default: {batch_size})",
    )
    for option, settings in _options(name).items():
        parser.add_argument(f"--{option.replace('_', '-')}", **settings)


def benchmark_of(name: str, args: argparse.Namespace) -> Benchmark:
    """The benchmark that a command line says.

    Raises:
        SystemExit: in one line, if there are no data, or others than it needs.
    """
    if name not in registry.OF_DATA:
        return registry.BENCHMARKS[name](args.split)
    data, *_ = _parameters(name)
    if args.data is None and name not in _FOUND:
        raise SystemExit(f"--data: the {data} of the data set is required (see --help)")
    given = {option: getattr(args, option) for option in _options(name)}
    options = {option: value for option, value in given.items() if value is not None}
    try:
        return registry.load(name, args.data, args.split, args.batch_size, **options)
    except ValueError as error:
        raise SystemExit(f"--data: {error}") from None


def _options(name: str) -> dict[str, dict[str, Any]]:
    known = _OPTIONS | _OPTIONS_OF.get(name, {})
    return {option: known[option] for option in _parameters(name) if option in known}


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(registry.OF_DATA[name]).parameters)
