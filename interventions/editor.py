"""The one place where a residual stream is changed; it knows no backend.

A backend hands over the residual and the masks of the tokens to touch, and puts back what it
gets. The editor counts, on the device, what it really did.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.ops import coefficients
from interventions.plan import EditGroup, LayerPlan
from interventions.positions import Selector
from interventions.sae.activations import feature_acts, norm_factor


@dataclass(frozen=True)
class EditCounts:
    """Tokens of one edit, summed over a run.

    Attributes:
        selected: tokens that its positions named.
        guarded: of these, left alone by the norm guard.
        fired: of the rest, where the feature was active; None where the encoder was not read.
    """

    selected: int
    guarded: int
    fired: int | None

    def __add__(self, other: "EditCounts") -> "EditCounts":
        fired = None if self.fired is None or other.fired is None else self.fired + other.fired
        return EditCounts(self.selected + other.selected, self.guarded + other.guarded, fired)


class Editor:
    """Applies all edits of one hook point."""

    def __init__(self, layer: LayerPlan) -> None:
        """Prepare the tables; they move to the residual's device at first use."""
        self.hook_point = layer.hook_point
        self._limit = layer.norm_limit
        self._layer = layer
        self._groups: list[_Group] = []
        self._device: torch.device | None = None

    def __call__(self, resid: Tensor, masks: Mapping[Selector, Tensor]) -> Tensor:
        """Return the edited residual, in `resid`'s dtype; untouched tokens keep their bits.

        Args:
            resid: `(..., d_model)` unedited residual stream.
            masks: `(...)` bool mask of every selector of the layer.
        """
        if resid.device != self._device:
            self._move(resid.device)
        x = resid.float()
        # What is not touched keeps its bits in every dtype, float64 included.
        edited = resid.to(torch.promote_types(resid.dtype, torch.float32))
        calm = None
        if self._limit is not None:
            calm = (torch.linalg.vector_norm(x, dim=-1) <= self._limit).unsqueeze(-1)
        for group in self._groups:
            edited = group.apply(x, edited, masks, calm)
        return edited.to(resid.dtype)

    def take_counts(self) -> list[EditCounts]:
        """Return the counts of each edit since the last call, and start again from zero."""
        if not self._groups:  # never called
            return [EditCounts(0, 0, None) for _ in self._layer.selectors]
        return [_total(rows) for rows in self.take_row_counts()]

    def take_row_counts(self) -> list[list[EditCounts]]:
        """Return each edit's counts row by row since the last call, and start again from zero.

        A row is an index of the residual's first axis where it has three; rows must stay in place
        between two calls. A residual of two axes is one row. No rows where nothing ran.
        """
        if not self._groups:  # never called
            return [[] for _ in self._layer.selectors]
        return [rows for group in self._groups for rows in group.take_counts()]

    def _move(self, device: torch.device) -> None:
        self._groups = [_Group(group, device) for group in self._layer.groups]
        self._device = device


class _Group:
    """An `EditGroup` on a device, with its counters."""

    def __init__(self, group: EditGroup, device: torch.device) -> None:
        self.directions = group.directions.to(device)
        self.constants = group.constants.to(device)
        self.w = self.directions.w
        self.selectors = group.selectors
        self.one_selector = len(set(group.selectors)) == 1
        self.needs_acts = group.needs_acts
        self.needs_proj = group.needs_proj
        self.only_active = group.only_active.to(device) if group.only_active.any() else None
        self.counters = torch.zeros(3, 0, len(group.selectors), dtype=torch.int64, device=device)

    def apply(
        self, x: Tensor, edited: Tensor, masks: Mapping[Selector, Tensor], calm: Tensor | None
    ) -> Tensor:
        mask = self._mask(masks, x.device)
        self._count(0, mask)
        if calm is not None:
            self._count(1, mask & ~calm)
            mask = mask & calm
        acts = None
        if self.needs_acts:
            acts, factor = feature_acts(x, self.directions)
            active = acts != 0  # abstopk keeps negative activations
            self._count(2, active & mask)
            if self.only_active is not None:
                mask = mask & (active | ~self.only_active)
        else:
            factor = norm_factor(x, self.directions)
        proj = x @ self.w.T if self.needs_proj else None
        coefficient = coefficients(self.constants, acts, factor, proj)
        return edited + torch.where(mask, coefficient, 0.0) @ self.w

    def _mask(self, masks: Mapping[Selector, Tensor], device: torch.device) -> Tensor:
        if self.one_selector:
            one = masks[self.selectors[0]].to(device).unsqueeze(-1)
            return one.expand(*one.shape[:-1], len(self.selectors))
        return torch.stack([masks[selector].to(device) for selector in self.selectors], dim=-1)

    def _count(self, what: int, hits: Tensor) -> None:
        """Add the hits `(..., n_edits)`, row by row."""
        rows = hits.flatten(1, -2) if hits.dim() > 2 else hits.unsqueeze(0)
        if rows.shape[0] != self.counters.shape[1]:
            # Other rows than before: only the sum still means something.
            earlier = self.counters.sum(dim=1)
            self.counters = self.counters.new_zeros(3, rows.shape[0], rows.shape[-1])
            self.counters[:, 0] += earlier
        self.counters[what] += rows.sum(dim=1)

    def take_counts(self) -> list[list[EditCounts]]:
        """Return the counts by edit, then by row, and start again from zero."""
        edits = self.counters.permute(2, 1, 0).tolist()
        self.counters = self.counters[:, :0]
        return [
            [EditCounts(a, b, c if self.needs_acts else None) for a, b, c in rows] for rows in edits
        ]


def _total(rows: Sequence[EditCounts]) -> EditCounts:
    """Return the sum over rows."""
    return functools.reduce(operator.add, rows) if rows else EditCounts(0, 0, None)
