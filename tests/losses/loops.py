"""Every loss once more, as slow and plain loops over rows, positives and negatives: what the quick ones are judged by.

An oracle takes ``(loss, z, labels, keys, key_labels, own)``: ``own(i, j)`` is true where row i is key j itself. Everything
is float64, and differentiable by autograd on single numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Own = Callable[[int, int], bool]
ZERO = torch.zeros((), dtype=torch.float64)


def log_sum(terms: list[Tensor]) -> Tensor:
    """log of the sum of e^term."""
    return torch.logsumexp(torch.stack(terms), 0)


def log1p_sum(terms: list[Tensor]) -> Tensor:
    """log of 1 + the sum of e^term."""
    return log_sum([ZERO, *terms])


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean() if terms else ZERO


def total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum() if terms else ZERO


def relations(y: Tensor, ky: Tensor, own: Own) -> tuple[list[list[int]], list[list[int]]]:
    """For each row, the keys that are its positives and those that are its negatives."""
    rows, keys = y.tolist(), ky.tolist()
    positives = [[j for j, other in enumerate(keys) if other == label and not own(i, j)] for i, label in enumerate(rows)]
    negatives = [[j for j, other in enumerate(keys) if other != label] for label in rows]
    return positives, negatives


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, with gradient 0 at distance 0."""
    step = a - b
    return torch.linalg.vector_norm(step) if bool((step != 0).any()) else (step * 0).sum()


def cosine(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    return (a @ b) / (torch.linalg.vector_norm(a).clamp_min(eps) * torch.linalg.vector_norm(b).clamp_min(eps))


def contrastive_pair(loss: Any, a: Tensor, b: Tensor, same: bool) -> Tensor:
    d = distance(a, b)
    if loss.distance == "squared":
        return loss.weight * (d.square() if same else (loss.margin - d.square()).clamp_min(0))
    return loss.weight * (d.square() if same else (loss.margin - d).clamp_min(0).square())


def cosine_mse_pair(loss: Any, a: Tensor, b: Tensor, same: bool) -> Tensor:
    return (cosine(a, b, loss.eps) - float(same)).square()


def over_pairs(each: Callable[[Any, Tensor, Tensor, bool], Tensor]) -> Callable[..., Tensor]:
    def oracle(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
        terms = [each(loss, z[i], k[j], bool(y[i] == ky[j])) for i in range(len(z)) for j in range(len(k)) if not own(i, j)]
        return mean(terms)

    return oracle


def siglip(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    scale = loss.log_scale.exp()
    terms = []
    for i in range(len(z)):
        for j in range(len(k)):
            if not own(i, j):
                sign = 1.0 if y[i] == ky[j] else -1.0
                terms.append(-torch.sigmoid(sign * (scale * (z[i] @ k[j]) + loss.bias)).log())
    return total(terms) / len(z)


def clip(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    def one_way(s: Tensor, y: Tensor, ky: Tensor, own: Own) -> Tensor:
        positives, negatives = relations(y, ky, own)
        terms = []
        for i in range(len(s)):
            if positives[i]:
                everyone = log_sum([s[i, a] for a in positives[i] + negatives[i]])
                terms.append(mean([everyone - s[i, p] for p in positives[i]]))
        return mean(terms)

    s = loss.log_scale.exp() * (z @ k.T)
    there = one_way(s, y, ky, own)
    if any(own(i, j) for i in range(len(z)) for j in range(len(k))):
        return there  # rows and keys are of one tower
    return (there + one_way(s.T, ky, y, lambda j, i: False)) / 2


def info_nce(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T / loss.temperature
    terms = [log_sum([s[i, p], *(s[i, n] for n in negatives[i])]) - s[i, p] for i in range(len(z)) for p in positives[i]]
    return mean(terms)


def supcon(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T / loss.temperature
    terms = []
    for i in range(len(z)):
        if positives[i]:
            everyone = log_sum([s[i, a] for a in positives[i] + negatives[i]])
            if loss.mean == "outside":
                terms.append(mean([everyone - s[i, p] for p in positives[i]]))
            else:
                terms.append(-(mean([(s[i, p] - everyone).exp() for p in positives[i]]).log()))
    return mean(terms)


def dcl(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T / loss.temperature
    pairs = [(i, p) for i in range(len(z)) if negatives[i] for p in positives[i]]
    return mean([log_sum([s[i, n] for n in negatives[i]]) - s[i, p] for i, p in pairs])


def dclw(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T
    pairs = [(i, p) for i in range(len(z)) if negatives[i] for p in positives[i]]
    if not pairs:
        return ZERO
    power = {pair: (s[pair] / loss.sigma).exp() for pair in pairs}
    middle = mean(list(power.values()))
    terms = []
    for i, p in pairs:
        weight = 2.0 - power[i, p] / middle
        terms.append(log_sum([s[i, n] / loss.temperature for n in negatives[i]]) - weight * s[i, p] / loss.temperature)
    return mean(terms)


def n_pair(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T
    terms = [log1p_sum([s[i, n] - s[i, p] for n in negatives[i]]) for i in range(len(z)) for p in positives[i]]
    return mean(terms) + loss.l2 * mean([row @ row for row in z]) if terms else ZERO


def snn(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    terms = []
    for i in range(len(z)):
        near = [-distance(z[i], k[p]).square() / loss.temperature for p in positives[i]]
        far = [-distance(z[i], k[n]).square() / loss.temperature for n in negatives[i]]
        if near:
            terms.append(log_sum(near + far) - log_sum(near))
    return mean(terms)


def triplet(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    plain = [[distance(z[i], k[j]) for j in range(len(k))] for i in range(len(z))]
    d = [[one.square() if loss.distance == "squared" else one for one in row] for row in plain]

    def cost(i: int, p: int, n: int) -> Tensor:
        gap = d[i][p] - d[i][n]
        return log1p_sum([gap]) if loss.soft_margin else (gap + loss.margin).clamp_min(0)

    terms = []
    for i in range(len(z)):

        def by_distance(j: int, row: int = i) -> float:
            return float(plain[row][j].detach())

        if not positives[i] or not negatives[i]:
            continue
        nearest = min(negatives[i], key=by_distance)
        if loss.mining == "all":
            terms += [cost(i, p, n) for p in positives[i] for n in negatives[i]]
        elif loss.mining == "hard":
            terms.append(cost(i, max(positives[i], key=by_distance), nearest))
        elif loss.mining == "easy-positive":
            terms.append(cost(i, min(positives[i], key=by_distance), nearest))
        else:
            for p in positives[i]:
                farther = [n for n in negatives[i] if by_distance(n) > by_distance(p)]
                if farther:
                    terms.append(cost(i, p, min(farther, key=by_distance)))
    if loss.mining == "all" and not loss.soft_margin:
        terms = [term for term in terms if term > 0]
    return mean(terms)


def lifted(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    _, of_keys = relations(ky, y, lambda j, i: own(i, j))
    d = [[distance(z[i], k[j]) for j in range(len(k))] for i in range(len(z))]
    terms = []
    for i in range(len(z)):
        for p in positives[i]:
            far = [loss.margin - d[i][n] for n in negatives[i]] + [loss.margin - d[n][p] for n in of_keys[p]]
            if far:
                terms.append((d[i][p] + log_sum(far)).clamp_min(0).square() / 2)
    return mean(terms)


def multi_similarity(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T
    terms = []
    for i in range(len(z)):
        seen = s[i].tolist()
        near = [p for p in positives[i] if negatives[i] and seen[p] - loss.epsilon < max(seen[n] for n in negatives[i])]
        far = [n for n in negatives[i] if positives[i] and seen[n] + loss.epsilon > min(seen[p] for p in positives[i])]
        pull = log1p_sum([-loss.alpha * (s[i, p] - loss.base) for p in near]) / loss.alpha
        terms.append(pull + log1p_sum([loss.beta * (s[i, n] - loss.base) for n in far]) / loss.beta)
    return mean(terms)


def circle(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T
    terms = []
    for i in range(len(z)):
        exponents = []
        for p in positives[i]:
            pull = (1 + loss.margin - s[i, p].detach()).clamp_min(0)
            for n in negatives[i]:
                push = (s[i, n].detach() + loss.margin).clamp_min(0)
                exponents.append(loss.scale * (push * (s[i, n] - loss.margin) - pull * (s[i, p] - 1 + loss.margin)))
        if exponents:
            terms.append(log1p_sum(exponents))
    return mean(terms)


def smooth_ap(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, negatives = relations(y, ky, own)
    s = z @ k.T
    terms = []
    for i in range(len(z)):
        precisions = []
        for p in positives[i]:
            before = {j: torch.sigmoid((s[i, j] - s[i, p]) / loss.temperature) for j in positives[i] + negatives[i] if j != p}
            rank = 1 + total([before[j] for j in positives[i] if j != p])
            precisions.append(rank / (rank + total([before[j] for j in negatives[i]])))
        if precisions:
            terms.append(1 - mean(precisions))
    return mean(terms)


def vicreg(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, _ = relations(y, ky, own)
    agree = [(z[i] - k[p]).square().mean() for i in range(len(z)) for p in positives[i]]
    if not agree or len(z) < 2 or len(k) < 2:
        return ZERO

    def spread(side: Tensor) -> Tensor:
        return mean([(1 - (column.var() + 1e-4).sqrt()).clamp_min(0) for column in side.T])

    def overlap(side: Tensor) -> Tensor:
        covariance, dim = torch.cov(side.T), side.shape[1]
        return total([covariance[c, e].square() for c in range(dim) for e in range(dim) if c != e]) / dim

    variance = (spread(z) + spread(k)) / 2
    return loss.invariance * mean(agree) + loss.variance * variance + loss.covariance * (overlap(z) + overlap(k))


def barlow(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    positives, _ = relations(y, ky, own)
    pairs = [(i, p) for i in range(len(z)) for p in positives[i]]
    if not pairs or len(z) < 2 or len(k) < 2:
        return ZERO

    def standard(side: Tensor) -> Tensor:
        return (side - side.mean(0)) / (side.var(0, correction=0) + 1e-5).sqrt()

    a, b, dim = standard(z), standard(k), z.shape[1]
    cross = [[mean([a[i, c] * b[p, e] for i, p in pairs]) for e in range(dim)] for c in range(dim)]
    off = [cross[c][e].square() for c in range(dim) for e in range(dim) if c != e]
    return total([(1 - cross[c][c]).square() for c in range(dim)]) + loss.redundancy * total(off)


def cross_entropy(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    return smoothed(list(z), y, loss.label_smoothing)


def smoothed(scores: Any, y: Tensor, e: float) -> Tensor:
    terms = []
    for row, label in zip(scores, y, strict=True):
        logs = [score - log_sum(list(row)) for score in row]
        terms.append(-(1 - e) * logs[int(label)] - e * mean(logs))
    return mean(terms)


def class_cosines(loss: Any, z: Tensor) -> list[list[list[Tensor]]]:
    """Cosines of row i, class c, centre k."""
    centres = len(loss.weight) // loss.classes
    return [[[cosine(row, loss.weight[c * centres + one]) for one in range(centres)] for c in range(loss.classes)] for row in z]


def softmax_of(scores: list[list[Tensor]], y: Tensor) -> Tensor:
    return mean([log_sum(row) - row[int(label)] for row, label in zip(scores, y, strict=True)])


def norm_softmax(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    return smoothed([[one[0] / loss.temperature for one in row] for row in class_cosines(loss, z)], y, loss.label_smoothing)


def cosface(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    scores = [[loss.scale * (one[0] - loss.margin * bool(c == y[i])) for c, one in enumerate(row)]
              for i, row in enumerate(class_cosines(loss, z))]  # fmt: skip
    return softmax_of(scores, y)


def arcface(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    scores = []
    for i, row in enumerate(class_cosines(loss, z)):
        scores.append([loss.scale * torch.stack(one).max() for one in row])
        near = torch.stack(row[int(y[i])]).max()
        angle = torch.acos(near)
        past = angle + loss.margin > math.pi
        turned = near - loss.margin * math.sin(loss.margin) if past else torch.cos(angle + loss.margin)
        scores[-1][int(y[i])] = loss.scale * turned
    return softmax_of(scores, y)


def proxy_nca(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    unit = [row / torch.linalg.vector_norm(row) for row in z]
    proxies = [row / torch.linalg.vector_norm(row) for row in loss.weight]
    terms = []
    for row, label in zip(unit, y.tolist(), strict=True):
        scores = [-distance(row, proxy).square() / loss.temperature for proxy in proxies]
        terms.append(log_sum([score for c, score in enumerate(scores) if c != label]) - scores[label])
    return mean(terms)


def proxy_anchor(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    s = [[one[0] for one in row] for row in class_cosines(loss, z)]
    near, far = [], []
    for c in range(loss.classes):
        rows = [i for i in range(len(z)) if y[i] == c]
        if rows:
            near.append(log1p_sum([-loss.scale * (s[i][c] - loss.margin) for i in rows]))
        far.append(log1p_sum([loss.scale * (s[i][c] + loss.margin) for i in range(len(z)) if y[i] != c]))
    return mean(near) + mean(far)


def soft_triple(loss: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Own) -> Tensor:
    scores = []
    for i, row in enumerate(class_cosines(loss, z)):
        scores.append([])
        for c, centres in enumerate(row):
            whole = log_sum([s / loss.gamma for s in centres])
            similarity = total([(s / loss.gamma - whole).exp() * s for s in centres])
            scores[-1].append(loss.scale * (similarity - loss.margin * bool(c == y[i])))
    unit = [row / torch.linalg.vector_norm(row) for row in loss.weight]
    many = loss.centres
    apart = [
        distance(unit[c * many + a], unit[c * many + b]) for c in range(loss.classes) for a in range(many) for b in range(a)
    ]
    return softmax_of(scores, y) + loss.spread * mean(apart)
