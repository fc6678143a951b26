"""A variant is a class in both twins and a row in each table that lists them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from architectures import DIMENSIONS, choices, config_of, name_of, pairwise

from conversion.mapping import table
from light_jax.models.transformer.attention import ATTENTION
from light_jax.models.transformer.block import PLACEMENT
from light_jax.models.transformer.ffn import ACTIVATION, FFN
from light_jax.models.transformer.norm import NORM
from light_jax.models.transformer.positional import POSITIONAL
from light_jax.parallel.sharding import PARAMETER_AXES
from light_llm.models.transformer.config import TransformerConfig
from light_llm.models.transformer.mask import MASK

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
            assert entry.shape in {(cfg.d_model,), (cfg.attention.head_dim,)}, entry.key
        else:
            assert len(axes) == len(entry.jax_shape), entry.key


FOLDER = "models/transformer"
MODEL = ["norm", "positional", "ffn", "documents", "cache", "attend", "attention", "block", "model"]
TWINS = [*(f"{FOLDER}/{name}" for name in MODEL), "generate"]
SHARED = {"config", "frequencies", "mask"}  # light_llm's, for both: neither framework is in them
METHODS = {"forward": "__call__"}

# What one twin has and the other does without, and why. Anything else stands in both.
JAX_ONLY = {
    "cache.Cache.fill": "a function under jit takes a whole prompt, another one one token",
    "attend.MIN_BLOCK": "PyTorch's kernel cuts its own blocks",
    "attend.MAX_BLOCKS": "the same",
    "attend.attend_one": "one query against a cache whose rows are not in order",
    "attend._scores": "the types of a matmul's gradient, which PyTorch's kernel gets right",
    "attend._scores_forward": "the same",
    "attend._scores_backward": "the same",
    "attend._Block": "PyTorch's kernel cuts its own blocks",
    "attend._average": "PyTorch's kernel keeps what it needs",
    "attend._average_forward": "the same",
    "attend._average_backward": "the same",
    "attend._block_scores": "the same",
    "attend._attend_in_blocks": "PyTorch's kernel cuts its own blocks",
    "attend._masked": "the same",
    "model._as_is": "a sharding laid on the residual stream: PyTorch's model runs on one device",
    "model.Transformer.head_VD": "the loss takes the weight; a PyTorch lm_head has it, tied or not",
    "generate.MIN_BUCKET": "shapes are compiled, so there are few",
    "generate.TOP_P_FIRST": "XLA sorts slowly",
    "generate.moved": "a PyTorch module has .to()",
    "generate.Plan": "what is compiled in",
    "generate.Knobs": "what is not compiled in",
    "generate.Carry": "what a compiled step hands to the next",
    "generate._bucket": "shapes are compiled, so there are few",
    "generate._compiled": "PyTorch compiles nothing",
    "generate._scattered": "PyTorch has it built in",
}
PYTORCH_ONLY = {
    "cache.Cache.empty": "transformers may have padding anywhere; here it hides as documents do",
    "model.Transformer._run": "models/stack.py runs the layers, unrolled or as a loop",
    "model.MATMULS": "the same, and says what is computed again",
    "model._keeping_matmuls": "the same",
    "cache.Cache._visible": "the buffers grow; JAX's keep their shape",
    "cache._with_room": "the same",
    "model.WRITES_TO_RESIDUAL": "weights are initialised after they are made; in JAX as they are",
    "model.Transformer.reset_parameters": "the same",
    "model._tie": "tied weights are two names of one tensor; JAX's model has one name",
    "model._check_tied_head": "the same",
    "generate._Callable": "`light_llm.generate(…)` works beside the import from the module",
    "generate._Callable.__call__": "the same",
    "generate._without_dropout": "dropout is a mode of the module; in JAX it needs a key",
}


def outline(framework: str, twin: str) -> list[str]:
    """The names that a twin defines, methods after their class, in their order: `file.Class.f`."""
    names = []

    def walk(body: list[ast.stmt], place: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                names.append(f"{place}.{METHODS.get(node.name, node.name)}")
            elif isinstance(node, ast.ClassDef):
                names.append(f"{place}.{node.name}")
                walk(node.body, names[-1])
            elif isinstance(node, ast.Assign):
                plain = [t for t in node.targets if isinstance(t, ast.Name | ast.Tuple)]
                targets = [n for target in plain for n in ast.walk(target)]
                names.extend(f"{place}.{n.id}" for n in targets if isinstance(n, ast.Name))
            elif isinstance(node, ast.AnnAssign) and place == file:  # fields are each one's own
                names.append(f"{place}.{ast.unparse(node.target)}")

    file = Path(twin).name
    walk(ast.parse((ROOT / framework / f"{twin}.py").read_text()).body, file)
    return names


@pytest.mark.parametrize("twin", TWINS)
def test_twin_files_have_the_same_names_in_the_same_order(twin):
    ours, theirs = outline("light_jax", twin), outline("light_llm", twin)
    assert [n for n in ours if n not in JAX_ONLY] == [n for n in theirs if n not in PYTORCH_ONLY]


def test_what_one_twin_has_alone_is_there_and_only_there():
    ours = {name for twin in TWINS for name in outline("light_jax", twin)}
    theirs = {name for twin in TWINS for name in outline("light_llm", twin)}
    assert ours - theirs == set(JAX_ONLY)
    assert theirs - ours == set(PYTORCH_ONLY)


def test_each_file_of_the_model_has_a_twin():
    def files(framework: str) -> set[str]:
        return {path.stem for path in (ROOT / framework / FOLDER).glob("*.py")} - {"__init__"}

    assert files("light_jax") == set(MODEL)
    assert files("light_llm") == set(MODEL) | SHARED
