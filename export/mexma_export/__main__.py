"""`python -m mexma_export`."""

from mexma_export.cli import main

if __name__ == "__main__":
    main()
