"""Orders of pairs in which those that have an image in common follow one another."""

from __future__ import annotations

import numpy as np

from nearfar.sampling.labels import Rows


def linked_order(random: np.random.Generator, rows: Rows, partners: Rows, size: int) -> Rows:
    """A random order of pairs, in groups of ``size`` that have images in common.

    Images are the nodes of a graph and pairs its edges. A depth-first walk that takes edges at random meets, one after
    another, edges that share a node; it is cut into groups, and the groups are shuffled. Where each of many images has one
    random partner, 8 linked pairs are of 10 images, where 8 others are of 16.

    Args:
        random: decides where the walk begins, how it goes on, and the order of the groups.
        rows: one image of each pair ``[M]``.
        partners: the other ``[M]``.
        size: pairs in a group; the last pairs, too few for one, come last.

    Returns:
        The numbers 0 to M - 1 in that order.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, depth_first_order

    count = int(max(rows.max(), partners.max())) + 1
    names = random.permutation(count)
    one, other = names[rows], names[partners]

    def graph(one: Rows, other: Rows) -> coo_array:
        return coo_array((np.ones(len(one)), (one, other)), shape=(count + 1, count + 1)).tocsr()

    # A node more leads to each part of the graph, so that one walk meets all.
    part = connected_components(graph(one, other), directed=False)[1][:count]
    begins = np.unique(part, return_index=True)[1]
    root = np.full(len(begins), count)
    walk = depth_first_order(
        graph(np.concatenate([one, root]), np.concatenate([other, begins])), count, directed=False, return_predecessors=False
    )
    met = np.empty(count + 1, dtype=np.int64)
    met[walk] = np.arange(count + 1)
    order = np.lexsort((np.minimum(met[one], met[other]), np.maximum(met[one], met[other])))
    whole = len(order) // size
    groups = order[: whole * size].reshape(whole, size)[random.permutation(whole)]
    return np.concatenate([groups.ravel(), order[whole * size :]])
