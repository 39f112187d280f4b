"""Curves of the kept training runs: `python benchmarks/curves.py`. Writes results/curves-<setting>.png.

For each setting that was trained with cross-entropy and another method, from the logs in results/training: test
accuracy against epochs, and what became of the samples. Lines are means over the seeds, bands go from the lowest to the
highest.
"""

import json
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

from plot import LOOK
from train import RESULTS, groups

COLOR = {
    "ce": "#4f7cac", "alr": "#0a6e5c", "ido": "#e08a1e", "crema": "#8c6bb1", "dividemix": "#b2182b", "sanm": "#7a5230",
}  # fmt: skip
NAME = {
    "ce": "cross-entropy",
    "alr": "ALR",
    "ido": "IDO",
    "crema": "CREMA-style",
    "dividemix": "DivideMix",
    "sanm": "SANM",
}
PANELS = (
    ("test_accuracy", "test accuracy"),
    ("right_as_true", "right labels: predicted right"),
    ("wrong_as_true", "wrong labels: corrected"),
    ("memorised", "wrong labels: memorised"),
)

Runs = dict[str, list[list[dict[str, Any]]]]  # logs of the seeds of each method


def settings() -> dict[str, Runs]:
    """Logs by setting and method; a variant (another storage, say) stands where the method itself does not."""
    found: dict[str, Runs] = defaultdict(dict)
    kept = groups()
    for (setting, name), folders in kept.items():
        if name in COLOR or (setting, method_of(name)) not in kept:
            logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in folders]
            found[setting][name] = logs
    return {setting: runs for setting, runs in found.items() if len(runs) > 1 and "ce" in runs}


def method_of(name: str) -> str:
    return name.split()[0]


def draw(setting: str, runs: Runs, pyplot: Any) -> Any:
    """A panel each for accuracy and for what the logs say of right and of wrong labels."""
    panels = [(key, title) for key, title in PANELS if all(key in log[-1] for logs in runs.values() for log in logs)]
    figure, grid = pyplot.subplots(-(-len(panels) // 2), 2, figsize=(8.4, 3.3 * -(-len(panels) // 2)), squeeze=False)
    order = sorted(runs, key=lambda name: list(COLOR).index(method_of(name)))
    for axes, (key, title) in zip(grid.flat, panels, strict=False):
        for name in order:
            by_epoch = list(zip(*([100 * line[key] for line in log] for log in runs[name]), strict=True))
            epochs = range(1, len(by_epoch) + 1)
            middle = [sum(values) / len(values) for values in by_epoch]
            color, known = COLOR[method_of(name)], " ".join([NAME[method_of(name)], *name.split()[1:]])
            axes.plot(epochs, middle, color=color, linewidth=1.8, label=f"{known} (n = {len(runs[name])})")
            low, high = ([f(values) for values in by_epoch] for f in (min, max))
            axes.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)
        axes.set_title(title)
        axes.grid(axis="y", color="#e6e6e6")
        if key == "test_accuracy":
            lowest = min(100 * line[key] for logs in runs.values() for log in logs for line in log[len(log) // 10 :])
            axes.set_ylim(bottom=max(0, lowest - 3))  # the first tenth climbs from chance and would flatten the rest
        else:
            axes.set_ylim(0, 102)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    for axes in grid[:, 0]:
        axes.set_ylabel("%")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
    return figure


def write_plots(folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    with pyplot.rc_context(LOOK):
        for setting, runs in settings().items():
            figure = draw(setting, runs, pyplot)
            figure.supxlabel(textwrap.fill(described(setting), 110), fontsize=9, color="#555555")
            written.append(folder / f"curves-{setting}.png")
            figure.savefig(written[-1], dpi=150)
            pyplot.close(figure)
    return written


def described(setting: str) -> str:
    """Data, labels, network, from the settings of a run; bands are told there too."""
    run = json.loads(next((RESULTS / setting).glob("*/run.json")).read_text())
    return (
        f"{run['dataset']}, {run['noise_mode']}, {100 * run['realised_noise']:.0f} % of the labels wrong, "
        f"{run['network']}; mean over seeds, lowest to highest"
    )


if __name__ == "__main__":
    print(*write_plots(RESULTS.parent), sep="\n")
