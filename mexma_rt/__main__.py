"""`python -m mexma_rt ...`: the same commands as `mexma`."""

from mexma_rt.cli import main

if __name__ == "__main__":
    main()
