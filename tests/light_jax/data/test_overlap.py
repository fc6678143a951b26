"""A shard in both train_data and val_data is reported, under any name."""

import os
import shutil
import warnings

import pytest
from tiny_runs import TINY, write_config

from light_jax.config import load_config
from light_jax.data import TokenStream, warn_of_overlap
from light_jax.training.run import prepare


def warned(train, val):
    streams = [TokenStream(paths, seq_len=2, seed=0) for paths in (train, val)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_overlap(*(stream.shards for stream in streams))
    return [str(warning.message) for warning in caught]


def test_shards_of_train_and_val_that_are_the_same(tmp_path, write):
    a, b, c = (write(tmp_path / f"{n}.parquet", [[1, 2, 3], [4, n]]) for n in (5, 6, 7))
    copy = shutil.copy(a, tmp_path / "copy.parquet")
    os.symlink(b, tmp_path / "link.parquet")
    assert warned([a, b], c) == []
    (warning,) = warned([a, b, c], [copy, str(tmp_path / "link.parquet")])
    assert warning.startswith("val_data and train_data overlap in 2 of val_data's 2 shards: ")
    assert f"{copy} (a copy of {a})" in warning
    assert f"link.parquet ({b})" in warning


def test_equal_footers_are_not_yet_equal_shards(tmp_path, write):
    """The same counts, least and greatest ids, sizes: it is the bytes that decide."""
    options = {"compression": "none", "use_dictionary": False}
    paths = [write(tmp_path / f"{n}.parquet", [[1, n, 9]], **options) for n in (2, 3)]
    shards = [TokenStream(path, seq_len=2, seed=0).shards[0] for path in paths]
    assert shards[0].footer_crc32 == shards[1].footer_crc32
    assert warned(*paths) == []


def test_a_run_warns_before_it_begins(tmp_path):
    changes = {"val_data": TINY["train_data"], "checkpoint_dir": str(tmp_path / "out")}
    with pytest.warns(
        UserWarning, match="val_data and train_data overlap in .* shards?: .*parquet"
    ):
        prepare(load_config(write_config(tmp_path / "c.yaml", **changes)), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del changes["val_data"]
        prepare(load_config(write_config(tmp_path / "c.yaml", **changes)), None)
