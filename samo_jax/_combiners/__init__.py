"""Combiners that need the gradients themselves, one small file per method."""

from samo_jax._combiners._db_mtl import db_mtl_momentum as db_mtl_momentum
from samo_jax._combiners._excess_mtl import excess_mtl as excess_mtl
from samo_jax._combiners._graddrop import graddrop as graddrop
from samo_jax._combiners._grouped import grouped as grouped
from samo_jax._combiners._moco import moco as moco
from samo_jax._combiners._modo import modo as modo
from samo_jax._combiners._sdmgrad import sdmgrad as sdmgrad
from samo_jax._combiners._trimmed_mean import trimmed_mean as trimmed_mean
