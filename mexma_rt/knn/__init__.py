"""Nearest neighbours of two sets of vectors by inner product, both ways at once: exact in memory, on disk and on a GPU,
approximate with faiss; and the margin scores that are computed from them."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "KnnReport": "on_disk",
        "Neighbours": "search",
        "approximate_neighbours": "approximate",
        "knn_files": "on_disk",
        "margin_scores": "margin",
        "merge_neighbours": "keys",
        "mutual_neighbours": "search",
        "nearest": "search",
        "neighbour_means": "margin",
        "neighbours": "search",
        "open_neighbours": "on_disk",
    },
)
