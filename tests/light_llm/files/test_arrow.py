"""What goes to Arrow and back is what it was, as by pyarrow's own ways, and pandas stays out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from light_llm.files import arrow


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts(texts):
    found = arrow.of_texts([text.encode() for text in texts])
    found.validate(full=True)
    assert found.equals(pa.array(texts, pa.string()))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("step", [1, 3])
def test_numbers(dtype, step):
    values = np.arange(-5, 100, dtype=dtype)[::step]
    found = arrow.of_numbers(values)
    assert found.equals(pa.array(values))
    for start, stop in ((0, len(values)), (2, 7), (4, 4)):
        assert (arrow.numbers(found[start:stop]) == values[start:stop]).all()


PREPROCESS = """
import sys
from light_llm.preprocess import PreprocessConfig, preprocess
preprocess(PreprocessConfig(input=("a",), output="out", tokenizer="char"))
print(*sys.modules)
"""


def test_a_run_imports_no_pandas(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / f"a/{number}.txt").write_text(f"text {number}")
    command = [sys.executable, "-c", PREPROCESS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pyarrow" in done.stdout.split()
    assert "pandas" not in done.stdout.split()
