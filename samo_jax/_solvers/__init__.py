"""Gradient combiners: Gramian to weights, one small file per method."""

from samo_jax._solvers._aligned_mtl import aligned_mtl as aligned_mtl
from samo_jax._solvers._aligned_mtl import aligned_mtl_weights as aligned_mtl_weights
from samo_jax._solvers._base import Combiner as Combiner
from samo_jax._solvers._base import SolveInfo as SolveInfo
from samo_jax._solvers._base import Solver as Solver
from samo_jax._solvers._base import SolverState as SolverState
from samo_jax._solvers._cagrad import cagrad as cagrad
from samo_jax._solvers._cagrad import cagrad_weights as cagrad_weights
from samo_jax._solvers._conflict_free_inverse import (
    conflict_free_inverse as conflict_free_inverse,
)
from samo_jax._solvers._conflict_free_inverse import (
    conflict_free_inverse_weights as conflict_free_inverse_weights,
)
from samo_jax._solvers._constant import constant as constant
from samo_jax._solvers._db_mtl import db_mtl as db_mtl
from samo_jax._solvers._db_mtl import db_mtl_weights as db_mtl_weights
from samo_jax._solvers._dualproj import dualproj as dualproj
from samo_jax._solvers._dualproj import dualproj_weights as dualproj_weights
from samo_jax._solvers._fairgrad import fairgrad as fairgrad
from samo_jax._solvers._fairgrad import fairgrad_weights as fairgrad_weights
from samo_jax._solvers._gradnorm import gradnorm as gradnorm
from samo_jax._solvers._gradvac import gradvac as gradvac
from samo_jax._solvers._gradvac import gradvac_weights as gradvac_weights
from samo_jax._solvers._imtl_g import imtl_g as imtl_g
from samo_jax._solvers._imtl_g import imtl_g_weights as imtl_g_weights
from samo_jax._solvers._krum import krum as krum
from samo_jax._solvers._krum import krum_weights as krum_weights
from samo_jax._solvers._mean import mean as mean
from samo_jax._solvers._mgda import mgda as mgda
from samo_jax._solvers._mgda import mgda_weights as mgda_weights
from samo_jax._solvers._nash_mtl import nash_mtl as nash_mtl
from samo_jax._solvers._nash_mtl import nash_mtl_weights as nash_mtl_weights
from samo_jax._solvers._pcgrad import pcgrad as pcgrad
from samo_jax._solvers._pcgrad import pcgrad_weights as pcgrad_weights
from samo_jax._solvers._random_weights import random_weights as random_weights
from samo_jax._solvers._smoothed import smoothed as smoothed
from samo_jax._solvers._total import total as total
from samo_jax._solvers._upgrad import upgrad as upgrad
from samo_jax._solvers._upgrad import upgrad_weights as upgrad_weights
