"""Layer-wise fusion: after every block the VL part of the stream is mixed with a layer of the vision-language model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

FusionKind = Literal["convex", "additive"]


class LayerwiseFusion(nn.Module):
    """x_vl <- fuse(x_vl, P_j(phi_j)): phi_j the j-th tapped VLM layer, P_j its own linear.

    convex (released code): s * x + (1 - s) * P, s = sigmoid(g_j), one gate per channel, starting at 0.5. additive
    (paper, equation 3): x + sigmoid(w_j) * P, one scalar per layer; the paper gives no start, here w_j = -4, so
    that an untrained stream is nearly unfused.
    """

    def __init__(self, taps: int, vlm_width: int, width: int, kind: FusionKind) -> None:
        super().__init__()
        self.kind = kind
        self.project = nn.ModuleList(nn.Linear(vlm_width, width) for _ in range(taps))
        self.gate = nn.Parameter(
            torch.zeros(taps, width) if kind == "convex" else torch.full((taps, 1), -4.0)
        )

    def forward(self, x: Tensor, tap: Tensor, j: int) -> Tensor:
        """x (B, L, width), tap (B, L, vlm_width)."""
        s = torch.sigmoid(self.gate[j])
        update = self.project[j](tap.to(x.dtype))
        return s * x + (1 - s) * update if self.kind == "convex" else x + s * update
