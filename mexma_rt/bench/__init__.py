"""`mexma bench`: how fast each precision of a model embeds on this machine, every route in its own process."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    plot="ratio_bars",
    run="Route Row as_data as_table measure our_routes",
    worker="Embed serve",
)
