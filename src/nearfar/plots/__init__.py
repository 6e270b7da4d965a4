"""Plots of an embedding and of how it was trained: arrays in, a ``Plot`` with figure, caption and description out.

Nothing here knows a model, a run folder or a file format other than PNG and SVG.
"""

from nearfar.plots.comparison import Difference, paired_differences, sample_efficiency, score_dots
from nearfar.plots.curves import recall_at_k
from nearfar.plots.distances import distance_histogram
from nearfar.plots.maps import density_map, pca_map, scatter_map, tsne_maps
from nearfar.plots.matrices import class_cosines, confusion_matrix, count_confusions, most_confused
from nearfar.plots.neighbors import neighbor_grid, one_per_class, worst_mistakes, worst_rows
from nearfar.plots.pairs import pair_grid
from nearfar.plots.plot import Plot, save
from nearfar.plots.projections import project_pca, project_tsne, sample_rows
from nearfar.plots.training import loss_by_epoch
from nearfar.plots.views import missed_views, view_grid

__all__ = [
    "Difference",
    "Plot",
    "class_cosines",
    "confusion_matrix",
    "count_confusions",
    "density_map",
    "distance_histogram",
    "loss_by_epoch",
    "missed_views",
    "most_confused",
    "neighbor_grid",
    "one_per_class",
    "pair_grid",
    "paired_differences",
    "pca_map",
    "project_pca",
    "project_tsne",
    "recall_at_k",
    "sample_efficiency",
    "sample_rows",
    "save",
    "scatter_map",
    "score_dots",
    "tsne_maps",
    "view_grid",
    "worst_mistakes",
    "worst_rows",
]
