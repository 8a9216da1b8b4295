"""The toy's findings on real weights: the measures, the commands, the verdicts, the page."""

import json
import math

import pytest
import torch
from test_text_data import examples, text_tokenizer

from lab import real
from lab.flags import run_main
from lab.real_measures import accuracy_by_prefix, behaviour, doubts, hint_kl, measure, written
from lab.runs import split_flags
from lab.text_tasks import TextTask
from minisd import GPT, GPTConfig, Sizes

SIZES = Sizes(max_new_tokens=6, chunk_tokens=16)


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(examples(solution="It is that."), text_tokenizer())


@pytest.fixture(scope="module")
def models(task) -> tuple[GPT, GPT]:
    """Two models with random weights."""
    config = GPTConfig(vocab_size=len(task.tokenizer), n_layers=1, width=16, n_heads=2,
                       n_kv_heads=1, head_dim=8, mlp_width=24)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(GPT(config))
        for weights in made[-1].parameters():  # else they hardly differ between prompts
            weights.data.mul_(6 if weights.dim() > 1 else 1)
    return tuple(made)


# Measures -----------------------------------------------------------------------------------------


def test_words_of_doubt_are_those_of_the_list():
    assert doubts("Wait, 3") and doubts("HMM") and doubts("so let me check: 4")
    assert not doubts("check 4") and not doubts("4")


def test_behaviour_is_the_mean_over_completions(task):
    """Catches doubt counted by word instead of by completion, and a length that is not of ids."""
    some = task.pools["fresh"][:2]
    texts = [f"wait wait {task.final_answer(some[0])}", "5"]
    ids = [[*task.encode(texts[0]), task.end_ids[0]], task.encode(texts[1])]
    means = behaviour(task, some, ids)
    assert means["accuracy_frac"] == means["doubt_frac"] == means["cut_frac"] == 0.5
    assert means["completion_tokens"] == (len(ids[0]) + len(ids[1])) / 2


def test_a_prefix_is_gone_on_with(task, models):
    """Catches a prefix that is not read, is lost from the completion, or is cut wrongly."""
    some, model = task.pools["fresh"], models[0]
    whole = written(task, model, some, "none", SIZES)
    half = [row[:2] for row in whole]
    on = written(task, model, some, "none", SIZES, half)
    assert all(row[: len(begun)] == begun for row, begun in zip(on, whole))
    hinted = written(task, model, some, "solution", SIZES)
    assert hinted != whole  # it sees another prompt
    right = [[*task.encode(task.final_answer(e)), task.end_ids[0]] for e in some]
    found = accuracy_by_prefix(task, model, some, "none", [r * 4 for r in right], SIZES)
    assert found[1:] == [1.0] * 3


def test_the_kl_to_a_hint_is_zero_without_one_and_by_hand(task, models, monkeypatch):
    """Catches a teacher without its context, sums over padding, and a mean over rows."""
    student, teacher = models
    some = task.pools["fresh"][:3]
    ids = [task.encode(text)[:n] for text, n in zip(("it is 1", "is it 22", "1"), (2, 5, 1))]
    total = count = 0
    for example, row in zip(some, ids):
        logs = []
        for model, context in ((student, ""), (teacher, task.context(example, "solution", None))):
            prompt = task.prompt_ids(example, context)
            hidden = model.hidden(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1]
            logs.append(model.lm_head(hidden).log_softmax(-1))
        total += (logs[0].exp() * (logs[0] - logs[1])).sum().item()
        count += len(row)
    assert math.isclose(hint_kl(task, student, teacher, some, ids, SIZES), total / count,
                        rel_tol=1e-4)
    monkeypatch.setattr(task, "context", lambda *_: "")
    assert hint_kl(task, student, student, some, ids, SIZES) < 1e-6


def test_all_numbers_are_there_and_repeat(task, models):
    first, second = (measure(task, *models, 3, SIZES) for _ in range(2))
    assert first == second
    assert len(first["teacher_by_prefix"]) == len(first["unhinted_by_prefix"]) == 4
    assert json.loads(json.dumps(first)) == first


# Commands and verdicts ----------------------------------------------------------------------------


def settings(tmp_path, *words: str):
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "data").touch()
    return real.settings_of([*words, "--init", str(tmp_path / "model"), "--data",
                             str(tmp_path / "data"), "--out_dir", str(tmp_path / "out")])


def test_every_method_starts_from_the_base(tmp_path):
    """Catches a warm start that differs with the flags of the runs, and a run from elsewhere."""
    asked, given = settings(tmp_path, "sdpo", "--steps", "3", "--max_new_tokens", "9")
    warm = split_flags(real.warm_command(asked, given))[1]
    run = split_flags(real.row_command(asked, given, "sdpo", 2))[1]
    assert run["--init"] == f"{warm['--out_dir']}/checkpoint"
    assert (run["--method"], run["--seed"], run["--steps"]) == ("sdpo", "2", "3")
    assert {name: warm[name] for name in real.WARM} == real.WARM
    assert warm["--max_new_tokens"] == run["--max_new_tokens"] == "9"


@pytest.mark.parametrize("words, said", [
    ("sdpx", "method: 'sdpx'; allowed: sft"),
    ("--seeds 0", "--seeds: 0; allowed: 1 or more"),
    ("--method sdpo", "--method: 'sdpo'; allowed: not here"),
    ("--init nowhere", "--init: 'nowhere' is not there; allowed: a checkpoint's folder"),
])
def test_bad_input_is_one_line(words, said, tmp_path, capsys, monkeypatch):
    (tmp_path / "model").mkdir()
    given = ["--init", str(tmp_path / "model"), *words.split(), "--out_dir", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["real", *given])
    with pytest.raises(SystemExit) as stop:
        run_main("python -m lab.real", real.main)
    assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def numbers(seed: int, fresh: float, doubt: float) -> dict:
    behaved = {"accuracy_frac": fresh, "doubt_frac": doubt, "completion_tokens": 30.0,
               "cut_frac": 0.0}
    return {"train": behaved, "fresh": behaved, "kl_own_hint": 0.5, "kl_start_hint": 0.6,
            "teacher_by_prefix": [1.0, 0.9, 0.7, 0.5 + seed / 100],
            "unhinted_by_prefix": [fresh] * 4, "examples": []}


def test_a_verdict_needs_an_interval_that_leaves_out_zero(tmp_path, capsys):
    """Catches a mean taken for a verdict, a reversed sign, and a seed that lacks a row."""
    table = {"base": (0.5, 0.6), "sdpo": (0.3, 0.57), "grpo": (0.6, 0.1)}
    folder = tmp_path / "out" / "measures"
    folder.mkdir(parents=True)
    for row, (fresh, doubt) in table.items():
        for seed in range(3):
            wobble = seed / 100 * (1 if row == "sdpo" else -1)
            made = numbers(seed, fresh + wobble, doubt + wobble)
            (folder / f"{real.name_of(row, seed)}.json").write_text(json.dumps(made))
    (folder / "grpo-2.json").unlink()
    asked = ["sdpo", "grpo", "--init", str(tmp_path), "--data", str(folder / "base.json"),
             "--out_dir", str(tmp_path / "out"), "--measured_only"]
    real.main(asked)
    found = json.loads((tmp_path / "out" / "real.json").read_text())
    assert [x["seed"] for x in found["grpo"]] == [0, 1]  # the last was cut off
    verdicts = {f.sentence: v for f, _, v in real.judged(found)}
    counts = {f.sentence: effect["n"] for f, effect, _ in real.judged(found)}
    assert counts["It costs accuracy on fresh problems."] == 3  # it needs no grpo
    assert counts["GRPO keeps more doubt than sdpo."] == 2
    assert verdicts["It costs accuracy on fresh problems."] == "holds"
    assert verdicts["Self-distillation (sdpo) takes the words of doubt away."] == "cannot tell"
    assert verdicts["GRPO keeps more doubt than sdpo."] == "opposite"
    assert not any("sft" in sentence for sentence in verdicts)  # it was not run
    assert "| sdpo | 3 | 0.31 [" in capsys.readouterr().out
    assert (tmp_path / "out" / "real.png").stat().st_size > 10_000


def test_a_row_may_be_a_method_with_flags_of_its_own():
    """Catches the arena's fix trained as the method that it mends."""
    settings, given = real.settings_of(["bregman_clip", "dr_grpo", "--init", "."])
    flags = split_flags(real.row_command(settings, given, "bregman_clip", 1))[1]
    assert flags["--method"] == "opsd" and flags["--seed"] == "1"
    assert flags["--divergence"] == "bregman_clipped_forward_kl"
    assert split_flags(real.row_command(settings, given, "dr_grpo", 0))[1]["--method"] == "dr_grpo"
