"""`mexma mine --report`: a self-contained HTML report of a mining job, for light and dark screens and for print.

It loads nothing and runs no scripts: styles and SVG charts are inline. Texts are escaped and keep their writing direction.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from math import log2
from pathlib import PurePath

import numpy as np

from mexma_rt.embedding.report import EmbedReport
from mexma_rt.mining.charts import Lengths, histogram, length_map
from mexma_rt.mining.found import MiningReport, Pair, Search
from mexma_rt.mining.warnings import KINDS
from mexma_rt.version import __version__

EXAMPLES = 8  # best pairs, and lowest candidates
BINS = 56
STYLE = """
:root{color-scheme:light dark;--bg:#f7f6f2;--card:#fff;--ink:#1d1e2c;--soft:#686a7c;--line:#e2e0d8;--accent:#2f4bb0;
--accent-soft:#dfe5fa;--mute:#c9c8c2;--warn:#8a4b00;--warn-bg:#fff3dc;--good:#1f7a4d;--bad:#b0413e}
@media (prefers-color-scheme:dark){:root{--bg:#14151c;--card:#1d1f29;--ink:#e9e9f0;--soft:#9c9eb2;--line:#31333f;
--accent:#8fa6ff;--accent-soft:#2a3154;--mute:#454857;--warn:#ffce85;--warn-bg:#3a2c12;--good:#6fcf9a;--bad:#f08f8b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 20px 56px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.12rem;margin:0 0 .35rem}
p{margin:.2rem 0 .8rem;text-wrap:pretty}
.soft{color:var(--soft)}.small{font-size:.86rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:26px 0 20px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:14px 16px}
.tile b{display:block;font-size:1.55rem;line-height:1.2;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile span{color:var(--soft);font-size:.84rem}
.card{padding:20px 22px;margin:0 0 18px}
.warning{background:var(--warn-bg);border-left:4px solid var(--warn);border-radius:8px;padding:11px 16px;margin:0 0 12px}
.warning b{color:var(--warn)}
.charts{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:18px}
.charts .card{margin:0 0 18px}
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}svg.wide{max-width:720px}
svg text{fill:var(--soft)}svg .axis{stroke:var(--line)}svg .kept{fill:var(--accent)}svg .rest{fill:var(--mute)}
svg .threshold{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:5 4}svg .threshold-text{fill:var(--bad)}
svg .ideal{stroke:var(--soft);stroke-dasharray:2 4;fill:none}svg .cell{fill:var(--accent)}
.key{display:inline-block;width:.7em;height:.7em;border-radius:3px;margin:0 .35em 0 .9em}.key:first-child{margin-left:0}
.pair{display:grid;grid-template-columns:92px minmax(0,1fr) minmax(0,1fr);gap:4px 18px;padding:11px 0;
border-top:1px solid var(--line);break-inside:avoid}
.pair .score{font-variant-numeric:tabular-nums;font-weight:650}
.pair .score small{display:block;font-weight:400;color:var(--soft);line-height:1.4}
.text{overflow-wrap:anywhere;unicode-bidi:plaintext;text-align:start}
.line{display:block;color:var(--soft);font-size:.76rem;font-variant-numeric:tabular-nums;direction:ltr;text-align:left}
.divider{color:var(--bad);font-size:.84rem;border-top:2px dashed var(--bad);padding-top:6px;margin-top:4px}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:6px 14px 6px 0;border-top:1px solid var(--line);overflow-wrap:anywhere}
th{font-weight:500;color:var(--soft);width:11.5rem}
@media (max-width:720px){main{padding:24px 14px}.charts{grid-template-columns:1fr;gap:0}.pair{grid-template-columns:1fr}
.card{padding:16px}th{width:38%}.pair .score small{display:inline;margin-left:.7em}}
@media (max-width:480px){svg.wide{font-size:19px}.tile:last-child:nth-child(odd){grid-column:1/-1}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#555;--line:#ccc;--accent:#2f4bb0;--mute:#bbb;--warn:#7a4200;
--warn-bg:#fff;--bad:#a03030}@page{margin:14mm}body{font-size:9.5pt;line-height:1.4}main{max-width:none;padding:0}
h1{font-size:18pt}h2,.divider,h2+p{break-after:avoid}.tiles{grid-template-columns:repeat(5,1fr);gap:8px;margin:14px 0}
.tile{padding:8px 10px}.tile b{font-size:1.3rem}.card,.tile,.warning{break-inside:avoid}.pairs{break-inside:auto}
.card{border:0;border-radius:0;padding:0;margin:0 0 16px}
.pair{grid-template-columns:80px minmax(0,1fr) minmax(0,1fr);padding:7px 0}
.charts{grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:18px}svg{font-size:15px}
svg *{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


@dataclass(kw_only=True)
class Tally:
    """Statistics for the page, counted as the pairs stream by."""

    search: Search
    edges: np.ndarray
    kept: np.ndarray  # pairs per bin
    best: list[Pair] = field(default_factory=list)
    last: list[Pair] = field(default_factory=list)  # the lowest kept pairs
    lengths: Lengths = field(default_factory=Lengths)

    @classmethod
    def of(cls, search: Search) -> Tally:
        """Return an empty tally for the settings of a search."""
        low, high = np.inf, -np.inf
        for scores in search.best_scores():
            low, high = min(low, float(scores.min())), max(high, float(scores.max()))
        finite = search.threshold if np.isfinite(search.threshold) else low
        edges = np.linspace(min(low, finite), max(high, finite) + 1e-6, BINS + 1)
        return cls(search=search, edges=edges, kept=np.zeros(BINS, np.int64))

    def watch(self, chunks: Iterable[np.ndarray]) -> Iterator[Pair]:
        """Yield the pairs of the chunks, counting them."""
        for chunk in chunks:
            self.kept += _binned(chunk["score"], self.edges)
            pairs = list(self.search.described(chunk))
            self.best += pairs[: max(0, EXAMPLES - len(self.best))]
            self.last = [*self.last, *pairs[-EXAMPLES // 2 :]][-EXAMPLES // 2 :]
            for pair in pairs:
                if pair.source is not None and pair.target is not None:
                    self.lengths.add(len(pair.source), len(pair.target))
            yield from pairs

    def all_scores(self) -> np.ndarray:
        """Return the counts of all best scores per bin."""
        return sum((_binned(scores, self.edges) for scores in self.search.best_scores()), np.zeros(BINS, np.int64))


def render_page(
    tally: Tally,
    report: MiningReport,
    *,
    names: tuple[str, str],
    below: Sequence[Pair],
    lowest: Sequence[Pair],
    embedded: Sequence[EmbedReport],
) -> str:
    """Return the page as HTML. names: the files of the sides; below: the best pairs below the threshold; embedded: what ran."""
    source, target = map(escape, _without_folders(names))
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    smaller = min(report.source.compared, report.target.compared)
    share = f"{report.pairs / smaller:.1%}" if report.retrieval in ("max", "intersect") else "–"
    tiles = [
        (f"{report.pairs:,}", "pairs"),
        (f"{report.source.compared:,}", "source lines compared"),
        (f"{report.target.compared:,}", "target lines compared"),
        (share, "of the smaller side paired"),
        (f"{report.seconds:,.1f} s", "in total"),
    ]
    body = [
        f"<h1>{source} ↔ {target}</h1>",
        f'<p class="soft">Mined with mexma-rt {escape(__version__)}, {now}: {escape(_sentence(report))}</p>',
        '<div class="tiles">' + "".join(f'<div class="tile"><b>{a}</b><span>{b}</span></div>' for a, b in tiles) + "</div>",
        *(f'<div class="warning" role="note"><b>{KINDS[w.kind]}.</b> {escape(w.message)}</div>' for w in report.warnings),
        _charts(tally, report),
        _examples(report, tally, below, lowest),
        _details(report, names, embedded),
    ]
    title = f"{source} ↔ {target}: {report.pairs:,} pairs"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def write_page(path: str, html: str) -> None:
    """Write the page, complete or not at all. Raises FileError."""
    from mexma_rt.files.atomic import atomic_write

    with atomic_write(path) as stream:
        stream.write(html.encode())


def _without_folders(names: tuple[str, str]) -> tuple[str, str]:
    """The last parts of two paths: one each, or as many as tell en/text.txt from fr/text.txt."""
    source, target = (PurePath(name).parts for name in names)
    deepest = max(len(source), len(target))
    kept = next((depth for depth in range(1, deepest + 1) if source[-depth:] != target[-depth:]), 1)
    return str(PurePath(*source[-kept:])), str(PurePath(*target[-kept:]))


def _sentence(report: MiningReport) -> str:
    how = {
        "max": "every sentence at most once",
        "intersect": "pairs that both sides choose",
        "fwd": "the best target of every source line",
        "bwd": "the best source of every target line",
        "knn": "all candidates of every sentence",
    }[report.retrieval]
    least = f"at least {_number(report.threshold)}" if abs(report.threshold) < float("inf") else "without a threshold"
    return f"{how}; {report.margin} margin over {report.k} neighbours, {least}."


def _number(value: float) -> str:
    return f"{value:g}" if np.isfinite(value) else "any"


def _binned(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]


def _charts(tally: Tally, report: MiningReport) -> str:
    whose = "target" if report.retrieval == "bwd" else "source"
    scores = histogram(tally.edges, tally.all_scores(), tally.kept, report.threshold)
    parts = [
        f'<section class="card"><h2>Scores</h2><p class="soft small"><i class="key" style="background:var(--accent)"></i>kept '
        f'pairs<i class="key" style="background:var(--mute)"></i>best candidate of every {whose} line</p>'
        f"{scores}</section>"
    ]
    if tally.lengths.pairs:
        low, middle, high = tally.lengths.ratios()
        parts.append(
            '<section class="card"><h2>Lengths</h2><p class="soft small">Characters of target by source; fuller colour: more '
            f"pairs. Half of the ratios are between {low:.2f} and {high:.2f}, the median is {middle:.2f} (dotted).</p>"
            f"{length_map(tally.lengths, log2(middle))}</section>"
        )
    return f'<div class="charts">{"".join(parts)}</div>' if len(parts) == 2 else parts[0]


def _examples(report: MiningReport, tally: Tally, below: Sequence[Pair], lowest: Sequence[Pair]) -> str:
    def section(title: str, note: str, rows: str) -> str:
        body = rows or '<p class="soft">None.</p>'
        return f'<section class="card pairs"><h2>{title}</h2><p class="soft small">{note}</p>{body}</section>'

    divider = f'<div class="divider">threshold {_number(report.threshold)}: pairs below were not kept</div>' if below else ""
    return (
        section(
            "Best pairs",
            "The highest scores. Ranks: of the target among the neighbours of the source / the reverse.",
            _pairs(tally.best),
        )
        + section(
            "Around the threshold",
            "The last that were kept, and the best that were not: these show whether the threshold is right.",
            _pairs(tally.last) + divider + _pairs(below),
        )
        + section(
            "Worst candidates", "The lowest scores of all candidates; such pairs should not be translations.", _pairs(lowest)
        )
    )


def _pairs(pairs: Sequence[Pair]) -> str:
    return "".join(
        f'<div class="pair"><div class="score">{p.score:.4f}<small>cosine {p.cosine:.3f}</small>'
        f"<small>ranks {p.forward_rank or '–'} / {p.backward_rank or '–'}</small></div>"
        f"{_text(p.source, p.source_index)}{_text(p.target, p.target_index)}</div>"
        for p in pairs
    )


def _text(text: str | None, index: int) -> str:
    shown = "" if text is None else escape(text if len(text) <= 600 else text[:600] + " …")
    return f'<div><span class="line">line {index + 1:,}</span><div class="text" dir="auto">{shown}</div></div>'


def _details(report: MiningReport, names: tuple[str, str], embedded: Sequence[EmbedReport]) -> str:
    rows: list[tuple[str, str]] = []
    for name, side, counts in zip(names, ("Source", "Target"), (report.source, report.target), strict=True):
        left_out = (
            f", {counts.blank:,} blank and {counts.repeated:,} repeated omitted" if counts.blank or counts.repeated else ""
        )
        rows.append((side, f"{name}: {counts.lines:,} lines{left_out}"))
    rows.append(("Margin", f"{report.margin}, {report.k} neighbours, threshold {_number(report.threshold)}"))
    rows.append(("Retrieval", f"{report.retrieval}: {_sentence(report).split(';')[0]}"))
    found = "" if report.recall is None else f"; found {report.recall.forward:.1%} and {report.recall.backward:.1%} of a sample"
    rows.append(("Neighbours", f"{report.index}{found}; {report.dimensions} dimensions"))
    for side, run in zip(("source", "target"), embedded, strict=False):
        cut = f"; {len(run.truncated):,} lines with more than {run.max_length} tokens were cut" if run.truncated else ""
        rows.append((f"Embedding {side}", f"{run.sentences_per_second:,.0f} sentences per second{cut}"))
    if embedded:
        run = embedded[0]
        rows.append(("Model", f"{run.model}, {run.precision} on {run.device} by {run.backend} ({run.reason})"))
    else:
        rows.append(("Model", "none: ready vectors"))
    versions = f"mexma-rt {__version__}, Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}"
    rows.append(("Versions", versions))
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(what)}</td></tr>" for name, what in rows)
    return f'<section class="card"><h2>What ran</h2><table>{cells}</table></section>'
