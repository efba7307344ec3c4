"""How good an encoder is: xsim and xsim++ error rates, retrieval accuracy, and their pictures."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "XsimResult": "xsim",
        "read_augmented": "augmented",
        "retrieval_accuracy": "xsim",
        "xsim_both": "xsim",
    },
)
