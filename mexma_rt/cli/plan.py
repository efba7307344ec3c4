"""`mexma plan`: estimate the cost of mining two corpora of a given size before anything is embedded."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import click

from mexma_rt.cli.common import Memory, echo_json


@click.command(
    short_help="Estimate time, memory and disk of a large mining job.",
    epilog="Example: mexma plan 1000000000 1000000000 --machines 100",
)
@click.argument("rows_x", type=click.IntRange(min=1))
@click.argument("rows_y", type=click.IntRange(min=1))
@click.option("--dimensions", type=click.IntRange(min=1), default=256, show_default=True, help="Dimensions of the vectors.")
@click.option("-k", "--k", type=click.IntRange(min=1), default=4, show_default=True, help="Number of neighbours of each row.")
@click.option("--machines", type=click.IntRange(min=1), default=1, show_default=True, help="Number of machines.")
@click.option("--cores", type=click.IntRange(min=1), default=1, show_default=True, help="Cores of each machine.")
@click.option("--memory", type=Memory(), default="2GB", show_default=True, help="Memory of each machine.")
@click.option("--nlist", type=click.IntRange(min=1), help="Number of lists of the IVF-PQ index.  [default: from the rows]")
@click.option("--m", type=click.IntRange(min=1), help="Bytes per IVF-PQ code.  [default: a quarter of the dimensions]")
@click.option("--nprobe", type=click.IntRange(min=1), default=32, show_default=True, help="Lists searched for each row.")
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Candidates re-scored for each row and part.",
)
@click.option("--gflops", type=click.FloatRange(min=0, min_open=True), help="Float32 GFLOP/s per core.  [default: measured]")
@click.option(
    "--sentences",
    type=click.FloatRange(min=0, min_open=True),
    help="Sentences that a core embeds per second.  [default: as measured for 3 layers x 256]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def plan(
    rows_x: int,
    rows_y: int,
    dimensions: int,
    k: int,
    machines: int,
    cores: int,
    memory: int,
    nlist: int | None,
    m: int | None,
    nprobe: int,
    candidates: int,
    gflops: float | None,
    sentences: float | None,
    as_json: bool,
) -> None:
    """Estimate the cost of embedding and mining ROWS_X x ROWS_Y sentences: products, blocks, bytes, hours.

    Compares exact search (mexma knn) with IVF-PQ candidates and exact re-scoring (--index ivfpq). Rates are those of one core,
    measured in benchmarks/results/plan.md, unless --gflops and --sentences override them; --gflops also scales the search of
    the index. With several machines, exact search means --ray, whose workers share a machine's memory.
    """
    from mexma_rt.cluster import WORKER_THREADS
    from mexma_rt.errors import InputError
    from mexma_rt.knn.costs import MEASURED, exact_cost, ivfpq_cost
    from mexma_rt.knn.ivfpq import IvfPq
    from mexma_rt.knn.plan import duration

    speed = 1.0 if gflops is None else gflops * 1e9 / MEASURED.exact_flops
    rates = replace(
        MEASURED,
        exact_flops=MEASURED.exact_flops * speed,
        faiss_flops=MEASURED.faiss_flops * speed,
        code_byte=MEASURED.code_byte / speed,
        component=MEASURED.component / speed,
        sentences=MEASURED.sentences if sentences is None else sentences,
    )
    workers = machines * cores
    share = memory * min(WORKER_THREADS, cores) // cores if machines > 1 else memory
    costs: dict[str, Any] = {
        "embed": {"cpu_seconds": (rows_x + rows_y) / rates.sentences, "bytes": 4.0 * dimensions * (rows_x + rows_y)},
        "exact": asdict(exact_cost(rows_x, rows_y, dimensions, k, share, rates, apart=machines > 1)),
    }
    try:
        settings = IvfPq(nlist=nlist, m=m, nprobe=nprobe, candidates=candidates)
        costs["ivfpq"] = asdict(ivfpq_cost(rows_x, rows_y, dimensions, k, memory, settings, rates))
        refused = None
    except InputError as error:
        refused = str(error)
    for cost in costs.values():
        cost["seconds"] = cost["cpu_seconds"] / workers
    if as_json:
        echo_json({"rows": [rows_x, rows_y], "machines": machines, "cores": cores, "ivfpq_refused": refused, **costs})
        return
    click.echo(
        f"{rows_x:,} x {rows_y:,} rows of {dimensions} dimensions, k={k}, on {machines:,} machines of {cores} cores and "
        f"{memory / 1e9:,.0f} GB\n"
        f"embedding     {duration(costs['embed']['seconds']):>12}   {rates.sentences:,.0f} sentences per second and core, "
        f"{costs['embed']['bytes'] / 1e9:,.1f} GB of float32 vectors"
    )
    for name, cost in ((name, costs[name]) for name in ("exact", "ivfpq") if name in costs):
        what = "pairs of blocks" if name == "exact" else "parts of the two indexes"
        index = f", {cost['index_bytes'] / 1e9:,.1f} GB of index" if cost["index_bytes"] else ""
        click.echo(
            f"{name + ' search':<14}{duration(cost['seconds']):>12}   {cost['cpu_seconds'] / 3600:,.0f} core hours; "
            f"{cost['tasks']:,} {what} of {cost['block'][0]:,} and {cost['block'][1]:,} rows; "
            f"{cost['read_bytes'] / 1e9:,.1f} GB read, {cost['result_bytes'] / 1e9:,.1f} GB of neighbours{index}"
        )
    if refused:
        click.echo(f"ivfpq search: not possible: {refused}")
