"""Loss weightings: losses to weights, one small file per method."""

from samo_jax._weightings._base import WeightingState as WeightingState
from samo_jax._weightings._cosmos import cosmos as cosmos
from samo_jax._weightings._cosmos import cosmos_loss as cosmos_loss
from samo_jax._weightings._dwa import dwa as dwa
from samo_jax._weightings._famo import famo as famo
from samo_jax._weightings._geometric_mean import geometric_mean as geometric_mean
from samo_jax._weightings._geometric_mean import (
    geometric_mean_loss as geometric_mean_loss,
)
from samo_jax._weightings._imtl_l import imtl_l as imtl_l
from samo_jax._weightings._imtl_l import imtl_l_loss as imtl_l_loss
from samo_jax._weightings._log_losses import log_losses as log_losses
from samo_jax._weightings._pbi import pbi as pbi
from samo_jax._weightings._pbi import pbi_loss as pbi_loss
from samo_jax._weightings._stch import stch as stch
from samo_jax._weightings._stch import stch_loss as stch_loss
from samo_jax._weightings._uncertainty import uncertainty as uncertainty
from samo_jax._weightings._uncertainty import uncertainty_loss as uncertainty_loss
