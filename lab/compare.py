"""Several methods and seeds in one table and one picture.

python -m lab.compare base sdpo grpo --seeds 3     # `base`: the models before training

Any other flag of train_gpt.py goes to all runs. Every run is a command of its own, printed as one
can paste it; an interrupted comparison goes on where it stopped.
"""

import argparse
import functools
import json
from pathlib import Path

import minisd
from lab import identity, storage
from lab.flags import OneLineParser, run_main
from lab.report import MEASURES, save_figure, shown_measures
from lab.runs import Failed, Flags, Start, in_parallel, joined, own_and_passed, paste_ready
from lab.statistics import mean_and_interval

WHY = "the toy, one thread a run, methods as words without a flag"
REFUSED = dict.fromkeys(("--method", "--threads", "--init", "--data", "--resume"), WHY)
LIMITS = {"seeds": (1, 1000), "seed": (0, 2**62)}


def main(argv: list[str]) -> None:
    settings, flags = settings_of(argv)
    methods, folder = list(dict.fromkeys(settings.methods)), Path(settings.out_dir)
    for method in methods:
        if method not in (*minisd.METHODS, "base"):
            known = ", ".join(minisd.METHODS)
            raise ValueError(f"method: {method!r}; allowed: base, {known}")
    if set(methods) <= {"base"}:
        raise ValueError(f"method: {' '.join(methods)!r}; allowed: one or more besides base")
    seeds = list(range(settings.seed, settings.seed + settings.seeds))
    asked = {"seeds": seeds, "flags": flags, "compared": methods}
    teacher = flags.get("--external_teacher") or ""
    if teacher and (Path(teacher) / "student.pt").is_file():
        asked["checksums"] = identity.checksums_of_teacher(teacher, checkpoint=False)
    result = finished_comparison(folder, asked)
    if result:
        print(f"{folder} already holds this comparison; to start over, name another --out_dir")
        if result["code"] != storage.code_version():
            print("NOTE: the code has changed since; these are the old results")
    else:
        result = compare(asked, folder, settings.workers)
    print(f"\n{comparison_table(result)}\n")
    print(f"written: {folder / 'compare.json'}, {folder / 'compare.png'}, and a folder per run")


def settings_of(argv: list[str]) -> tuple[argparse.Namespace, Flags]:
    """The settings of this command, and the flags for all runs. Raises ValueError."""
    parser = OneLineParser(
        prog="python -m lab.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("methods", nargs="*", default=[], help="base, rows of the method table")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    return own_and_passed(parser, argv, limits=LIMITS, refused=REFUSED, out_dir="out/compare")


def compare(asked: dict, folder: Path, workers: int) -> dict:
    """Runs every method with every seed and writes compare.json and compare.png.

    Every run has one thread, whatever the number of workers, so that the numbers do not depend on
    it. `base` is each seed's model before training.
    """
    trained, seeds = [m for m in asked["compared"] if m != "base"], asked["seeds"]
    # Different seeds first: each needs a base model of its own, so that no run waits for another.
    runs = {(m, s): folder / f"{m}-{s}" for m in trained for s in seeds}
    check_versions(list(runs.values()))
    folder.mkdir(parents=True, exist_ok=True)
    commands = {
        (m, s): ["train_gpt.py", "--method", m, "--seed", str(s), *joined(asked["flags"]),
                 "--threads", "1", "--out_dir", str(path)]
        for (m, s), path in runs.items()
    }
    print("\n".join(map(paste_ready, commands.values())), flush=True)
    in_parallel([functools.partial(one_run, *r, c) for r, c in commands.items()], workers)
    check_versions(list(runs.values()))  # it may have been edited meanwhile
    summaries = {key: storage.read_summary(path) for key, path in runs.items()}
    table = {}
    for method in asked["compared"]:
        when, source = ("before", trained[0]) if method == "base" else ("after", method)
        done = [summaries[source, seed] for seed in seeds]
        table[method] = {
            split: {name: over_seeds(done, when, split, name) for name in means}
            for split, means in done[0]["before"].items()
        }
    result = asked | {"code": storage.code_version(), "methods": table}
    draw_comparison(folder / "compare.png", result)
    storage.write_json(folder / "compare.json", result)
    return result


def one_run(method: str, seed: int, command: list[str], start: Start) -> None:
    try:
        start(command)
    except Failed as error:
        raise ValueError(f"{method}, seed {seed}: {error.said}") from None


def check_versions(folders: list[Path]) -> None:
    """Raises ValueError if a run that is there already is one of other code than this."""
    for folder in folders:
        if (folder / "config.json").exists():
            storage.read_settings(folder, "--out_dir")  # raises if it is none of this edition
            config = json.loads((folder / "config.json").read_text())
            if config.get("record", {}).get("code") != storage.code_version():
                raise ValueError(
                    f"--out_dir: {str(folder)!r} holds a run of other code than this, and runs of "
                    "different code are not compared; allowed: another folder"
                )


def finished_comparison(folder: Path, asked: dict) -> dict | None:
    """The result of this very comparison, if the folder has it. Raises ValueError for another."""
    path = folder / "compare.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        differing = [name for name in asked if found.get(name) != asked[name]]
        # They look at all that a result must have.
        comparison_table(found), [found[x] for x in ("code", "seeds", "flags", "compared")]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"--out_dir: {str(path)!r} is no comparison; allowed: another") from None
    if differing == ["checksums"]:
        teacher = asked["flags"]["--external_teacher"]
        words = f"has not the weights that the comparison in {str(folder)!r} began with"
        raise ValueError(f"--external_teacher: {teacher!r} {words}; allowed: another --out_dir")
    if differing:
        raise ValueError(
            f"--out_dir: {str(folder)!r} holds a comparison of {found['compared']} over seeds "
            f"{found['seeds']} with flags {found['flags']}; allowed: the same or another folder"
        )
    return found


def over_seeds(summaries: list[dict], when: str, split: str, name: str) -> dict:
    """Mean and interval of a measure, and of its change since before training, seed by seed."""
    values = [s[when][split][name] for s in summaries]
    changes = [v - s["before"][split][name] for v, s in zip(values, summaries)]
    return mean_and_interval(values) | {"change": mean_and_interval(changes)}


def measures_of(result: dict) -> list[str]:
    splits = next(iter(result["methods"].values()))
    return shown_measures(next(iter(splits.values())))[:4]


def comparison_table(result: dict) -> str:
    """Mean and 95 % interval of every method and split."""
    names = measures_of(result)
    headings = "".join(MEASURES.get(name, ("", name))[1].rjust(22) for name in names)
    lines = [" " * 28 + headings]
    for method, splits in result["methods"].items():
        for split, means in splits.items():
            cells = ""
            for m in (means[name] for name in names):
                spread = "" if m["low"] is None else f" [{m['low']:.2f}, {m['high']:.2f}]"
                cells += f"{m['mean']:.2f}{spread}".rjust(22)
            lines.append(f"{method:14}{split:14}{cells}")
    lines.append(f"mean and 95 % interval over {len(result['seeds'])} seeds")
    return "\n".join(lines)


def draw_comparison(path: Path, result: dict) -> None:
    """compare.png: one panel per measure; methods side by side on every split, intervals drawn."""
    from matplotlib.figure import Figure

    figure, names = Figure(figsize=(13, 8), layout="constrained"), measures_of(result)
    figure.suptitle(f"mean and 95 % interval over seeds {', '.join(map(str, result['seeds']))}")
    methods, splits = list(result["methods"]), list(next(iter(result["methods"].values())))
    width = 0.8 / len(methods)
    for axes, name in zip(figure.subplots(2, 2).flat, names):
        for i, method in enumerate(methods):
            values = [result["methods"][method][split][name] for split in splits]
            means = [v["mean"] for v in values]
            half = [0 if v["low"] is None else v["mean"] - v["low"] for v in values]
            x = [j + (i - (len(methods) - 1) / 2) * width for j in range(len(splits))]
            axes.bar(x, means, width * 0.92, yerr=half, capsize=3, label=method)
        axes.set_xticks(range(len(splits)), [f"{s} problems" for s in splits])
        axes.set_title(MEASURES.get(name, (name, ""))[0])
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylim(0, 1.02 if name.endswith("_frac") else None)
    figure.axes[0].legend(ncols=2)
    save_figure(path, figure)


if __name__ == "__main__":
    run_main("python -m lab.compare", main)
