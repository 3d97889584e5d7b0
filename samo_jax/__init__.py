"""Sharpness-aware multi-task optimisation in JAX, as Optax gradient transformations."""

from importlib import metadata as _metadata

from samo_jax._absent_tasks import keep_finite
from samo_jax._by_task import by_task
from samo_jax._combine_gradients import combine_gradients
from samo_jax._combiners import _registry as _combiner_registry
from samo_jax._combiners._registry import *
from samo_jax._config import config
from samo_jax._diagnostics import conflict_rate, delta_m, gradient_cosines
from samo_jax._f_mtl import f_mtl
from samo_jax._gradients import mean_value_and_grad, task_gradients
from samo_jax._gramian import combine, gramian
from samo_jax._label_uses import infer_labels
from samo_jax._look_sam import look_sam
from samo_jax._masked_mean import masked_mean
from samo_jax._multitask import multitask
from samo_jax._perturbations import _registry as _perturbation_registry
from samo_jax._perturbations._registry import *
from samo_jax._precision import mixed_precision
from samo_jax._problem import Problem
from samo_jax._report import report
from samo_jax._representation import representation
from samo_jax._samo import samo
from samo_jax._shapley import shapley_values
from samo_jax._single_task import single_task
from samo_jax._spsa import directional_difference, spsa_gradient
from samo_jax._state import Diagnostics, KeptWeights, MultitaskState
from samo_jax._tasks import LossFn
from samo_jax._transformations import TRANSFORMATIONS

__all__ = [
    "TRANSFORMATIONS",
    "Diagnostics",
    "KeptWeights",
    "LossFn",
    "MultitaskState",
    "Problem",
    "__version__",
    "by_task",
    "combine",
    "combine_gradients",
    "config",
    "conflict_rate",
    "delta_m",
    "directional_difference",
    "f_mtl",
    "gradient_cosines",
    "gramian",
    "infer_labels",
    "keep_finite",
    "look_sam",
    "masked_mean",
    "mean_value_and_grad",
    "mixed_precision",
    "multitask",
    "report",
    "representation",
    "samo",
    "shapley_values",
    "single_task",
    "spsa_gradient",
    "task_gradients",
]
__all__ += _combiner_registry.__all__
__all__ += _perturbation_registry.__all__

try:
    __version__ = _metadata.version("samo_jax")
except _metadata.PackageNotFoundError:  # from a checkout, not installed
    __version__ = "0+unknown"
