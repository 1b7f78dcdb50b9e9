"""Groups by average linkage, of blocks that are to be merged and of texts."""

from __future__ import annotations

import torch
from torch import Tensor


def linked(similarity: Tensor, least: float = -2.0, count: int = 1) -> Tensor:
    """Makes one of the two groups with the largest mean cosine, again and again.

    Args:
        similarity: cosines of N things, (N, N), symmetric.
        least: two groups with a smaller mean cosine stay apart; the default lets none.
        count: the number of groups to stop at.

    Returns:
        Each thing's group, (N,), numbered from 0 by the groups' first members. It takes about N²
        operations and numbers of memory.
    """
    near = similarity.clone()  # mean cosines between the groups that there are
    near.fill_diagonal_(-torch.inf)
    size = torch.ones(len(near))
    merges = []  # (mean cosine, a member of one group, a member of the other)
    for first in range(len(near)):
        while size[first]:
            one, other = first, int(near[first].argmax())
            if near[one, other] < least:
                break  # merging others brings none of them nearer
            while near[other, (third := int(near[other].argmax()))] > near[one, other]:
                one, other = other, third
            # Each is now the other's nearest, so they become one before either meets a third.
            merges.append((float(near[one, other]), one, other))
            row = (size[one] * near[one] + size[other] * near[other]) / (size[one] + size[other])
            near[one], near[:, one] = row, row
            near[other], near[:, other] = -torch.inf, -torch.inf
            near[one, one] = -torch.inf
            size[one] += size[other]
            size[other] = 0
    label = torch.arange(len(near))
    merges.sort(key=lambda merge: -merge[0])  # stable: of equals, a part comes before its whole
    for _, one, other in merges[: max(0, len(near) - count)]:
        kept, gone = sorted((int(label[one]), int(label[other])))
        label[label == gone] = kept
    return label.unique(return_inverse=True)[1]
