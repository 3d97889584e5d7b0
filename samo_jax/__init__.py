"""Sharpness-aware multi-task optimisation in JAX, as Optax gradient transformations."""

from importlib.metadata import version

from samo_jax._diagnostics import delta_m as delta_m
from samo_jax._gramian import combine as combine
from samo_jax._gramian import gramian as gramian
from samo_jax._perturbations import Perturbation as Perturbation
from samo_jax._perturbations import Problem as Problem
from samo_jax._perturbations import global_sam as global_sam
from samo_jax._perturbations import joint_perturbation as joint_perturbation
from samo_jax._perturbations import joint_sam as joint_sam
from samo_jax._perturbations import layerwise_normalize as layerwise_normalize
from samo_jax._perturbations import local_sam as local_sam
from samo_jax._perturbations import scale_to_radius as scale_to_radius
from samo_jax._solvers import SolveInfo as SolveInfo
from samo_jax._solvers import Solver as Solver
from samo_jax._solvers import SolverState as SolverState
from samo_jax._solvers import fairgrad as fairgrad
from samo_jax._solvers import fairgrad_weights as fairgrad_weights
from samo_jax._solvers import mean as mean
from samo_jax._solvers import mgda as mgda
from samo_jax._solvers import mgda_weights as mgda_weights
from samo_jax._spsa import directional_difference as directional_difference
from samo_jax._spsa import spsa_gradient as spsa_gradient
from samo_jax._tasks import LossFn as LossFn
from samo_jax._tasks import mean_value_and_grad as mean_value_and_grad
from samo_jax._tasks import task_gradients as task_gradients
from samo_jax._transform import MultitaskState as MultitaskState
from samo_jax._transform import multitask as multitask
from samo_jax._transform import samo as samo

__version__ = version("samo_jax")
