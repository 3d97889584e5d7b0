"""Sharpness-aware multi-task optimisation in JAX, as Optax gradient transformations."""

from importlib.metadata import PackageNotFoundError, version

from samo_jax._combiners import db_mtl_momentum as db_mtl_momentum
from samo_jax._combiners import excess_mtl as excess_mtl
from samo_jax._combiners import graddrop as graddrop
from samo_jax._combiners import grouped as grouped
from samo_jax._combiners import moco as moco
from samo_jax._combiners import modo as modo
from samo_jax._combiners import sdmgrad as sdmgrad
from samo_jax._combiners import trimmed_mean as trimmed_mean
from samo_jax._config import config as config
from samo_jax._diagnostics import conflict_rate as conflict_rate
from samo_jax._diagnostics import delta_m as delta_m
from samo_jax._diagnostics import gradient_cosines as gradient_cosines
from samo_jax._f_mtl import f_mtl as f_mtl
from samo_jax._faults import keep_finite as keep_finite
from samo_jax._gradients import mean_value_and_grad as mean_value_and_grad
from samo_jax._gradients import task_gradients as task_gradients
from samo_jax._gramian import combine as combine
from samo_jax._gramian import gramian as gramian
from samo_jax._look_sam import look_sam as look_sam
from samo_jax._perturbations import Direction as Direction
from samo_jax._perturbations import Perturbation as Perturbation
from samo_jax._perturbations import Problem as Problem
from samo_jax._perturbations import adaptive_sam as adaptive_sam
from samo_jax._perturbations import efficient_sam as efficient_sam
from samo_jax._perturbations import fisher_sam as fisher_sam
from samo_jax._perturbations import friendly_sam as friendly_sam
from samo_jax._perturbations import global_sam as global_sam
from samo_jax._perturbations import joint_perturbation as joint_perturbation
from samo_jax._perturbations import joint_sam as joint_sam
from samo_jax._perturbations import layerwise_normalize as layerwise_normalize
from samo_jax._perturbations import layerwise_sam as layerwise_sam
from samo_jax._perturbations import local_sam as local_sam
from samo_jax._perturbations import memory_sam as memory_sam
from samo_jax._perturbations import modality_aware_sam as modality_aware_sam
from samo_jax._perturbations import momentum_sam as momentum_sam
from samo_jax._perturbations import monge_sam as monge_sam
from samo_jax._perturbations import probe as probe
from samo_jax._perturbations import sam as sam
from samo_jax._perturbations import scale_to_radius as scale_to_radius
from samo_jax._perturbations import surrogate_gap_sam as surrogate_gap_sam
from samo_jax._precision import mixed_precision as mixed_precision
from samo_jax._samo import samo as samo
from samo_jax._shapley import shapley_values as shapley_values
from samo_jax._single_task import single_task as single_task
from samo_jax._solvers import Combiner as Combiner
from samo_jax._solvers import SolveInfo as SolveInfo
from samo_jax._solvers import Solver as Solver
from samo_jax._solvers import SolverState as SolverState
from samo_jax._solvers import aligned_mtl as aligned_mtl
from samo_jax._solvers import aligned_mtl_weights as aligned_mtl_weights
from samo_jax._solvers import cagrad as cagrad
from samo_jax._solvers import cagrad_weights as cagrad_weights
from samo_jax._solvers import conflict_free_inverse as conflict_free_inverse
from samo_jax._solvers import (
    conflict_free_inverse_weights as conflict_free_inverse_weights,
)
from samo_jax._solvers import constant as constant
from samo_jax._solvers import db_mtl as db_mtl
from samo_jax._solvers import db_mtl_weights as db_mtl_weights
from samo_jax._solvers import dualproj as dualproj
from samo_jax._solvers import dualproj_weights as dualproj_weights
from samo_jax._solvers import fairgrad as fairgrad
from samo_jax._solvers import fairgrad_weights as fairgrad_weights
from samo_jax._solvers import gradnorm as gradnorm
from samo_jax._solvers import gradvac as gradvac
from samo_jax._solvers import gradvac_weights as gradvac_weights
from samo_jax._solvers import imtl_g as imtl_g
from samo_jax._solvers import imtl_g_weights as imtl_g_weights
from samo_jax._solvers import krum as krum
from samo_jax._solvers import krum_weights as krum_weights
from samo_jax._solvers import mean as mean
from samo_jax._solvers import mgda as mgda
from samo_jax._solvers import mgda_weights as mgda_weights
from samo_jax._solvers import nash_mtl as nash_mtl
from samo_jax._solvers import nash_mtl_weights as nash_mtl_weights
from samo_jax._solvers import pcgrad as pcgrad
from samo_jax._solvers import pcgrad_weights as pcgrad_weights
from samo_jax._solvers import random_weights as random_weights
from samo_jax._solvers import smoothed as smoothed
from samo_jax._solvers import total as total
from samo_jax._solvers import upgrad as upgrad
from samo_jax._solvers import upgrad_weights as upgrad_weights
from samo_jax._spsa import directional_difference as directional_difference
from samo_jax._spsa import spsa_gradient as spsa_gradient
from samo_jax._tasks import LossFn as LossFn
from samo_jax._transform import MultitaskState as MultitaskState
from samo_jax._transform import multitask as multitask
from samo_jax._weightings import WeightingState as WeightingState
from samo_jax._weightings import cosmos as cosmos
from samo_jax._weightings import cosmos_loss as cosmos_loss
from samo_jax._weightings import dwa as dwa
from samo_jax._weightings import famo as famo
from samo_jax._weightings import geometric_mean as geometric_mean
from samo_jax._weightings import geometric_mean_loss as geometric_mean_loss
from samo_jax._weightings import imtl_l as imtl_l
from samo_jax._weightings import imtl_l_loss as imtl_l_loss
from samo_jax._weightings import log_losses as log_losses
from samo_jax._weightings import pbi as pbi
from samo_jax._weightings import pbi_loss as pbi_loss
from samo_jax._weightings import stch as stch
from samo_jax._weightings import stch_loss as stch_loss
from samo_jax._weightings import uncertainty as uncertainty
from samo_jax._weightings import uncertainty_loss as uncertainty_loss

try:
    __version__ = version("samo_jax")
except PackageNotFoundError:  # from a checkout, not installed
    __version__ = "0+unknown"
