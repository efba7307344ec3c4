"""A model folder: the manifest and its verified files, the golden vectors in it, and the published models that can become one.
Nothing here computes a vector."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "Bundle": "manifest",
        "FileEntry": "manifest",
        "Golden": "golden",
        "bundled_models": "manifest",
        "find_known": "known",
        "open_bundle": "manifest",
        "read_manifest": "manifest",
        "sha256_of": "manifest",
        "verify_files": "manifest",
    },
)
