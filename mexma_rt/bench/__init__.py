"""`mexma bench`: how fast each precision of a model embeds on this machine, every route in a process of its own."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "measure": "run",
        "our_routes": "run",
    },
)
