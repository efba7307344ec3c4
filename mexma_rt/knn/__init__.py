"""Nearest neighbours between two sets of vectors by inner product, both ways at once: exact in memory, on disk and on a GPU,
approximate with faiss; and the margin scores computed from them."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    approximate="Recall approximate_neighbours measure_recall search_part",
    blocks="Block absorb_blocks",
    costs="MEASURED Rates exact_cost ivfpq_cost",
    ivfpq="IvfPq",
    keys="merge_neighbours neighbours_of no_neighbours",
    margin="MARGINS margin_scores neighbour_means",
    on_disk="KnnReport SearchSettings knn_files open_neighbours write_neighbours",
    pair_search="BlockPair",
    plan="Plan SCAN_BYTES duration",
    search="Neighbours mutual_neighbours nearest neighbours unit_rows",
    vector_files="VectorFiles open_vectors",
)
