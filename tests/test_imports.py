"""Imports go down one list of layers: a module can be read without those above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import samo_jax

PACKAGE = Path(samo_jax.__file__).parent
# Lowest first. A module imports layers below its own, and its own package.
LAYERS = {
    "samo_jax": [
        ["_config", "_named", "_registry", "_tree"],
        ["_checks", "_diagnostics", "_gramian", "_jaxprs", "_masked_mean"],
        ["_keys", "_labels", "_shapley", "_task_loop", "_tasks"],
        ["_by_task"],
        ["_label_uses"],
        ["_absent_tasks", "_precision", "_problem", "_shared_points", "_spsa"],
        ["_gradients", "_part_gradients"],
        ["_representation"],
        ["_combiners", "_perturbations"],
        ["_step"],
        ["_state"],
        ["_multitask"],
        [
            "_combine_gradients",
            "_f_mtl",
            "_look_sam",
            "_report",
            "_samo",
            "_single_task",
        ],
        ["_transformations"],
        ["__init__"],
        ["experiments"],
    ],
    "samo_jax._combiners": [
        ["__init__", "solvers"],
        ["_task_vectors", "_types"],
        ["_keyed", "_by_name"],
        ["gramian", "losses"],
        ["gradients"],
        ["_registry"],
    ],
}


def parts_of(package: str) -> list[tuple[str, Path]]:
    """Each Python file of a package, with the module or package it belongs to."""
    folder = PACKAGE.joinpath(*package.split(".")[1:])
    return [
        (path.relative_to(folder).parts[0].removesuffix(".py"), path)
        for path in sorted(folder.rglob("*.py"))
    ]


def imported(path: Path, package: str) -> Iterator[str]:
    """The modules and packages below a package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[str] = []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module == package:
                yield "__init__"
            elif module.startswith(f"{package}."):
                yield module.removeprefix(f"{package}.").partition(".")[0]


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_has_a_layer(package):
    listed = [name for layer in LAYERS[package] for name in layer]
    names = {name for name, _ in parts_of(package)}
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_down(package):
    layer = {name: i for i, names in enumerate(LAYERS[package]) for name in names}
    upwards = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for name, path in parts_of(package)
        for other in imported(path, package)
        if other != name and layer[other] >= layer[name]
    ]
    assert upwards == []


def test_rewrites_of_programs_are_behind_one_door():
    inside = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for name, path in parts_of("samo_jax")
        for other in imported(path, "samo_jax._jaxprs")
        if name != "_jaxprs" and other != "__init__"
    ]
    assert inside == []


def test_experiments_import_public_names_only():
    private = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sorted((PACKAGE / "experiments").rglob("*.py"))
        for other in imported(path, "samo_jax")
        if other not in ("__init__", "experiments")
    ]
    assert private == []
