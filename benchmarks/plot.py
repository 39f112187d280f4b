"""The plots of a report. `python benchmarks/plot.py results/cpu/<run>.json` draws those of a saved one again."""

import json
import sys
from pathlib import Path
from typing import Any

from machine import signature

Record = dict[str, Any]

COLOR = {
    "fastlnl": "#0a6e5c",
    "eager": "#b8b8b8",
    "torch.compile": "#e08a1e",
    "F.cross_entropy": "#4f7cac",
    "scikit-learn": "#c44e52",
    "cleanlab": "#4f7cac",
    "aum": "#8c6bb1",
    "scipy": "#c51b7d",
    "torch.topk": "#9c8f7a",
    "torch.sort": "#5f5648",
}
MARKER = {"fastlnl": "o", "eager": "s", "torch.compile": "^", "F.cross_entropy": "D", "scikit-learn": "^"}
METHOD_COLOR = {"ce": "#4f7cac", "alr": "#0a6e5c"}
TITLE = {"P1": "P1: cross-entropy", "P2": "P2: soft targets", "P3": "P3: ALR, label memory"}
LOOK: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def write_plots(report: Record, folder: Path, stem: str) -> list[Path]:
    """PNGs of the sections of the report, in `folder`; returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = {
        section: [record for record in report.get(section, []) if not record.get("refused")]
        for section in ("row_loss", "batch_size", "libraries", "accuracy")
    }
    drawings = {
        "speedup": (measured["row_loss"], draw_speedup),
        "bandwidth": (measured["row_loss"], draw_bandwidth),
        "batch-size": (measured["batch_size"], draw_batch_size),
        "libraries": ([r for r in measured["libraries"] if r["rival"] != "fastlnl"], draw_libraries),
        "mixture": ([r for r in measured["libraries"] if r["contest"] == "mixture"], draw_mixture),
        "accuracy": (measured["accuracy"], draw_accuracy),
    }
    written = []
    with pyplot.rc_context(LOOK):
        for name, (records, draw) in drawings.items():
            if not records:
                continue
            figure = draw(records, pyplot)
            figure.supxlabel(signature(report["machine"]), fontsize=8, color="#666666")
            written.append(folder / f"{stem}-{name}.png")
            figure.savefig(written[-1], dpi=150)
            pyplot.close(figure)
    return written


def draw_speedup(records: list[Record], pyplot: Any) -> Any:
    """Bars from 1: time of a rival over time of fastlnl, logarithmic, a panel per case."""
    records = [record for record in records if record["rival"] != "fastlnl" and "speedup" in record]
    cases, rivals = (unique(record[key] for record in records) for key in ("case", "rival"))
    figure, panels = pyplot.subplots(1, len(cases), figsize=(4.4 * len(cases), 4.0), sharey=True, squeeze=False)
    for axes, case in zip(panels[0], cases, strict=True):
        mine = [record for record in records if record["case"] == case]
        shapes, present = unique(tuple(record["shape"]) for record in mine), unique(record["rival"] for record in mine)
        width = 0.84 / len(present)
        for record in mine:
            middle = present.index(record["rival"]) - (len(present) - 1) / 2
            x, ratio = shapes.index(tuple(record["shape"])) + middle * width, record["speedup"]
            axes.bar(x, ratio - 1, 0.92 * width, bottom=1, color=COLOR[record["rival"]])
            above = {"va": "bottom", "xytext": (0, 2)} if ratio >= 1 else {"va": "top", "xytext": (0, -3)}
            axes.annotate(short(ratio), (x, ratio), textcoords="offset points", ha="center", fontsize=8, **above)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_xticks(range(len(shapes)), [f"{batch} x {classes}" for batch, classes in shapes], fontsize=9)
        axes.set_title(TITLE.get(case, case))
    ratios = [record["speedup"] for record in records]
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    panels[0][0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0][0].minorticks_off()
    panels[0][0].set_ylim(0.75 * min(1, *ratios), 1.3 * max(2, *ratios))
    panels[0][0].set_ylabel("time of the rival / time of fastlnl")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOR[rival]) for rival in rivals]
    figure.legend(handles, rivals, loc="outside upper center", ncols=len(rivals))
    return figure


def draw_bandwidth(records: list[Record], pyplot: Any) -> Any:
    """Share of the copy rate against the bytes that have to be moved, a panel per case."""
    cases = unique(record["case"] for record in records)
    figure, panels = pyplot.subplots(1, len(cases), figsize=(4.4 * len(cases), 4.0), sharey=True, squeeze=False)
    for axes, case in zip(panels[0], cases, strict=True):
        mine = [record for record in records if record["case"] == case]
        draw_lines(axes, mine, x=lambda record: record["bytes"] / 1e6, y=lambda record: record["of_copy"])
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_title(TITLE.get(case, case))
        axes.set_xlabel("MB that have to be moved")
    panels[0][0].set_ylabel("share of the rate of a large copy")
    panels[0][0].set_ylim(bottom=0)
    figure.legend(*panels[0][-1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def draw_batch_size(records: list[Record], pyplot: Any) -> Any:
    """Microseconds against batch size, both logarithmic, a panel per number of classes."""
    widths = unique(record["shape"][1] for record in records)
    figure, panels = pyplot.subplots(1, len(widths), figsize=(4.8 * len(widths), 4.2), sharey=True, squeeze=False)
    for axes, classes in zip(panels[0], widths, strict=True):
        mine = [record for record in records if record["shape"][1] == classes]
        draw_lines(axes, mine, x=lambda record: record["shape"][0], y=lambda record: 1e6 * record["median"])
        batches = unique(record["shape"][0] for record in mine)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.grid(axis="y", color="#e6e6e6")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_title(f"P3 step, C = {classes}")
        axes.set_xlabel("batch size")
    panels[0][0].set_ylabel("us, forward and backward")
    panels[0][0].legend()
    return figure


def draw_libraries(records: list[Record], pyplot: Any) -> Any:
    """Bars from 1: time of a rival over time of fastlnl, logarithmic, a row per contest, size and rival."""
    records = [record for record in records if not record["surcharge"]]
    figure, axes = pyplot.subplots(figsize=(8.4, 0.9 + 0.3 * len(records)))
    for y, record in enumerate(records):
        ratio = record["speedup"]
        axes.barh(y, ratio - 1, 0.78, left=1, color=COLOR[record["rival"]])
        if record["target"]:
            axes.plot([record["target"]] * 2, [y - 0.39, y + 0.39], color="black", linewidth=1.6)
        beyond = record["target"] if record["target"] and ratio < record["target"] < 1.5 * ratio else max(1, ratio)
        after = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "fontsize": 8}
        axes.annotate(short(ratio), (beyond, y), **after)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [1, 3, 10, 30, 100, 300, 1000, 3000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    slowest = min(record["speedup"] for record in records)
    shown = [10, *(r["speedup"] for r in records), *(r["target"] for r in records if r["target"])]
    axes.set_xlim(1 if slowest >= 1 else 0.8 * slowest, 1.6 * max(shown))
    axes.margins(y=0.01)
    names = [f"{r['contest']}, {' x '.join(f'{n:,}' for n in r['size'])}" for r in records]
    axes.set_yticks(range(len(records)), names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("time of the rival / time of fastlnl")
    rivals = unique(record["rival"] for record in records)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOR[rival]) for rival in rivals]
    handles.append(pyplot.Line2D([], [], color="black", linewidth=1.6, marker=None))
    figure.legend(handles, [*rivals, "wanted"], loc="outside upper center", ncols=min(5, len(handles)))
    return figure


def draw_mixture(records: list[Record], pyplot: Any) -> Any:
    """Time of a fit and its posteriors against the number of samples, both logarithmic."""
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    draw_lines(axes, records, x=lambda record: record["size"][0], y=lambda record: 1e3 * record["median"])
    sizes = unique(record["size"][0] for record in records)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_title("Two Gaussians fitted to N losses, all posteriors")
    axes.set_xlabel("N")
    axes.set_ylabel("ms")
    axes.legend()
    return figure


def draw_accuracy(records: list[Record], pyplot: Any) -> Any:
    """Test accuracy against epochs: mean over the seeds, and from the lowest to the highest seed as a band."""
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    for record in records:
        by_epoch = list(zip(*record["curves"], strict=True))
        epochs = range(1, len(by_epoch) + 1)
        color = METHOD_COLOR.get(record["method"])
        axes.plot(epochs, [sum(seeds) / len(seeds) for seeds in by_epoch], color=color, label=record["method"].upper())
        axes.fill_between(epochs, [min(s) for s in by_epoch], [max(s) for s in by_epoch], color=color, alpha=0.2, lw=0)
    lowest = min(min(curve[len(curve) // 6 :]) for record in records for curve in record["curves"])
    axes.set_ylim(max(0, lowest - 3), 100)  # the first sixth of the run climbs from chance and would flatten the rest
    first = records[0]
    axes.set_title(f"{first['dataset']}, {first['noise']}, {first['seeds']} seeds (mean, lowest to highest)")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %")
    axes.grid(axis="y", color="#e6e6e6")
    axes.legend(loc="lower right")
    return figure


def draw_lines(axes: Any, records: list[Record], x: Any, y: Any) -> None:
    """A line per rival in its colour, fastlnl on top."""
    for rival in unique(record["rival"] for record in records):
        mine = sorted((record for record in records if record["rival"] == rival), key=x)
        axes.plot(
            [x(record) for record in mine],
            [y(record) for record in mine],
            color=COLOR[rival],
            marker=MARKER[rival],
            markersize=5,
            label=rival,
            zorder=3 if rival == "fastlnl" else 2,
        )


def short(ratio: float) -> str:
    """Two digits or all before the point."""
    return f"{ratio:,.{0 if ratio >= 9.95 else 1 if ratio >= 0.995 else 2}f}"


def unique(values: Any) -> list[Any]:
    """Without repetition, in the order of appearance."""
    return list(dict.fromkeys(values))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        source = Path(name)
        print(*write_plots(json.loads(source.read_text()), source.parent, source.stem), sep="\n")
