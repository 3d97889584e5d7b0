"""Perturbations: one small file per sharpness method."""

from samo_jax._perturbations._base import Perturbation as Perturbation
from samo_jax._perturbations._base import Problem as Problem
from samo_jax._perturbations._global_sam import global_sam as global_sam
from samo_jax._perturbations._joint_sam import joint_perturbation as joint_perturbation
from samo_jax._perturbations._joint_sam import joint_sam as joint_sam
from samo_jax._perturbations._local_sam import local_sam as local_sam
from samo_jax._perturbations._radius import layerwise_normalize as layerwise_normalize
from samo_jax._perturbations._radius import scale_to_radius as scale_to_radius
