"""`torchrun -m mexma_train run ...`: the same commands as `mexma-train`."""

from mexma_train.cli import main

main()
