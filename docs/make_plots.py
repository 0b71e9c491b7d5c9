"""Draw docs/plots/*.svg from benchmarks/results: what was measured, and nothing that was not.

python docs/make_plots.py            # draw all again; a test fails while a plot is not that of its results

Needs no library and no network. A result whose text is no longer understood is an error that names the file and the
pattern.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOTS = Path(__file__).with_name("plots")
WIDTH = 720
UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
# Colours that tell apart on white and on black, for people who do not see red and green too.
COLOURS = ("#3f7fd1", "#d9822b", "#2a9d8f", "#a25ac2")
STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#444}.title{font-weight:600}.end{text-anchor:end}"
    ".middle{text-anchor:middle}.grid{stroke:#9a9a9a;opacity:.3}.bound{stroke:#c0392b;stroke-dasharray:5 4}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.bound{stroke:#ff7b6b}}</style>"
)


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic or linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + share * (self.end - self.start), 1)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def sized(text: str) -> float:
    """Bytes of "17.9 MB"."""
    value, unit = text.split()
    return number(value) * UNITS[unit]


def bytes_label(value: float) -> str:
    unit = next(unit for unit in reversed(UNITS) if value >= UNITS[unit] or unit == "B")
    return f"{value / UNITS[unit]:g} {unit}"


def result(name: str) -> str:
    return (RESULTS / name).read_text(encoding="utf-8")


def read(name: str, pattern: str) -> list[tuple[str, ...]]:
    """Groups of every match of a pattern in a result.

    Raises:
        ValueError: nothing in the file matches.
    """
    matches = [match.groups() for match in re.finditer(pattern, result(name), re.M)]
    if not matches:
        raise ValueError(f"benchmarks/results/{name} holds nothing like {pattern!r}; mend the pattern in {__file__}")
    return matches


def models(name: str) -> list[tuple[float, float]]:
    """(measured, predicted) bytes of every row of a table of whole models."""
    amount = r"([\d.,]+ [KMG]?B)"
    rows = read(name, rf"^\S.*?\s{amount}\s+\d+\s+{amount}\s+{amount}")
    return [(sized(measured), sized(predicted)) for _, predicted, measured in rows]


def calls(name: str) -> list[tuple[float, float]]:
    """(measured, predicted) bytes of every attention call."""
    return [(case["measured"], case["predicted"]) for case in json.loads(result(name))["cases"]]


def text(x: float, y: float, words: str, kind: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{marked}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>'


def picture(height: float, title: str, description: str, parts: Sequence[str]) -> str:
    """One SVG with a title and a description for those who do not see it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" '
        'role="img">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    )
    return "\n".join([head + STYLE, text(0, 18, title, "title"), *parts, "</svg>"]) + "\n"


def legend(items: Sequence[tuple[str, str]], y: float) -> list[str]:
    """Dots with what they stand for, in columns."""
    step = WIDTH / len(items)
    return [
        f'<circle cx="{6 + step * i:g}" cy="{y - 4:g}" r="5" fill="{colour}"/>' + text(16 + step * i, y, words)
        for i, (words, colour) in enumerate(items)
    ]


def ticks(axis: Axis) -> list[float]:
    """Powers of ten within an axis of bytes."""
    return [10.0**power for power in range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)]


def peaks() -> str:
    """How far plans lie above what was measured: every attention call and every whole model, on two devices."""
    series = (
        ("attention, CPU", calls("attention_memory_cpu.json")),
        ("models, CPU", models("model_memory_cpu.txt")),
        ("attention, H200", calls("attention_memory_cuda.json")),
        ("models, H200", models("model_memory_cuda.txt")),
    )
    points = [pair for _, pairs in series for pair in pairs]
    top = max(1.6, max(predicted / measured for measured, predicted in points))
    x = Axis(
        min(measured for measured, _ in points) / 1.5,
        max(measured for measured, _ in points) * 1.5,
        60,
        WIDTH - 10,
        log=True,
    )
    y = Axis(0.9, top + 0.05, 300, 60)
    parts = legend([(name, colour) for (name, _), colour in zip(series, COLOURS, strict=True)], 42)
    for value in ticks(x):
        parts += [line(x(value), 60, x(value), 300, "grid"), text(x(value), 318, bytes_label(value), "middle")]
    for value in (1.0, 1.25, 1.5, 2.0):
        parts += [
            line(60, y(value), WIDTH - 10, y(value), "bound" if value == 1 else "grid"),
            text(54, y(value) + 4, f"{value:g}", "end"),
        ]
    for (_, pairs), colour in zip(series, COLOURS, strict=True):
        dots = sorted({(x(measured), y(predicted / measured)) for measured, predicted in pairs})
        path = "".join(f"M{a:g} {b:g}h0" for a, b in dots)
        parts.append(
            f'<path d="{path}" stroke="{colour}" stroke-width="5" stroke-linecap="round" fill="none" opacity=".6"/>'
        )
    parts.append(text(WIDTH / 2, 338, "measured peak", "middle"))
    below = sum(predicted < measured for measured, predicted in points)
    return picture(
        345,
        "Predicted peak / measured peak",
        f"{len(points)} measurements; {below} of them exceed their plan, which they would below the dashed line.",
        parts,
    )


def ratios() -> list[tuple[str, str, float]]:
    """(what ran, against what, archport's rate over the other's) of every comparison that is drawn."""
    (bert,), (modern,) = read("bidirectional_gpu_cuda.txt", r"archport / best of sentence-transformers: ([\d.]+)x")[:2]
    shapes = {
        shape: float(ratio)
        for shape, ratio in reversed(read("qwen3_gpu_cuda.txt", r"^(\d+ x \d+)\s+[\d,]+\s+[\d,]+\s+([\d.]+)$"))
    }
    decoding = {
        rows: float(ratio)
        for rows, ratio in reversed(read("qwen3_gpu_cuda.txt", r"^(\d+)\s+[\d,]+\s+[\d,]+\s+([\d.]+)$"))
    }
    ((long,), *_) = read("qwen3_gpu_cuda.txt", r"ratio ([\d.]+)")
    ((delta_lm, delta_hf),) = read(
        "qwen35_gpu_cuda.txt", r"2048 tokens: .*?([\d.]+) times mlx-lm.*?([\d.]+) times transformers"
    )
    ((_, images),) = read(
        "qwen3_vl_cuda.txt", r"archport / transformers: ([\d.]+)x with its processor, ([\d.]+)x without"
    )
    ((mini,),) = read("minilm_cpu.txt", r"archport \(corpus\) / sentence-transformers: ([\d.]+)x")
    ((mini_mlx,),) = read("minilm_cpu.txt", r"archport \(corpus\) / mlx-embeddings \(each\): ([\d.]+)x")
    ((mpnet,),) = read("mpnet_cpu.txt", r"archport / sentence-transformers, median of the turns: ([\d.]+)")
    return [
        ("BERT-base, corpus, H200", "sentence-transformers", float(bert)),
        ("ModernBERT-base, corpus, H200", "sentence-transformers", float(modern)),
        ("Qwen3 0.6B, 32 x 512 tokens, H200", "mlx-lm", shapes["32 x 512"]),
        ("Qwen3 0.6B, 1 x 512 tokens, H200", "mlx-lm", shapes["1 x 512"]),
        ("Qwen3 0.6B, 1 x 32,768 tokens, H200", "mlx-embeddings", float(long)),
        ("Qwen3 0.6B, decoding 1 row, H200", "mlx-lm", decoding["1"]),
        ("Qwen3 0.6B, decoding 32 rows, H200", "mlx-lm", decoding["32"]),
        ("Qwen3.5 4B, 4 layers, 2,048 tokens, H200", "transformers", float(delta_hf)),
        ("Qwen3.5 4B, 4 layers, 2,048 tokens, H200", "mlx-lm", float(delta_lm)),
        ("Qwen3-VL 2B, 64 images, H200", "transformers", float(images)),
        ("all-MiniLM-L6-v2, corpus, 2 CPU cores", "sentence-transformers", float(mini)),
        ("all-MiniLM-L6-v2, text by text, 2 CPU cores", "mlx-embeddings", float(mini_mlx)),
        ("all-mpnet-base-v2, corpus, 2 CPU cores", "sentence-transformers", float(mpnet)),
    ]


def speeds() -> str:
    """Rates against other libraries, one bar each, those that lose included."""
    rows = ratios()
    x = Axis(0.5, max(100.0, max(ratio for *_, ratio in rows)), 290, 520, log=True)
    bottom = 46 + 26 * len(rows)
    parts = []
    for value in (1.0, 2.0, 5.0, 10.0, 50.0):
        parts += [
            line(x(value), 34, x(value), bottom, "bound" if value == 1 else "grid"),
            text(x(value), bottom + 16, f"{value:g}x", "middle"),
        ]
    for i, (what, peer, ratio) in enumerate(rows):
        y = 40 + 26 * i
        left, right = sorted((x(1.0), x(ratio)))
        colour = COLOURS[0] if ratio >= 1 else COLOURS[1]
        parts += [
            text(0, y + 15, what),
            f'<rect x="{left:g}" y="{y:g}" width="{max(right - left, 1):g}" height="20" rx="2" fill="{colour}"/>',
        ]
        parts.append(text(530, y + 15, f"{ratio:g}x {peer}"))
    return picture(
        bottom + 24,
        "Rate against other libraries, same weights and inputs",
        "; ".join(f"{a}: {c:g} times {b}" for a, b, c in rows),
        parts,
    )


def windows() -> str:
    """The peak of a windowed encoder by context, its plan, and the mask that is never made."""
    rows = read(
        "bidirectional_cpu.txt",
        r"^\s*([\d,]+) tokens: peak\s+([\d,]+) bytes.*?predicted ([\d,]+); a mask of bools alone would take ([\d,]+)",
    )
    tokens = [number(row[0]) for row in rows]
    series = [
        (name, [number(row[column]) for row in rows], colour)
        for name, column, colour in (
            ("measured", 1, COLOURS[0]),
            ("planned", 2, COLOURS[2]),
            ("a mask of one byte a pair, alone", 3, COLOURS[1]),
        )
    ]
    values = [value for _, column, _ in series for value in column]
    x, y = Axis(tokens[0], tokens[-1], 70, WIDTH - 30, log=True), Axis(min(values), max(values), 290, 60, log=True)
    parts = legend([(name, colour) for name, _, colour in series], 42)
    for value in tokens:
        parts += [line(x(value), 60, x(value), 290, "grid"), text(x(value), 308, f"{value:,.0f}", "middle")]
    for value in ticks(y):
        parts += [line(70, y(value), WIDTH - 30, y(value), "grid"), text(64, y(value) + 4, bytes_label(value), "end")]
    for _, column, colour in series:
        path = " ".join(f"{x(a):g},{y(b):g}" for a, b in zip(tokens, column, strict=True))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
    parts.append(text(WIDTH / 2, 328, "tokens of one text", "middle"))
    what = "; ".join(f"{name}: " + ", ".join(bytes_label(value) for value in column) for name, column, _ in series)
    return picture(335, "Memory of ModernBERT's windows on a CPU, by context", what, parts)


def conversion() -> str:
    """Memory of converting a checkpoint of 1 GB, against the checkpoint itself."""
    rows = read("convert_memory_cpu.txt", r"^([\d.]+) GB in\s+(\d+) shards, (--\S+ \S+)\s+peak RssAnon\s+([\d.]+) MiB")
    whole = max(float(size) * 1e9 for size, *_ in rows)
    x = Axis(0, whole, 250, WIDTH - 90)
    parts = []
    bars = [
        (f"{option}, {count} shard{'s' * (count != '1')}", float(peak) * 2**20, COLOURS[0])
        for _, count, option, peak in rows
    ]
    bars.append(("the checkpoint", whole, COLOURS[1]))
    for i, (words, value, colour) in enumerate(bars):
        y = 34 + 24 * i
        parts.append(text(0, y + 14, words))
        parts.append(f'<rect x="250" y="{y:g}" width="{x(value) - 250:g}" height="18" rx="2" fill="{colour}"/>')
        parts.append(text(x(value) + 6, y + 14, f"{value / 1e6:,.0f} MB"))
    what = "; ".join(f"{words}: {value / 1e6:,.0f} MB" for words, value, _ in bars)
    return picture(44 + 24 * len(bars), "Peak memory of archport convert, a checkpoint of 1 GB", what, parts)


DRAWN: dict[str, Callable[[], str]] = {"peaks": peaks, "speeds": speeds, "windows": windows, "conversion": conversion}


if __name__ == "__main__":
    PLOTS.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (PLOTS / f"{name}.svg").write_text(draw(), encoding="utf-8")
