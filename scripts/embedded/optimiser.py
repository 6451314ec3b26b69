"""Muon, an optimiser that makes the momentum of each matrix orthogonal (Jordan et al., 2024).

For the matrices of the blocks it needs a fraction of AdamW's steps. AdamW trains embeddings, norms,
biases and the modulation.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 quickly; CPUs without AVX-512 emulate it."""
    slow = ("DEFAULT", "NO AVX", "AVX2")
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in slow


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return nearly orthogonal matrices [K, rows, columns] with the row spaces of the given ones.

    The iteration works on the matrix itself, since the cheaper form on the Gram matrix diverges in
    bfloat16.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if has_bfloat16(matrices.device) else matrices.float()
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True).to(x.dtype) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def views_like(tensors: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Return zero tensors with the shapes of the given ones, and the flat tensor they view."""
    device = tensors[0].device if tensors else None
    flat = torch.zeros(sum(t.numel() for t in tensors), dtype=dtype, device=device)
    pieces = flat.split([t.numel() for t in tensors])
    return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)], flat


class Muon:
    """Updates matrices, in one batch for each shape; the processes share the work."""

    def __init__(
        self,
        parameters: list[Tensor],
        rank: int = 0,
        processes: int = 1,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ) -> None:
        self.parameters = parameters
        self.rank, self.processes = rank, processes
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocity = [torch.zeros_like(p) for p in parameters]
        self.updates, self.flat_updates = views_like(parameters, torch.bfloat16)
        self.groups: dict[torch.Size, list[int]] = defaultdict(list)
        for k, parameter in enumerate(parameters):
            self.groups[parameter.shape].append(k)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the parameters from their gradients, which must be equal in all processes."""
        if not self.parameters:
            return
        gradients = [p.grad for p in self.parameters]
        torch._foreach_lerp_(self.velocity, gradients, 1 - self.momentum)
        self.flat_updates.zero_()
        for shape, members in self.groups.items():
            mine = members[self.rank :: self.processes]
            if not mine:
                continue
            ahead = torch.stack([gradients[k].lerp(self.velocity[k], self.momentum) for k in mine])
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            update = (scale * orthogonalise(ahead)).unbind()
            torch._foreach_copy_([self.updates[k] for k in mine], list(update))
        if self.processes > 1:
            dist.all_reduce(self.flat_updates)
        torch._foreach_mul_(self.parameters, 1 - rate * self.weight_decay)
        torch._foreach_add_(self.parameters, self.updates, alpha=-rate)

    def state(self) -> list[Tensor]:
        """Return the state for a checkpoint."""
        return self.velocity

    def load(self, state: list[Tensor]) -> None:
        """Restore the state of a checkpoint."""
        for mine, theirs in zip(self.velocity, state, strict=True):
            mine.copy_(theirs)
