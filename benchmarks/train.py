"""Training runs that stay in the repository: settings and log of every run, and tables over all of them.

python benchmarks/train.py run --dataset digits --noise symmetric/exclusive:0.4 --methods ce alr --seeds 0 1 2 3 4
python benchmarks/train.py keep runs/some-run          (a run that `fastlnl train` made)
python benchmarks/train.py table                       (benchmarks/results/training/README.md)
python benchmarks/train.py --record                    (benchmarks/results/records.md, of settings with 3 seeds or more)
python benchmarks/train.py run ... --record            (train, then write both)
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import records

RESULTS = Path(__file__).parent / "results" / "training"
KEPT = ("run.json", "log.jsonl", "metrics.csv")
HEAD = """# Training runs

Written by `python benchmarks/train.py table` from the settings and logs here. Test accuracy in %, mean and sample
standard deviation over seeds (noise, weights and order change with the seed); headline is the last epoch, "best" is
chosen on test data and stands there for comparison only. Cross-entropy has the same network, schedule and noise.
"right" is the share of right labels after correction, "detection" the AUROC of a right label against a wrong one by
what the method knows of the samples, both in the last epoch.

| data | labels | wrong | network, views, epochs | method | n | last | last 10 | best | right | detection | commit |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def keep(folder: Path) -> Path:
    """Copy settings, log and final metrics of a finished run; returns where. The commit noted is the one of now."""
    made_with = versions()
    settings = json.loads((folder / "run.json").read_text())
    keys = ("dataset", "noise_mode", "nominal_noise", "network", "augment")
    group = " ".join(str(settings[key] or "none") for key in keys)
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in group)
    to = RESULTS / name / f"{variant(settings)}-seed{settings['seed']}".replace(" ", "-").replace(":", "")
    to.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        shutil.copyfile(folder / file, to / file)
    settings["made_with"] = made_with
    (to / "run.json").write_text(json.dumps(settings) + "\n")
    return to


def variant(settings: dict[str, Any]) -> str:
    """The method, and its options where they are not those of the recipe."""
    from fastlnl.cli import SHORT_RUN
    from fastlnl.methods import METHODS

    name = settings["method"]
    usual = json.loads(json.dumps({**METHODS[name].defaults, **SHORT_RUN.get(name, {})}))  # tuples as a file has them
    words = [name]
    for option, value in usual.items():
        given = settings.get(f"option_{option}", value)
        if option == "storage" and given != value:
            words.append(given)
        elif name == "ido" and option == "warmup_epochs" and given == settings["epochs"]:
            words.append("stage 1")
        elif value is not None and given != value:  # None is filled in when the run is set up
            words.append(f"{option}={given}")
    return " ".join(words)


@cache
def versions() -> dict[str, str]:
    """What made the run: commit (-dirty with changes), torch, processor; taken before the first result is written."""
    import torch
    from provenance import commit

    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"commit": commit(), "torch": torch.__version__, "processor": processor}


def run(arguments: argparse.Namespace) -> None:
    """Train each method on each seed with the recipe of the data set."""
    from fastlnl.cli import main

    versions()
    for seed in arguments.seeds:
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as folder:
                command = ["train", "--method", method, "--dataset", arguments.dataset, "--noise", arguments.noise]
                code = main([*command, "--seed", str(seed), "--out", folder, "--quiet", *arguments.extra])
                if code:
                    sys.exit(code)
                print("kept in", keep(Path(folder)), flush=True)


def table() -> None:
    """Write the table over all kept runs."""
    groups: dict[tuple[str, ...], list[tuple[dict[str, Any], list[dict[str, Any]]]]] = defaultdict(list)
    for path in sorted(RESULTS.glob("*/*/run.json")):
        settings = json.loads(path.read_text())
        log = [json.loads(line) for line in (path.parent / "log.jsonl").read_text().splitlines()]
        groups[(path.parent.parent.name, variant(settings))].append((settings, log))
    lines = []
    for (folder, method), runs in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1] != "ce")):
        settings = runs[0][0]
        accuracy = [[100 * line["test_accuracy"] for line in log] for _, log in runs]
        repaired = [log[-1]["correction_accuracy"] for _, log in runs if "correction_accuracy" in log[-1]]
        wrong = statistics.mean(100 * s["realised_noise"] for s, _ in runs)
        lines.append(
            f"| {settings['dataset']} | [{settings['noise_mode']}]({folder}) | {wrong:.1f} % | "
            f"{settings['network']}, {settings['augment'] or 'as they are'}, {settings['epochs']} | {method} | "
            f"{len(runs)} | {spread([a[-1] for a in accuracy])} | "
            f"{spread([statistics.mean(a[-10:]) for a in accuracy])} | {spread([max(a) for a in accuracy])} | "
            f"{f'{100 * statistics.mean(repaired):.2f} %' if repaired else '-'} | {detection(runs)} | "
            f"{', '.join(sorted({s['made_with']['commit'] for s, _ in runs}))} |"
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "README.md").write_text(HEAD + "\n".join(lines) + "\n")
    print(HEAD + "\n".join(lines))


def detection(runs: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> str:
    """Mean AUROC of each score in the last lines of the logs."""
    last = [log[-1] for _, log in runs]
    scores = [key for key in last[0] if key.startswith("auroc_")]
    means = (f"{key.removeprefix('auroc_')} {statistics.mean(line[key] for line in last):.3f}" for key in scores)
    return ", ".join(means) or "-"


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation; one value stands alone."""
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def groups() -> dict[tuple[str, str], list[Path]]:
    """Folders of the kept runs by setting and method."""
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in sorted(RESULTS.glob("*/*/run.json")):
        found[(path.parent.parent.name, variant(json.loads(path.read_text())))].append(path.parent)
    return found


def record() -> None:
    """Write the record table, say what is not in it and why."""
    found, refused = records.write(groups(), RESULTS.parent)
    print(f"{len(found)} records in {RESULTS.parent / 'records.md'}")
    for reason in refused:
        print(f"no record: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--record", action="store_true", help="write the record table, after the command if there is one"
    )
    commands = parser.add_subparsers(dest="command")
    sub = commands.add_parser("run")
    sub.add_argument("--dataset", required=True)
    sub.add_argument("--noise", required=True)
    sub.add_argument("--methods", nargs="+", default=["ce", "alr"])
    sub.add_argument("--seeds", nargs="+", type=int, default=[0])
    commands.add_parser("keep").add_argument("folder", type=Path)
    commands.add_parser("table")
    given = sys.argv[1:]
    arguments, arguments_extra = parser.parse_known_args([word for word in given if word != "--record"])
    arguments.record = "--record" in given  # before the command or behind its options
    if arguments.command is None and not arguments.record:
        parser.error("expected a command (run, keep, table) or --record")
    if arguments_extra and arguments.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(arguments_extra)}")
    if arguments.command == "run":
        arguments.extra = arguments_extra
        run(arguments)
    elif arguments.command == "keep":
        print("kept in", keep(arguments.folder))
    if arguments.command is not None:
        table()
    if arguments.record:
        record()


if __name__ == "__main__":
    main()
