"""An SAE that shows activations as they are, rows of made-up activations, a published algorithm."""

import math

import torch

from interventions.hook_points import parse_hook_point
from interventions.residuals import ResidBatch
from interventions.sae.build import RawSAE, build_sae
from interventions.spec import SAERef
from interventions.subject import Subject


def open_sae(d, norms=None, architecture="standard"):
    """Return an SAE whose activations are its input, where that is positive."""
    decoder = torch.eye(d) if norms is None else torch.diag(norms)
    raw = RawSAE(
        architecture,
        decoder,
        "open",
        W_enc=torch.eye(d),
        b_enc=torch.zeros(d),
        b_dec=torch.zeros(d),
        k=d if architecture == "abstopk" else None,
        hook_name="blocks.1.hook_resid_post",
    )
    return build_sae(raw)


def open_subject(d, *, guard=None, median=1.0, norms=None, architecture="standard"):
    """Return a subject without a model, for what reads no more than activations."""
    return Subject(
        model=None,
        tokenizer=None,
        label="none",
        sae=open_sae(d, norms, architecture),
        sae_ref=SAERef(path="open"),
        hook_point=parse_hook_point("blocks.1.hook_resid_post"),
        median_norm=median,
        guard=guard,
    )


def padded(token_rows, act_rows):
    """Return a batch of rows, padded on the right with token 0 and activations of 7."""
    width = max(map(len, token_rows))
    tokens = torch.zeros(len(token_rows), width, dtype=torch.long)
    real = torch.zeros(len(token_rows), width, dtype=torch.bool)
    resid = torch.full((len(token_rows), width, act_rows[0].shape[-1]), 7.0)
    for slot, (ids, acts) in enumerate(zip(token_rows, act_rows, strict=True)):
        tokens[slot, : len(ids)] = torch.as_tensor(ids)
        real[slot, : len(ids)] = True
        resid[slot, : len(ids)] = acts
    return ResidBatch(tuple(range(len(token_rows))), tokens, real, resid)


class RollingMeans:
    """The published means, batch by batch: loops over tokens where the script has tensors.

    Windows know no documents; a token of a word is whatever belongs to a run of ids that is equal
    to a string's; ignored ids are left out of every mean after windows are drawn.
    """

    def __init__(self, groups, ignore, window):
        self.groups, self.ignore, self.window = groups, set(ignore), window
        self.means = [None] * (len(groups) + 2)
        self.counts = [0] * (len(groups) + 2)

    def update(self, tokens, acts):
        length = tokens.shape[1]
        members = [[] for _ in self.means]
        for b, row in enumerate(tokens.tolist()):
            union = set()
            for g, sequences in enumerate(self.groups):
                near = set()
                for sequence in sequences:
                    n = len(sequence)
                    for start in range(length - n + 1):
                        if row[start : start + n] == list(sequence):
                            for place in range(start, start + n):
                                low = max(place - self.window[0], 0)
                                high = min(place + self.window[1], length - 1)
                                near |= set(range(low, high + 1))
                near = {i for i in near if row[i] not in self.ignore}
                members[g] += [(b, i) for i in sorted(near)]
                union |= near
            members[-2] += [(b, i) for i in sorted(union)]
            rest = (i for i in range(length) if i not in union and row[i] not in self.ignore)
            members[-1] += [(b, i) for i in rest]
        for k, places in enumerate(members):
            if not places:
                continue
            mean = torch.stack([acts[b, i] for b, i in places]).mean(0)
            self.counts[k] += len(places)
            old = torch.zeros_like(mean) if self.means[k] is None else self.means[k]
            self.means[k] = old + (len(places) / self.counts[k]) * (mean - old)

    def scores(self, alpha, eps=1e-12):
        d = next(m for m in self.means if m is not None).shape
        means = [torch.zeros(d) if m is None else m for m in self.means]
        single = torch.stack(means[:-2], dim=1)
        p = single / (single.sum(1, keepdim=True) + eps)
        h = -(p * torch.where(p > 0, p.log(), torch.zeros_like(p))).sum(1)
        h = h / math.log(p.shape[1]) if p.shape[1] > 1 else torch.ones_like(h)
        near, rest = means[-2], means[-1]
        return near / (near.sum() + eps) * h**alpha - rest / (rest.sum() + eps)
