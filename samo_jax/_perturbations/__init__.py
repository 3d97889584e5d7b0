"""Perturbations: one small file per sharpness method."""

from samo_jax._perturbations._adaptive_sam import adaptive_sam as adaptive_sam
from samo_jax._perturbations._base import Direction as Direction
from samo_jax._perturbations._base import Perturbation as Perturbation
from samo_jax._perturbations._base import Problem as Problem
from samo_jax._perturbations._efficient_sam import efficient_sam as efficient_sam
from samo_jax._perturbations._fisher_sam import fisher_sam as fisher_sam
from samo_jax._perturbations._friendly_sam import friendly_sam as friendly_sam
from samo_jax._perturbations._global_sam import global_sam as global_sam
from samo_jax._perturbations._joint_sam import joint_perturbation as joint_perturbation
from samo_jax._perturbations._joint_sam import joint_sam as joint_sam
from samo_jax._perturbations._layerwise_sam import layerwise_sam as layerwise_sam
from samo_jax._perturbations._local_sam import local_sam as local_sam
from samo_jax._perturbations._memory_sam import memory_sam as memory_sam
from samo_jax._perturbations._modality_aware_sam import (
    modality_aware_sam as modality_aware_sam,
)
from samo_jax._perturbations._momentum_sam import momentum_sam as momentum_sam
from samo_jax._perturbations._monge_sam import monge_sam as monge_sam
from samo_jax._perturbations._probe import probe as probe
from samo_jax._perturbations._radius import layerwise_normalize as layerwise_normalize
from samo_jax._perturbations._radius import scale_to_radius as scale_to_radius
from samo_jax._perturbations._sam import sam as sam
from samo_jax._perturbations._surrogate_gap_sam import (
    surrogate_gap_sam as surrogate_gap_sam,
)
