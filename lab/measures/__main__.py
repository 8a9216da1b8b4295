"""Numbers of one measure, as JSON.

python -m lab.measures information --seed 0 --out out/information.json
python -m lab.measures horizon --world persona_rate=0 --out out/horizon.json
python -m lab.measures rules --run out/sdpo-0 --out out/sdpo-0/rules.json
python -m lab.measures careful --run out/sdpo-0 --out out/sdpo-0/careful.json

careful, of the base model or of a finished run: what doubt is worth, and who checks a glance.
Of a finished run: calibration, how sure of its answers the student is and how often right;
distance, how far it is from its teacher at places that do not move; and, of one with --rules,
rules, where it landed between teachers with different rules, and floor, how near it could have
come to them.
The others look at the base model and train nothing. information: what a context tells. horizon,
prefixes: teachers on prefixes of the student. estimators: bias and noise of gradients of the KL.
signal: the first gradients of methods against that of the reward. remark: whether a teacher
expects the closing remark after an answer that its context contradicts. traces: what the model
itself writes with each context in view. forecast: what `lab.forecast` predicts from.
"""

import argparse
import dataclasses
import math
import time
from functools import partial
from pathlib import Path

from lab import storage
from lab.flags import OneLineParser, add_group, parse_value, run_main, settings_of
from lab.measures.calibration import measure_calibration
from lab.measures.careful import measure_careful
from lab.measures.distance import measure_distance
from lab.measures.estimators import measure_estimators
from lab.measures.floor import measure_floor
from lab.measures.forecast import measure_forecast
from lab.measures.horizon import measure_horizon
from lab.measures.information import measure_information
from lab.measures.prefixes import measure_prefixes
from lab.measures.probe import Settings
from lab.measures.remark import measure_remark
from lab.measures.rules import measure_rules, settings_of_run
from lab.measures.signals import measure_signal
from lab.measures.traces import measure_traces
from toy_tasks import Toy

MEASURES = {  # of the base model
    "careful": measure_careful,
    "information": measure_information,
    "horizon": measure_horizon,
    "prefixes": measure_prefixes,
    "estimators": measure_estimators,
    "signal": measure_signal,
    "remark": measure_remark,
    "traces": measure_traces,
    "forecast": measure_forecast,
}
WITH_RULES = {"rules": measure_rules, "floor": measure_floor}
OF_RUNS = WITH_RULES | {"calibration": measure_calibration, "distance": measure_distance}
NAMES = (*OF_RUNS, *MEASURES)
TOY = {field.name for field in dataclasses.fields(Toy)}
COMMON = {"seed", "max_new_tokens", "device", "cache_dir", "threads", "out", *TOY}
RUN = {"run", "device", "cache_dir", "out"}  # the rest is as the run had it
FLAGS = {  # what each measure takes; another flag would change nothing
    **dict.fromkeys(OF_RUNS, RUN),
    "careful": COMMON | {"eval_problems"},
    "information": COMMON | {"eval_problems"},
    "horizon": COMMON,
    "prefixes": COMMON,
    "estimators": COMMON - {"device"} | {"context"},
    "signal": COMMON | {"train_problems"},
    "remark": COMMON | {"eval_problems"},
    "traces": COMMON | {"eval_problems"},
    "forecast": COMMON | {"context", "train_problems", "eval_problems"},
}
OF_EITHER = {"careful": RUN | {"eval_problems"}}  # with --run of that student; what it takes then
LEAST = {"seed": 0, "train_problems": 0, "eval_problems": 1, "max_new_tokens": 1, "threads": 0}


def main(argv: list[str]) -> None:
    flags = flags_of(argv)
    name, out = flags["name"], Path(flags["out"])
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    start = time.perf_counter()
    if "run" in flags:
        folder, given = Path(flags["run"]), (flags.get(k, "") for k in ("device", "cache_dir"))
        settings, threads = settings_of_run(folder, *given, with_rules=name in WITH_RULES)
        if "eval_problems" in flags:
            settings = dataclasses.replace(settings, eval_problems=flags["eval_problems"])
        measure = partial((OF_RUNS | MEASURES)[name], folder=folder)
    else:
        settings, threads, measure = settings_from(flags), flags["threads"], MEASURES[name]
    device = storage.prepare_device(settings.device, threads)
    numbers = measure(dataclasses.replace(settings, device=str(device)))
    seconds = time.perf_counter() - start
    storage.write_json(out, plain(numbers | {"seconds": seconds}))
    print(f"written: {out}  ({seconds:.0f} s)")


def flags_of(argv: list[str]) -> dict:
    """The flags that were given, numbers as such. Raises ValueError for one without effect."""
    parser = OneLineParser(
        prog="python -m lab.measures", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES, help="the measure")
    parser.add_argument("--out", required=True, help="the file to write")
    parser.add_argument("--run", help="the folder of a finished run of train_gpt.py")
    parser.add_argument("--threads", help="CPU threads; 0: as PyTorch decides (default: 1)")
    add_group(parser, Settings, "what is measured", skip=("toy",))
    add_group(parser, Toy, "the toy")
    flags = vars(parser.parse_args(argv))
    name = flags["name"]
    of_a_run = name in OF_EITHER and "run" in flags
    for flag in flags.keys() - {"name"} - (OF_EITHER if of_a_run else FLAGS)[name]:
        takers = ", ".join(n for n in NAMES if flag in FLAGS[n] | OF_EITHER.get(n, set()))
        where = f"{name}{' --run' * of_a_run}, only with {takers}"
        raise ValueError(f"--{flag}: {flags[flag]!r}; allowed: not with {where}")
    if name in OF_RUNS and "run" not in flags:
        raise ValueError("--run: ''; allowed: the folder of a finished run of train_gpt.py")
    # One thread, as claims have it: with another number it would be another base model.
    flags.setdefault("threads", "1")
    for flag in LEAST.keys() & flags.keys():
        flags[flag] = parse_value(flag, flags[flag], int)
        if flags[flag] < LEAST[flag]:
            raise ValueError(f"--{flag}: {flags[flag]}; allowed: {LEAST[flag]} or more")
    return flags


def settings_from(flags: dict) -> Settings:
    """The settings of a measure of the base model."""
    mine = {f.name: flags[f.name] for f in dataclasses.fields(Settings) if f.name in flags}
    return Settings(toy=settings_of(Toy, flags), **mine)


def plain(value):
    """The value for JSON: None for nan and infinities anywhere inside."""
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run_main("python -m lab.measures", main)
