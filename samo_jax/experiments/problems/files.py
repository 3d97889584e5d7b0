"""The papers' benchmarks of images, in files: NYU-v2, Cityscapes, CelebA, Office-Home.

Networks, losses, augmentation and hyper-parameters are those of SAMO's code
(github.com/OptMN-Lab/SAMO, experiments), the latter of each data set's `run.sh`, else
of its `trainer_samo.py`; mu is 0.01, as by default. What differs:

- its trainers of NYU-v2, Cityscapes and Office-Home each depart from SAMO as
  published, in ways of their own; all benchmarks take the same step here;
- the shared gradient's norm is clipped to 1, there the norm of K times it;
- of SegNet-MTAN, attention modules count as the tasks' own;
- ResNet-18 starts at random, there from weights trained on ImageNet;
- the last epoch counts; there, for CelebA and Office-Home, the one that is best on
  validation examples;
- NYU-v2 and Cityscapes come in two parts, and methods are compared on `val`; for the
  validation split a tenth of the training images is held out here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import flax.linen as nn

from samo_jax.experiments.data.dense_files import (
    CITYSCAPES,
    NYU_V2,
    DenseFiles,
    Layout,
    scale_crop_flip,
)
from samo_jax.experiments.data.image_folders import celeba as read_celeba
from samo_jax.experiments.data.image_folders import office_home as read_office_home
from samo_jax.experiments.data.loading import Source
from samo_jax.experiments.networks.celeba_net import CelebANet
from samo_jax.experiments.networks.multi_input import MultiInput
from samo_jax.experiments.networks.resnet import ResNet18
from samo_jax.experiments.networks.segnet import SegNet, SegNetMTAN
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.problems.dense_tasks import DEPTH, NORMALS, SEGMENTATION
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.problems.on_disk import OnDisk, PerTask
from samo_jax.experiments.problems.optimizers import adam_halved
from samo_jax.experiments.problems.sizes import scaled
from samo_jax.experiments.problems.tasks import (
    CLASSIFICATION,
    DETECTION,
    Task,
)

DenseNetwork: TypeAlias = Literal["mtan", "segnet"]
NETWORKS: dict[DenseNetwork, Callable[..., nn.Module]] = {
    "mtan": SegNetMTAN,
    "segnet": SegNet,
}


RECIPES: dict[str, dict[str, Any]] = {
    "cityscapes": {
        "batch_size": 8,
        "epochs": 200,
        "learning_rate": 1e-4,
        "optimizer": adam_halved(100),
        "rho": 1e-3,
        "alpha": 0.5,
    },
    "nyuv2": {
        "batch_size": 2,
        "epochs": 200,
        "learning_rate": 1e-4,
        "optimizer": adam_halved(100),
        "rho": 1e-3,
        "alpha": 0.5,
    },
    "celeba": {
        "batch_size": 256,
        "epochs": 15,
        "learning_rate": 3e-4,
        "rho": 1e-3,
        "alpha": 0.5,
    },
    "officehome": {
        "batch_size": 64,
        "epochs": 50,
        "learning_rate": 1e-4,
        "optimizer": adam_halved(25, weight_decay=1e-5),
        "rho": 1e-3,
        "alpha": 0.5,
    },
}

# Single-task results that SAMO's code compares with (`BASE` in each `utils.py`), there
# said to be CAGrad's for NYU-v2 and Cityscapes.
CITYSCAPES_TASKS = {
    "segmentation": SEGMENTATION._replace(
        single_task={"mean_iou": 74.01, "pixel_accuracy": 93.16}
    ),
    "depth": DEPTH._replace(  # MTAN's files have disparities
        units={}, single_task={"absolute_error": 0.0125, "relative_error": 27.77}
    ),
}
NYU_V2_TASKS = {
    "segmentation": SEGMENTATION._replace(
        single_task={"mean_iou": 38.30, "pixel_accuracy": 63.76}
    ),
    "depth": DEPTH._replace(
        single_task={"absolute_error": 0.6754, "relative_error": 0.2780}
    ),
    "normals": NORMALS._replace(
        single_task={
            "mean_angle": 25.01,
            "median_angle": 19.21,
            "within_11.25": 30.14,
            "within_22.5": 57.20,
            "within_30": 69.15,
        }
    ),
}


def cityscapes(
    folder: Path, split: Split, width: float = 1.0, network: DenseNetwork = "mtan"
) -> Benchmark:
    """Cityscapes: segmentation and depth; SegNet-MTAN.

    FOLDER holds `train` and `val`, each with `image`, `label_7` and `depth`, of a NumPy
    file an image (0.npy, 1.npy, ...), as MTAN preprocessed them to 128 x 256.
    """
    return _dense(
        folder, split, width, network, CITYSCAPES, CITYSCAPES_TASKS, "cityscapes"
    )


def nyuv2(
    folder: Path, split: Split, width: float = 1.0, network: DenseNetwork = "mtan"
) -> Benchmark:
    """NYU-v2: segmentation, depth and surface normals; SegNet-MTAN.

    FOLDER holds `train` and `val`, each with `image`, `label`, `depth` and `normal`, of
    a NumPy file an image (0.npy, 1.npy, ...), as MTAN preprocessed them to 288 x 384.
    """
    return _dense(folder, split, width, network, NYU_V2, NYU_V2_TASKS, "nyuv2")


def celeba(folder: Path, split: Split, width: float = 1.0) -> Benchmark:
    """CelebA: 40 attributes of faces; CNN.

    FOLDER holds `img_align_celeba`, `list_attr_celeba.txt` and
    `list_eval_partition.txt`, or those in `Img`, `Anno` and `Eval`.
    """
    train, evaluation = read_celeba(folder, "train"), read_celeba(folder, split)
    tasks = tuple(train.labels)

    def net(names: Sequence[str]) -> nn.Module:
        return CelebANet(names, scaled(64, width))

    return Benchmark(
        dict.fromkeys(tasks, DETECTION),
        net,
        OnDisk(train, tasks),
        OnDisk(evaluation, tasks),
        has_modes=True,
        **RECIPES["celeba"],
    )


def officehome(folder: Path, split: Split, width: float = 1.0) -> Benchmark:
    """Office-Home: 65 classes in each of four domains; ResNet-18.

    FOLDER holds `office`, with the domains' images, and `split`, with LibMTL's lists
    `Art_train.txt`, `Art_val.txt`, `Art_test.txt`, ...
    """

    def data(part):
        sources = read_office_home(folder, part)
        return PerTask(
            {task: OnDisk(source, [task]) for task, source in sources.items()}
        )

    def net(names: Sequence[str]) -> nn.Module:
        return MultiInput(ResNet18(names, width=scaled(64, width)))

    train = data("train")
    return Benchmark(
        dict.fromkeys(train.parts, CLASSIFICATION),
        net,
        train,
        data(split),
        has_modes=True,
        **RECIPES["officehome"],
    )


class _Part:
    """The examples of a source from `start` to before `stop`."""

    def __init__(self, source: Source, start: int, stop: int):
        self.source, self.numbers = source, range(start, stop)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int):
        return self.source[self.numbers[index]]


def _dense(
    folder: Path,
    split: Split,
    width: float,
    network: DenseNetwork,
    layout: Layout,
    tasks: dict[str, Task],
    name: str,
) -> Benchmark:
    train = DenseFiles(folder, layout, "train")
    if split == "test":
        evaluation = DenseFiles(folder, layout, "val")
    else:
        held_out = -(-len(train) // 10)
        train, evaluation = (
            _Part(train, held_out, len(train)),
            _Part(train, 0, held_out),
        )
    channels = {"segmentation": layout.num_classes, "depth": 1, "normals": 3}

    def net(names: Sequence[str]) -> nn.Module:
        return NETWORKS[network]({task: channels[task] for task in names}, width)

    return Benchmark(
        tasks,
        net,
        OnDisk(train, tuple(tasks), scale_crop_flip),
        OnDisk(evaluation, tuple(tasks)),
        has_modes=True,
        **RECIPES[name],
    )
