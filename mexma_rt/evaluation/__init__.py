"""Evaluation of encoders: xsim and xsim++ error rates, retrieval accuracy, whole folders of languages, and plots."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    augmented="read_augmented",
    folder="Altered Comparison FolderResult ParallelFiles XsimSettings compare evaluate_folder",
    measures="XsimResult retrieval_accuracy xsim xsim_both",
    plot="bars heat_map",
)
