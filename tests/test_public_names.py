"""What `import samo_jax` and `from samo_jax import *` give."""

from types import ModuleType

import samo_jax


def test_a_star_imports_all_names_and_no_other():
    names = {}
    exec("from samo_jax import *", names)
    del names["__builtins__"]
    assert set(names) == set(samo_jax.__all__)
    assert len(samo_jax.__all__) == len(names)


def test_every_name_without_an_underscore_is_public():
    names = {
        name
        for name, value in vars(samo_jax).items()
        if name[0] != "_" and not isinstance(value, ModuleType)
    }
    assert names | {"__version__"} == set(samo_jax.__all__)
