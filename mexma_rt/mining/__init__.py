"""Bitext mining: two sides, their neighbours, candidates by margin score, pairs; scores and filters of a ready bitext; the
report page. Thresholds are those of the model that embeds."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "FilterReport": "filter",
        "MiningReport": "found",
        "Pair": "found",
        "filter_bitext": "filter",
        "mine_report": "mine",
        "score_pairs": "score",
        "search_files": "on_disk",
    },
)
