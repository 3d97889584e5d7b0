"""`PERTURBATIONS`: the registry of perturbations, and their public names.

A new perturbation has its file, and here an import, a name and an entry.
"""

from samo_jax._perturbations._adaptive_sam import adaptive_sam
from samo_jax._perturbations._base import Direction, Perturbation
from samo_jax._perturbations._efficient_sam import efficient_sam
from samo_jax._perturbations._fisher_sam import fisher_sam
from samo_jax._perturbations._friendly_sam import friendly_sam
from samo_jax._perturbations._global_sam import global_sam
from samo_jax._perturbations._joint_perturbation import joint_perturbation
from samo_jax._perturbations._joint_sam import joint_sam
from samo_jax._perturbations._layerwise_sam import layerwise_sam
from samo_jax._perturbations._local_sam import local_sam
from samo_jax._perturbations._memory_sam import memory_sam
from samo_jax._perturbations._modality_aware_sam import modality_aware_sam
from samo_jax._perturbations._momentum_sam import momentum_sam
from samo_jax._perturbations._monge_sam import monge_sam
from samo_jax._perturbations._probe import probe
from samo_jax._perturbations._radius import layerwise_normalize, scale_to_radius
from samo_jax._perturbations._sam import sam
from samo_jax._perturbations._surrogate_gap_sam import surrogate_gap_sam
from samo_jax._registry import PerturbationEntry

__all__ = [
    "PERTURBATIONS",
    "Direction",
    "Perturbation",
    "adaptive_sam",
    "efficient_sam",
    "fisher_sam",
    "friendly_sam",
    "global_sam",
    "joint_perturbation",
    "joint_sam",
    "layerwise_normalize",
    "layerwise_sam",
    "local_sam",
    "memory_sam",
    "modality_aware_sam",
    "momentum_sam",
    "monge_sam",
    "probe",
    "sam",
    "scale_to_radius",
    "surrogate_gap_sam",
]

_ENTRIES = (
    PerturbationEntry(
        sam,
        call="sam(rho)",
        about="the mean gradient",
        choose="always a first try",
        variants=(
            PerturbationEntry(
                sam,
                call='sam(rho, direction="local")',
                about="each task's gradient",
                choose="tasks' valleys differ, K small",
                passes="K b",
            ),
        ),
    ),
    PerturbationEntry(
        global_sam,
        call="global_sam(rho)",
        about="the mean gradient, as `sam(rho)`",
        choose="always a first try",
    ),
    PerturbationEntry(
        local_sam,
        call="local_sam(rho)",
        about='each task\'s gradient, as `sam(rho, direction="local")`',
        choose="tasks' valleys differ, K small",
        passes="K b",
    ),
    PerturbationEntry(
        joint_sam,
        call="joint_sam(rho, alpha, mu)",
        about="both, the local part from probes (`samo`)",
        choose="the paper's SAMO",
        passes="2K f",
        variants=(
            PerturbationEntry(
                joint_sam,
                call="joint_sam(local=probe(shared=True))",
                about="both, from one probe for all tasks",
                choose="SAMO with many tasks",
                passes="2 f, and K − 2 f less",
            ),
        ),
    ),
    PerturbationEntry(
        memory_sam,
        call="memory_sam(rho, alpha)",
        about="both, the local part from the last step",
        choose="SAMO without probes",
        copies="K",
        remembers="K gradients",
        variants=(
            PerturbationEntry(
                memory_sam,
                call="memory_sam(clean_pass=False)",
                about="both from the last step",
                choose="time is short",
                passes="no clean pass",
                copies="K",
                remembers="K gradients",
            ),
        ),
    ),
    PerturbationEntry(
        adaptive_sam,
        call="adaptive_sam(rho, eta)",
        about="the gradient, relative to \\|w\\|",
        choose="layers of very different scale",
    ),
    PerturbationEntry(
        monge_sam,
        call="monge_sam(rho, alpha)",
        about="the gradient, less far where it is steep",
        choose="gradients vary by orders of magnitude",
    ),
    PerturbationEntry(
        fisher_sam,
        call="fisher_sam(rho, eta)",
        about="the gradient, less far where it is sensitive",
        choose="as `monge_sam`, per parameter",
    ),
    PerturbationEntry(
        layerwise_sam,
        call="layerwise_sam(rho)",
        about="every layer's gradient, equally far",
        choose="large batches",
    ),
    PerturbationEntry(
        friendly_sam,
        call="friendly_sam(rho, sigma, decay)",
        about="the minibatch's own part",
        choose="noisy gradients",
        copies="1",
        remembers="average gradient",
    ),
    PerturbationEntry(
        momentum_sam,
        call="momentum_sam(rho, decay)",
        about="back along the momentum",
        choose="time is short",
        passes="no clean pass",
        copies="1",
        remembers="momentum",
    ),
    PerturbationEntry(
        surrogate_gap_sam,
        call="surrogate_gap_sam(rho, alpha)",
        about="the gradient; the step spares the clean loss",
        choose="SAM's clean loss stays high",
        variants=(
            PerturbationEntry(
                surrogate_gap_sam,
                call='surrogate_gap_sam(direction="local")',
                about="each task's gradient",
                choose="the same with K tasks",
                passes="K b",
                copies="K",
            ),
        ),
    ),
    PerturbationEntry(
        efficient_sam,
        call="efficient_sam(rho, beta, gamma)",
        about="the gradient, on a random part of the parameters",
        choose="large batches, costly backward passes",
        passes="K f, and K (1 − gamma) b less",
        remembers="key",
        needs=("example_losses", "example_loss_fn"),
    ),
    PerturbationEntry(
        modality_aware_sam,
        call="modality_aware_sam(rho, ...)",
        about="the dominant one of M modalities' part of the loss",
        choose="one modality drowns another",
        passes='2^M f; K b with several tasks, K b more unless `decompose="batch"`',
        copies="K with several tasks",
        remembers="(K, M) averages",
        needs=("modality_fn", "loss_parts_fn"),
    ),
)
PERTURBATIONS = {entry.factory.__name__: entry for entry in _ENTRIES}
