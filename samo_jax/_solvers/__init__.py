"""Gradient combiners: Gramian to weights, one small file per method."""

from samo_jax._solvers._base import SolveInfo as SolveInfo
from samo_jax._solvers._base import Solver as Solver
from samo_jax._solvers._base import SolverState as SolverState
from samo_jax._solvers._fairgrad import fairgrad as fairgrad
from samo_jax._solvers._fairgrad import fairgrad_weights as fairgrad_weights
from samo_jax._solvers._mean import mean as mean
from samo_jax._solvers._mgda import mgda as mgda
from samo_jax._solvers._mgda import mgda_weights as mgda_weights
