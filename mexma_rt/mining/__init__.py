"""Bitext mining: two sides, their neighbours, candidates by margin score, pairs; scores and filters for an existing bitext; the
report page. Thresholds come from the model that embeds."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    background="Background model_identity open_background",
    bitext="slabs",
    calibration="ALONE Calibration DRAWS STEADY calibrate f1_curves",
    candidates="OneToOne RETRIEVALS ScoredNeighbours",
    filter="BACKGROUND FilterReport filter_bitext",
    found="MiningReport Pair Search",
    on_disk="search_files",
    page="EXAMPLES Tally render_page write_page",
    pairs="Embeds INDEXES MineSettings check_pools mine mine_report prepare",
    score="score_pairs",
    sides="Side compared_rows",
    thresholds="DEFAULT_THRESHOLD resolved",
)
