"""Low-rank adapters (Hu et al., arXiv 2106.09685): W' = W + (alpha / r) B A, with W frozen and B starting at zero."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

RANK, ALPHA = 16, 16


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained low-rank correction in float32."""

    def __init__(self, base: nn.Linear, rank: int = RANK, alpha: float = ALPHA) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        device = base.weight.device
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, device=device)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out = self.base(x)
        return out + (self.scale * self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))).to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Merge the correction into the linear layer and return it."""
        merge(self.base.weight, self.lora_A.weight, self.lora_B.weight, self.scale)
        return self.base


@torch.no_grad()
def merge(weight: Tensor, A: Tensor, B: Tensor, scale: float = ALPHA / RANK) -> None:
    """weight += scale * B A, in place, computed in float32."""
    weight.copy_(weight.float() + scale * (B.float() @ A.float()).to(weight.device))


def _slots(root: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in list(root.modules()):
        if not isinstance(parent, LoRALinear):
            for name, child in list(parent.named_children()):
                if isinstance(child, kind):
                    yield parent, name, child


def add_lora(layers: nn.ModuleList) -> None:
    """Add an adapter to every linear layer of these decoder layers."""
    for parent, name, child in _slots(layers, nn.Linear):
        assert isinstance(child, nn.Linear)
        setattr(parent, name, LoRALinear(child))


def merge_lora(layers: nn.ModuleList) -> None:
    """Merge all adapters into their linear layers."""
    for parent, name, child in _slots(layers, LoRALinear):
        assert isinstance(child, LoRALinear)
        setattr(parent, name, child.merged())
