"""Layer-wise fusion: after each block, a layer of the VLM is mixed into the VL part of the stream."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

FusionKind = Literal["convex", "additive"]


class LayerwiseFusion(nn.Module):
    """x_vl <- fuse(x_vl, P_j(phi_j)), where phi_j is the j-th tapped VLM layer and P_j a linear layer of its own.

    - convex (released code): s * x + (1 - s) * P with s = sigmoid(g_j). One gate per channel, s starts at 0.5.
    - additive (paper, equation 3): x + sigmoid(w_j) * P. One scalar per layer. The paper gives no initial value; here
      w_j = -4, so that fusion starts close to zero.
    """

    def __init__(self, taps: int, vlm_width: int, width: int, kind: FusionKind) -> None:
        super().__init__()
        self.kind = kind
        self.project = nn.ModuleList(nn.Linear(vlm_width, width) for _ in range(taps))
        self.gate = nn.Parameter(
            torch.zeros(taps, width) if kind == "convex" else torch.full((taps, 1), -4.0)
        )

    def forward(self, x: Tensor, tap: Tensor, j: int) -> Tensor:
        """Fuse tap number j, (B, L, vlm_width), into x, (B, L, width)."""
        s = torch.sigmoid(self.gate[j])
        update = self.project[j](tap.to(x.dtype))
        return s * x + (1 - s) * update if self.kind == "convex" else x + s * update
