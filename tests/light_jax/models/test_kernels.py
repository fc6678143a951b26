"""Attention kernels: as exact as blocks of queries, on any mesh, and what is compiled has them.

The kernel of a TPU runs in Pallas' interpreter here. cuDNN's has none: its program is read.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import attention_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import BIDIRECTIONAL, CUDNN, MESHES, RESULTS, SPLASH, Case
from tiny_runs import IMPORTS, ROOT

from light_jax.models.kernels import flash, splash
from light_jax.models.placement import Placement
from light_jax.models.transformer.positional import alibi_slopes
from light_jax.parallel import targets
from light_llm.models.transformer.mask import Span

pytestmark = pytest.mark.compiled_fully

SCRIPT = ROOT / "tests/attention_cases.py"
HAS_CUDA = any(importlib.util.find_spec(name) for name in targets._cuda_plugins())
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="JAX's CUDA wheels are not installed")
# Of a kernel's error to that of blocks: over all positions, and at the worst. The kernels take the
# gradient of softmax from weights in bfloat16, which blocks keep in float32; and q is rounded once
# more where head_dim is 128.
ALLOWED = np.array([[1.75], [2.0]])


def errors(got, exact):
    """Of out, dq, dk and dv, relative to the root mean square: over all positions, at the worst."""
    found = []
    for x, y in zip(got, exact, strict=True):
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        squares_T = ((a - b) ** 2).mean((0, 2, 3))
        found.append(np.sqrt(np.array([squares_T.mean(), squares_T.max()]) / (b**2).mean()))
    return np.stack(found, axis=1)


def compare(name, where, case):
    """(errors of the kernel, errors of blocks), both against blocks in float32."""
    inputs = case.inputs()
    exact = attention_cases.blocks(case)(*(x.astype(jnp.float32) for x in inputs))
    got = attention_cases.kernel(name, where, case)(*inputs)
    for x, shape in zip(got, [case.shapes[3], *case.shapes[:3]], strict=True):
        assert (x.shape, x.dtype) == (shape, jnp.bfloat16)
    return errors(got, exact), errors(attention_cases.blocks(case)(*inputs), exact)


VARIANTS = {
    "gqa": Case(T=130, N=4, K=2),
    "mqa, three blocks": Case(T=384, K=1, H=40),
    "window of 5": Case(T=200, K=1, H=128, span=Span(5, 0)),
    "window of 150, two rows": Case(T=384, H=40, span=Span(150, 0), B=2),
    "bidirectional, padded": Case(T=200, K=1, H=40, span=BIDIRECTIONAL),
    "alibi, 12 heads": Case(T=200, N=12, K=4, alibi=True),
    "alibi, 3 heads, window": Case(T=130, N=3, K=1, H=128, alibi=True, span=Span(40, 0)),
    "documents, two rows": Case(T=200, K=1, H=40, B=2, documents=True),
    "complex, alibi": Case(T=130, N=3, K=3, H=32, complex=True, alibi=True),
}


def assert_as_exact(name, where, case):
    ours, theirs = compare(name, where, case)
    assert (ours <= ALLOWED * theirs).all(), dict(zip(RESULTS, (ours / theirs).T, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_splash_is_as_exact_as_blocks(variant):
    assert_as_exact("splash", attention_cases.placement(jax.devices("cpu")), VARIANTS[variant])


@pytest.mark.skipif(
    jax.default_backend() not in ("gpu", "tpu"),
    reason="no GPU or TPU here; where there is one, run with JAX_PLATFORMS=cuda or tpu",
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kernel_of_this_device_is_as_exact_as_blocks(variant):
    case, here = VARIANTS[variant], attention_cases.placement(jax.devices())
    name = chosen(here, case)
    if name is None:
        pytest.skip("no kernel of this device has that variant")
    assert_as_exact(name, here, case)


def test_on_many_devices_it_is_that_of_one():
    script = [sys.executable, SCRIPT, "devices"]
    done = subprocess.run(script, env=os.environ | IMPORTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(MESHES)
    for (sizes, case), differences in zip(MESHES, found, strict=True):
        assert differences["out"] == differences["dq"] == 0, sizes
        # the gradients of copies of a kv head are added in bfloat16
        copied = case.N % sizes[2] == 0 and case.K % sizes[2] != 0
        assert max(differences.values()) <= (2**-7 if copied else 0), sizes


@pytest.mark.parametrize("num_heads", [1, 3, 8, 12, 40])
def test_the_columns_of_alibi_hold_it_to_24_bits(num_heads):
    slopes_N, T = alibi_slopes(num_heads) / 40**-0.5, flash.MAX_LENGTH
    x = jnp.zeros((1, T, 1, 1), jnp.bfloat16)
    q = jnp.zeros((1, T, num_heads, 1), jnp.bfloat16)
    q, k = jax.jit(flash.with_alibi)(q, x, jnp.asarray(slopes_N))
    last, positions = np.asarray(q[0, -1], np.float64), np.asarray(k[0, :, 0], np.float64)
    exact = np.float64(slopes_N)[:, None] * np.arange(T)
    np.testing.assert_allclose(last @ positions.T, exact, rtol=2.0**-24)


@pytest.mark.parametrize("head_dim, bits", [(40, 16), (32, 16), (64, 53), (128, 8)])
def test_a_scaled_product_is_exact_where_that_is_free(head_dim, bits):
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, head_dim), jnp.bfloat16) for i in (0, 1))
    scale = head_dim**-0.5
    scaled = jax.jit(splash.scaled, static_argnames="scale")(q, k, scale=scale)
    ours = [np.asarray(x, np.float64).ravel() for x in scaled]
    exact = [np.asarray(x, np.float64).ravel() for x in (q, k)]
    terms = (ours[0] * ours[1]).reshape(-1, head_dim).sum(0)
    np.testing.assert_allclose(terms, scale * exact[0] * exact[1], rtol=2.0**-bits)
    assert ours[0].size <= splash.LANES


def chosen(where, case, dtype=jnp.bfloat16):
    wide = case.shapes[0][-1]
    return flash.kernel_for(
        where,
        dtype=dtype,
        length=case.T,
        head_dim=wide,
        span=case.span,
        alibi=case.alibi,
        documents=case.documents,
    )


def test_blocks_are_taken_where_no_kernel_is_exact():
    tpu = attention_cases.placement(targets.target("v5e-1").devices)
    assert chosen(tpu, Case()) == chosen(tpu, Case(alibi=True)) == "splash"
    assert chosen(tpu, Case(documents=True)) == "splash"
    assert chosen(tpu, Case(), jnp.float32) is None
    assert chosen(tpu, Case(alibi=True, span=BIDIRECTIONAL)) is None
    assert chosen(tpu, Case(alibi=True, T=2 * flash.MAX_LENGTH)) is None
    assert chosen(Placement(), Case()) is None
    assert chosen(attention_cases.placement(jax.devices("cpu")), Case()) is None


@pytest.mark.parametrize("sizes, case", SPLASH)
def test_a_tpu_gets_three_kernels_an_attention(sizes, case):
    found = attention_cases.compiled("v5e-4", sizes, case)
    assert (found["kernel"], found["calls"]) == ("splash", 3)  # forward; dq; dk and dv


@needs_cuda
@pytest.mark.parametrize("card, widest", [("h100-8", 256), ("a100-8", 128)])
def test_a_gpu_gets_two_kernels_an_attention(card, widest):
    script = [sys.executable, SCRIPT, card]
    done = subprocess.run(script, env=os.environ | IMPORTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for (_, case), program in zip(CUDNN, found, strict=True):
        columns = flash.ALIBI_COLUMNS if case.alibi else 0
        if case.shapes[0][-1] + columns > widest:
            assert program == {"kernel": None}, case
            continue
        forward, backward = sorted(program["cudnn"], key=lambda call: "Backward" in call)
        assert '"__cudnn$fmhaSoftmax"' in forward, case
        assert '"__cudnn$fmhaSoftmaxBackward"' in backward, case
        rows_heads_length = re.search(r"f32\[(\d+),(\d+),(\d+)\]", forward.partition("custom-")[0])
        assert rows_heads_length is not None, case  # the statistics of softmax, in float32
        assert int(rows_heads_length[3]) == case.T + case.T % 2
