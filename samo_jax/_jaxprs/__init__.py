"""Rewrites of the programs (jaxprs) of users, all behind one door.

A program is rearranged only if each of its operations is known (`_known`), and only
where `samo_jax.config.rewrite_programs` allows it. The files import one another and
`_config`; the rest of the library imports this package alone, none of its files.
"""

from samo_jax._jaxprs._convolutions import (
    canonicalize_convolutions as canonicalize_convolutions,
)
from samo_jax._jaxprs._dependencies import dependencies as dependencies
from samo_jax._jaxprs._heads import LossProgram as LossProgram
from samo_jax._jaxprs._heads import isolated_task as isolated_task
from samo_jax._jaxprs._heads import loss_program as loss_program
from samo_jax._jaxprs._reach import Reach as Reach
from samo_jax._jaxprs._reach import Use as Use
from samo_jax._jaxprs._representation import Cut as Cut
from samo_jax._jaxprs._representation import (
    cut_at_representation as cut_at_representation,
)
from samo_jax._jaxprs._representation import mark_representation as mark_representation
