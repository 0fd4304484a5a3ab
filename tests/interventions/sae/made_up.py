"""Sizes of the made-up SAEs that are held against sae_lens, and a residual stream for them."""

import torch

D_MODEL, D_SAE, K = 24, 72, 7
FEATURES = (3, 0, 71, 17)


def resid(seed: int = 1, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(*(shape or (2, 9)), D_MODEL, generator=generator) + 0.7
