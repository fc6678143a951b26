"""Whether train and validation data share whole shards."""

from __future__ import annotations

import filecmp
import warnings

from light_jax.data.index import IndexedShard
from light_jax.data.shards import identity
from light_llm.files import urls
from light_llm.printing import printable


def warn_of_overlap(train: list[IndexedShard], val: list[IndexedShard]) -> None:
    """Warn of each shard of `val` that is a shard of `train`: the same file, or a copy of it.

    Documents that two different shards share are not found: both would have to be read whole. For
    the same reason a remote shard is a copy where size and footer are the same.
    """
    alike: dict[tuple[int, int], list[IndexedShard]] = {}
    for shard in train:
        alike.setdefault((shard.size, shard.footer_crc32), []).append(shard)
    found = []
    for shard in val:
        for other in alike.get((shard.size, shard.footer_crc32), []):
            same = identity(shard.path) == identity(other.path)
            distant = urls.is_url(shard.path) or urls.is_url(other.path)
            if same or distant or filecmp.cmp(shard.path, other.path, shallow=False):
                found.append(f"{shard.path} ({'' if same else 'a copy of '}{other.path})")
                break
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        warnings.warn(
            f"val_data and train_data overlap in {len(found)} of val_data's {len(val)} "
            f"shard{'' if len(val) == 1 else 's'}: "
            f"{printable(', '.join(found[:3]))}{more}; the validation loss will be of text that "
            "was trained on, so give val_data other shards",
            stacklevel=2,
        )
