"""The attention kernel: PyTorch's own, with the masks and biases of every variant.

Letters: B batch, T query, S key, N heads, K kv-heads, G = N/K, H head_dim,
X queries of all heads that share a kv head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from light_llm.models.transformer.mask import Span


def attend(
    q_BTNH: torch.Tensor,
    k_BSKH: torch.Tensor,
    v_BSKH: torch.Tensor,
    *,
    scale: float,
    span: Span,
    slopes_N: torch.Tensor | None = None,
    empty_BS: torch.Tensor | None = None,
    back_BT: torch.Tensor | None = None,
    dropout_rate: float = 0.0,
) -> torch.Tensor:
    """softmax(scale · q·k + alibi) · v, in v's dtype; the queries are the last T of S positions.

    Scores and softmax are float32. v's head_dim may differ from q's and k's. No query sees the
    keys in `empty_BS`, except the one at its own position: a softmax over nothing would be NaN.
    Nor does it see further back than `back_BT`, or ahead to one that does not see back to it.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    distance_TS = torch.arange(S - T, S, device=q_BTNH.device)[:, None] - torch.arange(
        S, device=q_BTNH.device
    )
    seen_TS = torch.ones_like(distance_TS, dtype=torch.bool)
    if span.left is not None:
        seen_TS &= distance_TS <= span.left
    if span.right is not None:
        seen_TS &= distance_TS >= -span.right
    # The G query heads of a kv head lie side by side, so that keys and values need no copies.
    q_BKXH = q_BTNH.reshape(B, T, K, G, H).permute(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    k_BKSH, v_BKSH = k_BSKH.transpose(1, 2), v_BSKH.transpose(1, 2)
    seen = seen_TS  # [T, S], or [B, 1, 1, T, S]
    if empty_BS is not None:
        seen = (seen & ~empty_BS.to(seen.device)[:, None]) | (distance_TS == 0)
    if back_BT is not None:
        seen = seen & (distance_TS <= back_BT[:, :, None])
        if span.right != 0:  # T is S: a model that sees the future has no cache
            seen = seen & (-distance_TS <= back_BT[:, None])
    if seen.dim() == 3:
        seen = seen[:, None, None]
    if slopes_N is None:
        mask = seen.expand(*seen.shape[:-3], G, T, S).flatten(-3, -2)
    else:
        # torch wants the bias in q's dtype, and bfloat16 cannot hold most distances above 256.
        q_BKXH, k_BKSH, v_BKSH = q_BKXH.float(), k_BKSH.float(), v_BKSH.float()
        bias_KGTS = -slopes_N.reshape(K, G, 1, 1) * distance_TS.abs()
        mask = torch.where(seen, bias_KGTS, -torch.inf).reshape(-1, K, G * T, S)
    out_BKXH = F.scaled_dot_product_attention(
        q_BKXH, k_BKSH, v_BKSH, attn_mask=mask, dropout_p=dropout_rate, scale=scale
    )
    out_BTNH = out_BKXH.reshape(B, K, G, T, -1).permute(0, 3, 1, 2, 4).reshape(B, T, N, -1)
    return out_BTNH.to(v_BSKH.dtype)
