"""A variant is a class in both twins and a row in each table that lists them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from architectures import DIMENSIONS, choices, config_of, name_of, pairwise

from conversion.mapping import table
from light_jax.models.transformer.attention import ATTENTION, MASK
from light_jax.models.transformer.block import PLACEMENT
from light_jax.models.transformer.ffn import ACTIVATION, FFN
from light_jax.models.transformer.norm import NORM
from light_jax.models.transformer.positional import POSITIONAL
from light_jax.parallel.sharding import PARAMETER_AXES
from light_llm.models.transformer.config import TransformerConfig

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "table, section, field",
    [
        (ATTENTION, "attention", "variant"),
        (MASK, "attention", "mask_type"),
        (POSITIONAL, "positional", "encoding"),
        (FFN, "ffn", "variant"),
        (ACTIVATION, "ffn", "activation"),
        (NORM, "norm", "type"),
        (PLACEMENT, "norm", "placement"),
    ],
)
def test_tables_have_a_row_for_each_choice(table, section, field):
    assert list(table) == choices(section, field)
    # and the pairwise tests try each
    changes = [change for options in DIMENSIONS.values() for change in options.values()]
    tried = {change.get(section, {}).get(field) for change in changes} - {None}
    tried.add(getattr(getattr(TransformerConfig(), section), field))
    assert tried == set(choices(section, field))


@pytest.mark.parametrize("row", pairwise(), ids=name_of)
def test_each_parameter_has_its_row_of_sharding_axes(row):
    """One without would be replicated, in silence; norms and what writes to the stream may be."""
    cfg = config_of(row)
    for entry in table(cfg):
        axes = PARAMETER_AXES.get(entry.path[-2:])
        if axes is None:
            assert entry.shape == (cfg.d_model,), entry.key
        else:
            assert len(axes) == len(entry.jax_shape), entry.key


TWINS = ["norm", "positional", "ffn", "attention", "block", "model"]
PYTORCH_ONLY = {"Span"}  # JAX's lives with its kernel
METHODS = {"forward": "__call__"}


def outline(framework: str, name: str) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """(classes, all names at the top level, methods per class) of one of the twin files."""
    tree = ast.parse((ROOT / framework / "models" / "transformer" / f"{name}.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            names.append(ast.unparse(target))
    methods = {
        cls.name: [
            METHODS.get(node.name, node.name)
            for node in cls.body
            if isinstance(node, ast.FunctionDef)
        ]
        for cls in classes
    }
    return [cls.name for cls in classes], names, methods


@pytest.mark.parametrize("name", TWINS)
def test_twin_files_have_the_same_order(name):
    jax_classes, jax_names, jax_methods = outline("light_jax", name)
    torch_classes, torch_names, torch_methods = outline("light_llm", name)
    assert jax_classes == [name for name in torch_classes if name not in PYTORCH_ONLY]
    assert in_common(jax_names, torch_names) == in_common(torch_names, jax_names)
    for cls in jax_classes:
        ours, theirs = jax_methods[cls], torch_methods[cls]
        assert in_common(ours, theirs) == in_common(theirs, ours), cls
        assert not theirs or in_common(ours, theirs), cls


def in_common(names: list[str], others: list[str]) -> list[str]:
    return [name for name in names if name in others]
