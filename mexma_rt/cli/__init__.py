"""The command line: `mexma embed | mine | score | filter | calibrate | align | knn | xsim | doctor | models | bench | plan`.

Exit status: 0 success; 1 bad data, a machine that cannot do it, or a standard output that cannot be written (one message on
stderr, no traceback); 2 wrong usage; 130 Ctrl-C.
"""

from __future__ import annotations

import click

from mexma_rt import MexmaError
from mexma_rt.cli.align import align
from mexma_rt.cli.bench import bench
from mexma_rt.cli.calibrate import calibrate_command
from mexma_rt.cli.doctor import doctor
from mexma_rt.cli.edges import EdgesCommand
from mexma_rt.cli.embed import embed
from mexma_rt.cli.filter import filter_command
from mexma_rt.cli.knn import knn
from mexma_rt.cli.mine import mine
from mexma_rt.cli.models import models
from mexma_rt.cli.plan import plan
from mexma_rt.cli.score import score
from mexma_rt.cli.xsim import xsim
from mexma_rt.version import __version__


class _Group(EdgesCommand, click.Group):
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MexmaError as error:
            click.echo(f"mexma: {error}", err=True)
            ctx.exit(1)
        except OSError as error:  # such as a name that is too long
            if error.filename is None:
                raise
            click.echo(f"mexma: {error.filename}: {error.strerror}.", err=True)
            ctx.exit(1)


@click.group(
    "mexma",
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Example: mexma mine french.txt english.txt -o pairs.tsv --show 5",
)
@click.version_option(__version__, prog_name="mexma")
def main() -> None:
    """Embed sentences in many languages, mine translations from two corpora, align documents and words, score and evaluate.

    Text files are UTF-8 with one sentence per line (.gz and .xz too); "-" is standard input.
    """


for command in (embed, mine, score, filter_command, calibrate_command, align, knn, xsim, doctor, models, bench, plan):
    main.add_command(command)
