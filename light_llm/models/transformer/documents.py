"""Documents that lie one behind another in the rows of a batch.

Letters: B batch, T column.
"""

from __future__ import annotations

import torch


def columns_back(
    tokens_BT: torch.Tensor, end: int, columns_T: torch.Tensor, first_B: torch.Tensor
) -> torch.Tensor:
    """How many columns of its document lie before each token, [B, T]: its position in it.

    The token after an end mark begins a document; the mark belongs to the document that it ends.

    Args:
        end: the id of the mark.
        columns_T: the columns of the tokens in their rows, which tokens before them may begin.
        first_B: in which column the first token's document begins. Tokens before it get 0.
    """
    begins_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    begins_BT[:, 1:] = tokens_BT[:, :-1] == end
    number_BT = begins_BT.cumsum(dim=1)  # of the document; by it, since ONNX has no cummax
    first_BT = torch.where(begins_BT, columns_T, first_B[:, None])
    first_BT = torch.zeros_like(first_BT).scatter_reduce(1, number_BT, first_BT, "amax")
    first_BT = first_BT.gather(1, number_BT)
    return (columns_T - first_BT).clamp(min=0)
