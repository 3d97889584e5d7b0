"""`COMBINERS`: the registry of combiners, and their public names.

A new combiner has its file, and here an import, a name and an entry.
"""

from typing import Any

import jax
import numpy as np

from samo_jax._combiners._types import Aggregator, Weighting
from samo_jax._combiners.gradients._db_mtl_momentum import db_mtl_momentum
from samo_jax._combiners.gradients._excess_mtl import excess_mtl
from samo_jax._combiners.gradients._graddrop import graddrop
from samo_jax._combiners.gradients._grouped import grouped
from samo_jax._combiners.gradients._moco import moco
from samo_jax._combiners.gradients._modo import modo
from samo_jax._combiners.gradients._sdmgrad import sdmgrad
from samo_jax._combiners.gradients._trimmed_mean import trimmed_mean
from samo_jax._combiners.gramian._aligned_mtl import aligned_mtl, aligned_mtl_weights
from samo_jax._combiners.gramian._cagrad import cagrad, cagrad_weights
from samo_jax._combiners.gramian._conflict_free_inverse import (
    conflict_free_inverse,
    conflict_free_inverse_weights,
)
from samo_jax._combiners.gramian._db_mtl import db_mtl, db_mtl_weights
from samo_jax._combiners.gramian._dualproj import dualproj, dualproj_weights
from samo_jax._combiners.gramian._fairgrad import fairgrad, fairgrad_weights
from samo_jax._combiners.gramian._gradnorm import gradnorm
from samo_jax._combiners.gramian._gradvac import gradvac, gradvac_weights
from samo_jax._combiners.gramian._gramian_weighting import SolverState
from samo_jax._combiners.gramian._imtl_g import imtl_g, imtl_g_weights
from samo_jax._combiners.gramian._krum import krum, krum_weights
from samo_jax._combiners.gramian._mgda import mgda, mgda_weights
from samo_jax._combiners.gramian._nash_mtl import nash_mtl, nash_mtl_weights
from samo_jax._combiners.gramian._normalized import normalized
from samo_jax._combiners.gramian._pcd import pcd, pcd_weights
from samo_jax._combiners.gramian._pcgrad import pcgrad, pcgrad_weights
from samo_jax._combiners.gramian._smoothed import smoothed
from samo_jax._combiners.gramian._upgrad import upgrad, upgrad_weights
from samo_jax._combiners.losses._constant import constant
from samo_jax._combiners.losses._cosmos import cosmos, cosmos_loss
from samo_jax._combiners.losses._dwa import dwa
from samo_jax._combiners.losses._famo import famo
from samo_jax._combiners.losses._geometric_mean import (
    geometric_mean,
    geometric_mean_loss,
)
from samo_jax._combiners.losses._imtl_l import imtl_l, imtl_l_loss
from samo_jax._combiners.losses._log_losses import log_losses
from samo_jax._combiners.losses._loss_weighting import LossWeightingState
from samo_jax._combiners.losses._mean import mean
from samo_jax._combiners.losses._pbi import pbi, pbi_loss
from samo_jax._combiners.losses._random_weights import random_weights
from samo_jax._combiners.losses._stch import stch, stch_loss
from samo_jax._combiners.losses._total import total
from samo_jax._combiners.losses._uncertainty import uncertainty, uncertainty_loss
from samo_jax._combiners.solvers._solve_info import SolveInfo
from samo_jax._registry import CombinerEntry

__all__ = [
    "COMBINERS",
    "Aggregator",
    "LossWeightingState",
    "SolveInfo",
    "SolverState",
    "Weighting",
    "aligned_mtl",
    "aligned_mtl_weights",
    "cagrad",
    "cagrad_weights",
    "conflict_free_inverse",
    "conflict_free_inverse_weights",
    "constant",
    "cosmos",
    "cosmos_loss",
    "db_mtl",
    "db_mtl_momentum",
    "db_mtl_weights",
    "dualproj",
    "dualproj_weights",
    "dwa",
    "excess_mtl",
    "fairgrad",
    "fairgrad_weights",
    "famo",
    "geometric_mean",
    "geometric_mean_loss",
    "graddrop",
    "gradnorm",
    "gradvac",
    "gradvac_weights",
    "grouped",
    "imtl_g",
    "imtl_g_weights",
    "imtl_l",
    "imtl_l_loss",
    "krum",
    "krum_weights",
    "log_losses",
    "mean",
    "mgda",
    "mgda_weights",
    "moco",
    "modo",
    "nash_mtl",
    "nash_mtl_weights",
    "normalized",
    "pbi",
    "pbi_loss",
    "pcd",
    "pcd_weights",
    "pcgrad",
    "pcgrad_weights",
    "random_weights",
    "sdmgrad",
    "smoothed",
    "stch",
    "stch_loss",
    "total",
    "trimmed_mean",
    "uncertainty",
    "uncertainty_loss",
    "upgrad",
    "upgrad_weights",
]


def _with_key(_num_tasks: int, key: jax.Array) -> dict[str, Any]:
    return {"key": key}


def _of_mgda(_num_tasks: int, _key: jax.Array) -> dict[str, Any]:
    return {"weighting": mgda()}


def _around_mgda(_num_tasks: int, _key: jax.Array) -> dict[str, Any]:
    return {"combiner": mgda()}


def _equal(num_tasks: int) -> list[float]:
    return [1 / num_tasks] * num_tasks


_ENTRIES = (
    CombinerEntry(
        mean,
        "losses",
        about="the mean loss; the baseline",
        cost="none",
        promises={"L": "", "+": ""},
        needs=(),
        call="mean()",
    ),
    CombinerEntry(
        total,
        "losses",
        about="the sum of the losses, K times `mean`",
        cost="none",
        promises={"L": "", "+": ""},
        needs=(),
        call="total()",
    ),
    CombinerEntry(
        constant,
        "losses",
        about="weights that you know",
        cost="none",
        promises={"L": "", "+": "if given so"},
        needs=("weights",),
        call="constant(weights)",
        arguments=lambda num_tasks, _: {
            "weights": np.linspace(1.2, 0.8, num_tasks) / num_tasks
        },
    ),
    CombinerEntry(
        random_weights,
        "losses",
        about=(
            "new softmax weights at each step "
            "([RLW](https://arxiv.org/abs/2111.10603)); a baseline for any weighting"
        ),
        cost="none",
        promises={"L": "", "+": ""},
        needs=("key",),
        call="random_weights(key)",
        arguments=_with_key,
    ),
    CombinerEntry(
        mgda,
        "gramian",
        about=(
            "the shortest convex combination "
            "([Désidéri](https://doi.org/10.1016/j.crma.2012.03.014), [Sener and "
            "Koltun](https://arxiv.org/abs/1810.04650)); the worst-off task first; "
            'with `normalization` for gradients over their norm (`"l2"`), loss '
            '(`"loss"`) or both (`"loss+"`)'
        ),
        cost="a QP: some O(K³)",
        promises={"N": "", "S": '"l2", "loss"', "+": ""},
        needs=("Gramian", 'losses ("loss", "loss+")'),
        call="mgda(normalization)",
    ),
    CombinerEntry(
        fairgrad,
        "gramian",
        about=(
            "[α-fair](https://arxiv.org/abs/2402.15638) progress: 1 proportional, 2 "
            "minimum delay, large near max-min"
        ),
        cost="Newton: some O(K³)",
        promises={"N": "", "S": "alpha = 1", "+": ""},
        needs=("Gramian",),
        call="fairgrad(alpha)",
    ),
    CombinerEntry(
        nash_mtl,
        "gramian",
        about=(
            "the [bargaining](https://arxiv.org/abs/2202.01017) solution: equal "
            "relative progress; `fairgrad(1)` solved now and then"
        ),
        cost="Newton: some O(K³)",
        promises={"N": "", "S": "", "+": ""},
        needs=("Gramian",),
        call="nash_mtl()",
    ),
    CombinerEntry(
        cagrad,
        "gramian",
        about=(
            "the best worst case [near the mean](https://arxiv.org/abs/2110.14048); c "
            "from 0 (`mean`) up"
        ),
        cost="a few QPs",
        promises={"N": "c ≥ 1", "+": ""},
        needs=("Gramian",),
        call="cagrad(c)",
    ),
    CombinerEntry(
        upgrad,
        "gramian",
        about=(
            "each gradient [projected](https://arxiv.org/abs/2406.16232) until nobody "
            "is hurt, then averaged"
        ),
        cost="K QPs: some O(K⁴)",
        promises={"N": "", "L": "", "+": ""},
        needs=("Gramian",),
        call="upgrad()",
    ),
    CombinerEntry(
        dualproj,
        "gramian",
        about=(
            "the mean, projected until nobody is hurt "
            "([GEM](https://arxiv.org/abs/1706.08840))"
        ),
        cost="a QP: some O(K³)",
        promises={"N": "", "+": ""},
        needs=("Gramian",),
        call="dualproj()",
    ),
    CombinerEntry(
        pcd,
        "gramian",
        about=(
            "one task first: its gradient, bent as little as the others' [share of "
            "progress](https://arxiv.org/abs/2606.29521) allows; accuracy before "
            "sparsity"
        ),
        cost="a QP: some O(K³)",
        promises={"N": "tau = 0", "S": "", "L": "", "+": ""},
        needs=("Gramian", "history"),
        call="pcd(primary, tau)",
    ),
    CombinerEntry(
        pcgrad,
        "gramian",
        about=(
            "[surgery](https://arxiv.org/abs/2001.06782): each gradient projected off "
            "the others, in random order"
        ),
        cost="O(K³), K steps in a row",
        promises={"N": "K = 2", "+": ""},
        needs=("Gramian", "key"),
        call="pcgrad(key)",
        arguments=_with_key,
    ),
    CombinerEntry(
        gradvac,
        "gramian",
        about=(
            "surgery [towards usual cosines](https://arxiv.org/abs/2010.05874), not "
            "only away from conflict"
        ),
        cost="as `pcgrad`",
        promises={"+": ""},
        needs=("Gramian", "key", "history"),
        call="gradvac(key)",
        arguments=_with_key,
    ),
    CombinerEntry(
        imtl_g,
        "gramian",
        about=(
            "[equal projections](https://openreview.net/forum?id=IMPnRXEWpvr) on all "
            "gradients"
        ),
        cost="O(K³)",
        promises={"N": "K = 2", "S": "K = 2"},
        needs=("Gramian",),
        call="imtl_g()",
    ),
    CombinerEntry(
        conflict_free_inverse,
        "gramian",
        about=(
            "equal (or preferred) cosines with all gradients "
            "([ConFIG](https://arxiv.org/abs/2408.11104)); made for physics-informed "
            "losses"
        ),
        cost="O(K³)",
        promises={"N": "independent gradients", "S": "", "L": ""},
        needs=("Gramian",),
        call="conflict_free_inverse()",
    ),
    CombinerEntry(
        aligned_mtl,
        "gramian",
        about=(
            "gradients made [orthogonal and equally "
            "long](https://arxiv.org/abs/2305.19000)"
        ),
        cost="O(K³)",
        promises={},
        needs=("Gramian",),
        call="aligned_mtl(scale_mode)",
    ),
    CombinerEntry(
        db_mtl,
        "gramian",
        about="log losses, gradients [of one norm](https://arxiv.org/abs/2308.12029)",
        cost="O(K)",
        promises={"N": "K = 2", "S": "", "+": ""},
        needs=("Gramian", "losses"),
        call="db_mtl()",
    ),
    CombinerEntry(
        db_mtl_momentum,
        "gradients",
        about="the same for averaged gradients, as published",
        cost="O(Kn), K copies",
        promises={"S": "", "+": ""},
        needs=("gradients", "losses", "history"),
        call="db_mtl_momentum()",
    ),
    CombinerEntry(
        gradnorm,
        "gramian",
        about=(
            "[learnt](https://arxiv.org/abs/1711.02257) weights: slow tasks get larger "
            "gradients"
        ),
        cost="O(K)",
        promises={"+": ""},
        needs=("Gramian", "losses", "history"),
        call="gradnorm()",
    ),
    CombinerEntry(
        moco,
        "gradients",
        about=(
            "`mgda` of [tracked](https://arxiv.org/abs/2210.12624) gradients, a step "
            "at a time; noisy batches"
        ),
        cost="O(K²n), K copies",
        promises={"+": ""},
        needs=("gradients", "losses", "history"),
        call="moco()",
    ),
    CombinerEntry(
        modo,
        "gradients",
        about=(
            "`mgda` a step at a time, its Gramian "
            "[unbiased](https://arxiv.org/abs/2305.20057) by a second batch"
        ),
        cost="K passes more",
        promises={"+": ""},
        needs=("second batch", "history"),
        call="modo()",
    ),
    CombinerEntry(
        sdmgrad,
        "gradients",
        about=(
            "the same, [pulled](https://arxiv.org/abs/2305.18409) towards the mean or "
            "a preference"
        ),
        cost="K passes more",
        promises={"+": ""},
        needs=("second batch", "history"),
        call="sdmgrad()",
    ),
    CombinerEntry(
        excess_mtl,
        "gradients",
        about=(
            "more weight to tasks [far from their "
            "optimum](https://arxiv.org/abs/2402.02009); label noise"
        ),
        cost="O(Kn), K copies",
        promises={"L": "", "+": ""},
        needs=("gradients", "history"),
        call="excess_mtl()",
    ),
    CombinerEntry(
        graddrop,
        "gradients",
        about="each coordinate [picks a sign](https://arxiv.org/abs/2010.06808)",
        cost="O(Kn), n random numbers",
        promises={},
        needs=("gradients", "key"),
        call="graddrop(key)",
        arguments=_with_key,
    ),
    CombinerEntry(
        krum,
        "gramian",
        about=(
            "the gradients with the [closest "
            "neighbours](https://papers.nips.cc/paper/2017/hash/f4b9ec30ad9f68f89b29639786cb62ef-Abstract.html); "
            "broken tasks among many"
        ),
        cost="O(K² log K)",
        promises={"+": ""},
        needs=("Gramian",),
        call="krum(num_byzantine)",
        arguments=lambda num_tasks, _: {"num_byzantine": 0, "num_selected": num_tasks},
    ),
    CombinerEntry(
        trimmed_mean,
        "gradients",
        about=(
            "the mean [without extremes](https://arxiv.org/abs/1803.01498), per "
            "coordinate; broken tasks among many"
        ),
        cost="O(Kn log K)",
        promises={},
        needs=("gradients",),
        call="trimmed_mean(trim)",
        arguments=lambda _num_tasks, _: {"trim": 0},
    ),
    CombinerEntry(
        uncertainty,
        "losses",
        about=(
            "[learnt variances](https://arxiv.org/abs/1705.07115): tends to `1 / (K "
            "L_i)`"
        ),
        cost="O(K)",
        promises={"+": ""},
        needs=("losses", "history"),
        call="uncertainty()",
    ),
    CombinerEntry(
        imtl_l,
        "losses",
        about=(
            "[learnt scales](https://openreview.net/forum?id=IMPnRXEWpvr); the same as "
            "`uncertainty` here"
        ),
        cost="O(K)",
        promises={"+": ""},
        needs=("losses", "history"),
        call="imtl_l()",
    ),
    CombinerEntry(
        dwa,
        "losses",
        about=(
            "more weight where the loss [falls "
            "slower](https://arxiv.org/abs/1803.10704), epoch by epoch"
        ),
        cost="O(K)",
        promises={"L": "", "+": ""},
        needs=("losses", "history"),
        call="dwa(window=)",
        arguments=lambda _num_tasks, _: {"window": 100},
    ),
    CombinerEntry(
        famo,
        "losses",
        about=(
            "[learnt](https://arxiv.org/abs/2306.03792) weights: log losses that fall "
            "alike"
        ),
        cost="O(K); as published K forward passes",
        promises={"S": "", "+": ""},
        needs=("losses (also after the step)", "history"),
        call="famo()",
    ),
    CombinerEntry(
        geometric_mean,
        "losses",
        about=(
            "the [geometric mean](https://arxiv.org/abs/1904.08492) of positive losses"
        ),
        cost="O(K)",
        promises={"S": "", "+": ""},
        needs=("losses",),
        call="geometric_mean()",
    ),
    CombinerEntry(
        stch,
        "losses",
        about="a [smooth maximum](https://arxiv.org/abs/2402.19078) of the losses",
        cost="O(K)",
        promises={"+": ""},
        needs=("losses",),
        call="stch(mu)",
        arguments=lambda _num_tasks, _: {"mu": 0.1},
    ),
    CombinerEntry(
        pbi,
        "losses",
        about=(
            "along a [preferred ray](https://doi.org/10.1109/TEVC.2007.892759), and "
            "back to it"
        ),
        cost="O(K)",
        promises={},
        needs=("losses",),
        call="pbi(theta, preference)",
        arguments=lambda num_tasks, _: {"theta": 0.5, "preference": _equal(num_tasks)},
    ),
    CombinerEntry(
        cosmos,
        "losses",
        about="the same [by a cosine](https://arxiv.org/abs/2103.13392)",
        cost="O(K)",
        promises={},
        needs=("losses",),
        call="cosmos(preference, lam)",
        arguments=lambda num_tasks, _: {"preference": _equal(num_tasks), "lam": 0.1},
    ),
    CombinerEntry(
        smoothed,
        "gramian",
        about=(
            "a [moving average](https://openreview.net/forum?id=ScwfQ7hdwyP) of any "
            "weighting's weights (CR-MOGM); noisy batches"
        ),
        cost="the weighting's",
        promises={"+": "the weighting's"},
        needs=("the weighting's", "history"),
        call="smoothed(weighting)",
        arguments=_of_mgda,
    ),
    CombinerEntry(
        normalized,
        "gramian",
        about=(
            "any combiner on gradients over their norm, or over a running average of "
            "it; losses on other scales"
        ),
        cost="the combiner's",
        promises={
            "N": "the combiner's",
            "+": "the combiner's",
            "S": "if it needs no losses",
        },
        needs=("the combiner's", "Gramian"),
        call="normalized(combiner, norm)",
        arguments=_around_mgda,
    ),
    CombinerEntry(
        log_losses,
        "losses",
        about=(
            "any weighting on the gradients of the [log "
            "losses](https://arxiv.org/abs/2507.07883)"
        ),
        cost="the weighting's",
        promises={
            "N": "the weighting's",
            "+": "the weighting's",
            "S": "if it needs no losses",
        },
        needs=("the weighting's", "losses"),
        call="log_losses(weighting)",
        arguments=_of_mgda,
    ),
    CombinerEntry(
        grouped,
        "gradients",
        about="other weights for each layer or group",
        cost="the weighting's per group",
        promises={"N": "the weighting's", "+": "the weighting's"},
        needs=("gradients",),
        call="grouped(weighting, groups)",
        arguments=_of_mgda,
    ),
)
COMBINERS = {entry.factory.__name__: entry for entry in _ENTRIES}
