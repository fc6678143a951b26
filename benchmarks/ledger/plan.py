"""What the scale plan compiles: 1 B, 7 B and 70 B parameters on many devices, by mesh."""

from __future__ import annotations

from ledger.works import Work

PLAN: tuple[Work, ...] = (
    # one sequence of 4096 or 8192 tokens a device with fsdp alone: batch_size is data · fsdp
    Work("1.2b", "h100-8", 32, True),
    Work("1.2b", "h100-8", 32, True, fsdp=8),
    Work("1.2b", "h100-64", 256, True),
    Work("1.2b", "h100-64", 256, True, fsdp=8),
    Work("7b", "h100-8", 8, True, fsdp=8),
    Work("7b", "h100-64", 64, True, fsdp=8),
    Work("7b", "h100-64", 64, True, fsdp=64),
    Work("7b", "h100-64", 32, True, fsdp=32, tensor=2),
    Work("70b", "h100-64", 64, True, fsdp=64),
    Work("70b", "h100-64", 8, True, fsdp=8, tensor=8),
    Work("70b", "h100-64", 8, True, fsdp=8, tensor=8, seq_len=32768),
    Work("1.2b", "v5p-16", 32, True),
    Work("1.2b", "v5p-128", 256, True, fsdp=8),
    Work("7b", "v5p-16", 8, True, fsdp=8),
    Work("7b", "v5p-128", 64, True, fsdp=64),
    Work("7b", "v5p-128", 64, True, fsdp=16),
    Work("70b", "v5p-128", 64, True, fsdp=64),
    Work("70b", "v5p-512", 256, True, fsdp=256),
    Work("70b", "v5p-512", 64, True, fsdp=64, tensor=4),
    Work("70b", "v5p-512", 64, True, fsdp=64, tensor=4, seq_len=32768),
)
BY_NAME = {work.name: work for work in PLAN}
