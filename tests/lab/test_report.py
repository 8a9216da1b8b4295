"""Laws of what a person sees of a run: words, log, warnings, checks, tables, pictures."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

import lab.extra_losses  # noqa: F401 (its rows have words, too)
import minisd
import toy_tasks
from lab import report, words
from lab.evaluation import Evaluation
from lab.graders import Cut
from minisd import GPT, METHODS, GPTConfig, Method, Sizes
from toy_tasks import ToyTask, World

# Methods in words ---------------------------------------------------------------------------------


def test_methods_are_told_in_one_sentence():
    """Catches words that belong to another row, and a teacher where none is used."""
    assert report.in_words_of(METHODS["sdpo"]) == (
        "student writes, EMA teacher (rate 0.01) sees the solution, "
        "KL(student || teacher) per token")
    assert report.in_words_of(METHODS["grpo"]) == (
        "student writes, clipped policy gradient, A = (r - mean)/std, 0.04 k3(student, initial)")


SAID = [  # a change of the method, and what must then be said
    ({"student_frac": 0.5}, "student 0.5, teacher 0.5"),
    ({"student_frac": 0.0, "off_policy": "data"}, "references write"),
    ({"teacher": "snapshot", "teacher_every": 7}, "every 7 steps"),
    ({"teacher": "trust_region", "teacher_update_rate": 0.2}, "trust-region teacher (rate 0.2)"),
    ({"teacher": "external", "external_teacher": "out/grpo-0"}, "teacher out/grpo-0 sees"),
    ({"context": "wrong"}, "a wrong solution"),
    ({"divergence": "clipped_forward_kl", "clip": 0.3}, "up to 0.3"),
    ({"divergence": "top_k_reverse_kl", "top_k": 5}, "the 5 likeliest of the student"),
    ({"credit": "sequence", "discount": 0.5}, "discount 0.5"),
    ({"token_weights": "correct_only"}, "correct ones only"),
    ({"token_weights": "last", "token_share": 0.2}, "last 0.2 of the tokens"),
    ({"reward_weight": 0.25}, "0.75 KL(student || teacher) per token, 0.25 clipped"),
    ({"reward_weight": 1.0, "clip_high": 0.28}, "(0.8 to 1.28)"),
    ({"resample": 3}, "up to 3 times"),
    ({"importance_cap": 2.0}, "importance weight up to 2"),
    ({"warm_start_steps": 9}, "after 9 steps of sft"),
    ({"student_context": "solution", "reward_weight": 1.0}, "student writes and sees the solution"),
    ({"target": ((1.5, "frozen", "solution"), (-0.5, "live", "none"))},
     "teacher 1.5 log frozen(the solution) -0.5 log live(no hint)"),
]


@pytest.mark.parametrize("change, said", SAID, ids=str)
def test_what_differs_is_said(change, said):
    """Catches a sentence that is the same for two methods which are not."""
    assert said in report.in_words_of(Method(**change))


@pytest.mark.parametrize("table, field", [
    ("DIVERGENCES", "divergence"), ("CREDITS", "credit"), ("TOKEN_WEIGHTS", "token_weights"),
    ("ADVANTAGES", "advantage"), ("TEACHERS", "teacher"), ("REDUCTIONS", "reduction"),
])
def test_a_new_row_is_shown_under_its_name(table, field, monkeypatch):
    """Catches a table that fails, or is silent, on what a reader has added."""
    monkeypatch.setitem(getattr(minisd, table), "total_{variation}", lambda *x: 0.0)
    weight = 0.5 if field == "advantage" else 0.0
    method = Method(**{field: "total_{variation}"}, reward_weight=weight)
    assert "total_{variation}" in report.method_table({"mine": method})


def test_every_row_of_the_core_has_words():
    """Catches a row of the core that was renamed here alone, or there."""
    for name in ("DIVERGENCES", "CREDITS", "TOKEN_WEIGHTS", "ADVANTAGES", "REDUCTIONS"):
        assert getattr(words, name).keys() <= getattr(minisd, name).keys(), name
    core = {"forward_kl", "reverse_kl", "jensen_shannon", "clipped_forward_kl", "top_k_reverse_kl"}
    assert core <= words.DIVERGENCES.keys() and {"frozen", "ema"} <= words.TEACHERS.keys()


def test_the_method_table_is_markdown_of_five_columns():
    """Catches the bars of KL(a || b), which would end a cell."""
    lines = report.method_table(METHODS).splitlines()
    assert len(lines) == len(METHODS) + 2
    for line in lines:
        assert line.replace("\\|", "").count("|") == 6
    assert lines[2].startswith("| `sft` | teacher | frozen teacher sees the solution |")


# The log ------------------------------------------------------------------------------------------


def test_top_k_overlap_by_hand():
    """Catches an overlap of other positions, or one that is not divided by k."""
    s = torch.tensor([[[3.0, 2, 1, 0, -1], [3.0, 2, 1, 0, -1]]])
    t = torch.tensor([[[3.0, 1, 2, 0, -1], [0.0, 1, 2, 3, 4]]])
    assert report.top_k_overlap(s, t, 2).tolist() == [[0.5, 0.0]]
    assert report.top_k_overlap(s, t, 3).tolist() == [[1.0, pytest.approx(1 / 3)]]
    assert all(read(s, t).shape == (1, 2) for read in report.READINGS.values())


def test_log_lines_stand_below_their_headings(tmp_path, capsys):
    """Catches columns that drift, a key that comes later, and rows that the file does not have."""
    log = report.Log(tmp_path, [{"kind": "step", "step": 0}])
    row = dict.fromkeys(reversed(report.COLUMNS), 1.0)
    for _ in range(16):
        log.step(row)
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(0) == report.UNITS
    assert [i for i, line in enumerate(lines) if line == report.HEADER] == [0, 16]
    assert len(lines[0]) == len(lines[1]) <= 100
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == log.rows and len(written) == 17 and written[1] == {"kind": "step", **row}
    with pytest.raises(RuntimeError, match=r"columns changed: \{'another'\}"):
        log.step(row | {"another": 1.0})
    report.Log(None, [], quiet=True).step(row)
    assert capsys.readouterr().out == ""


def test_the_share_of_cut_completions_stands_in_every_row(tmp_path):
    """Catches a limit that bites between two evaluations, where nothing tells of it."""
    rows = [minisd.Row(None, {}, ids) for ids in ([5, 2], [5, 5, 5], [2], [5, 5, 1], [2, 5, 5])]
    completions = minisd.Completions.of([row.ids for row in rows], 0)
    batch = minisd.Batch(rows, {}, completions, torch.zeros(5), Sizes())
    numbers = dict.fromkeys((*report.READINGS, "loss", "grad_norm"), 0.0)
    log = report.Log(tmp_path, [])
    assert log.batch(7, batch, numbers, 1.0, (2, 1))["cut_frac"] == 0.4
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["cut_frac"] == 0.4


def flat(method: Method, **changes) -> set[str]:
    """The warnings of a batch without any signal, which is looked at twice."""
    rows = [minisd.Row(None, {"none": "", "solution": "", "sibling": ""})] * 4
    rewards, sizes = torch.ones(4), Sizes(groups=2, group_size=2)
    batch = minisd.Batch(rows, {}, None, rewards, sizes)
    log = report.Log(None, [])
    log.file = True
    for _ in range(2):
        report.warn_of_flat_signals(method, batch, {"grad_norm": 1.0} | changes, log, 10)
    return log.warned


def test_flat_signals_are_warned_of_once(capsys):
    """Catches a run that silently learns nothing."""
    for method, changes, said in (
        (METHODS["grpo"], {}, "all rewards are equal"),
        (METHODS["sdft"], {}, "no completion of a batch has a privileged context"),
        (METHODS["sdpo"], {"grad_norm": 0.0}, "the gradient is zero"),
        (Method(teacher="ema"), {}, "the ema teacher never moves"),
        (Method(teacher="snapshot"), {}, "no snapshot is taken"),
    ):
        flat(method, **changes)
        assert capsys.readouterr().err.count(said) == 1
    assert not flat(METHODS["gkd"]) and "equal" not in "".join(flat(METHODS["sdpo"]))


def test_cut_completions_are_warned_of_and_shown(capsys, tmp_path):
    """Catches a limit that is too short and looks like a model that knows nothing."""
    said = "more than a third of the completions are cut off at --max_new_tokens"
    for cut, warned in ((1, 0), (2, 1)):
        texts = [Cut("a")] * cut + ["b"] * (4 - cut)
        rows = [minisd.Row(None, {"solution": "so"}, text=text) for text in texts]
        batch = minisd.Batch(rows, {}, None, torch.arange(4.0), Sizes(groups=2, group_size=2))
        log = report.Log(tmp_path, [])
        for _ in range(2):
            report.warn_of_flat_signals(METHODS["grpo"], batch, {"grad_norm": 1.0}, log)
        means = {"accuracy_frac": 0.5, "cut_frac": cut / 4, "completion_tokens": 9.0}
        evaluation = Evaluation(means, [], [], [])
        log.evaluation(0, {"train": evaluation, "fresh": evaluation}, None)
        assert capsys.readouterr().err.count(said) == warned
    log = report.Log(tmp_path, [])
    log.evaluation(0, {"fresh": evaluation}, None)
    assert capsys.readouterr().err.count(said) == 1 and log.rows[0]["fresh"]["cut_frac"] == 0.5
    table = report.before_after_table(summary_of(means, cut_frac=0.25))
    assert table.splitlines()[0].split()[-1] == "cut" and "0.50 ->  0.25" in table


# Checks -------------------------------------------------------------------------------------------

SIZES = Sizes(groups=2, group_size=2, max_new_tokens=9)


def failed(method: Method = METHODS["sdpo"], task=None, toy: bool = True) -> list[str]:
    student = GPT(GPTConfig(len(toy_tasks.VOCABULARY)), torch.Generator().manual_seed(0))
    task = task or ToyTask(World())
    checks = report.start_up_checks(method, task, student, SIZES, toy=toy)
    names = [what for what, _, _ in checks]
    assert ("untrained loss is log V" in names) == toy
    return [what for what, passed, _ in checks if not passed]


@pytest.mark.parametrize("method", METHODS)
def test_an_honest_set_up_passes_all_checks(method):
    """Catches a check that no run of that method could pass."""
    assert failed(METHODS[method], toy=method == "sdpo") == []


def test_every_check_can_fail(monkeypatch):
    """Catches a check that passes whatever is wrong."""
    task = ToyTask(World())
    task.reference = lambda example, rng: "answer"
    assert failed(task=task) == ["references score 1"]
    task = ToyTask(World())
    with monkeypatch.context() as patch:
        honest = minisd.prompts_of
        patch.setattr(minisd, "prompts_of", lambda task, rows, kind, device: honest(
            task, rows, "solution", device))
        assert "no leak into the student's prompt" in failed()
    with monkeypatch.context() as patch:
        patch.setattr(minisd, "completion_hidden", shifted(minisd.completion_hidden))
        assert failed() == ["importance ratio is 1"]
    with monkeypatch.context() as patch:
        patch.setattr(report, "GPT", lambda config, generator: GPT(
            dataclasses.replace(config, head_std=1.0), generator))
        assert failed() == ["untrained loss is log V"]
    with monkeypatch.context() as patch:
        patch.setattr(minisd, "reverse_kl", minisd.forward_kl)
        patch.setattr(minisd, "student_and_teacher", lambda s, t: (s * 0.5, t))
        assert failed() == ["KL to itself is 0"]


def shifted(function):
    """The states of the positions one too late."""
    return lambda *x: function(*x).roll(1, dims=1)


# Tables and pictures ------------------------------------------------------------------------------

TOY = {"accuracy_frac": 0.5, "markers_per_completion": 1.0, "direct_frac": 0.2,
       "remark_frac": 0.1, "completion_tokens": 20.0}


def summary_of(means: dict, **after) -> dict:
    sample = {"prompt": "1+2 = ", "answer": "3", "before": "answer 4", "before_right": False,
              "after": "price $3 and $4 \u4e2d\x07" + "x" * 300, "after_right": True}
    return {"before": {"train": means, "fresh": means}, "samples": [sample] * 3,
            "after": {"train": means | after, "fresh": means | after}}


def test_tables_show_the_measures_that_are_there(tmp_path):
    """Catches a text task that is graded on what it does not measure, and a new measure unseen."""
    table = report.before_after_table(summary_of(TOY, accuracy_frac=0.75))
    assert "0.50 ->  0.75" in table and "direct" in table and "remark" not in table
    text = {"accuracy_frac": 0.5, "steps_quoted_per_completion": 2.0, "completion_tokens": 20.0}
    table = report.before_after_table(summary_of(text))
    assert "direct" not in table and "steps" in table and "2.00" in table
    lines = table.splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    many = text | {f"measure_{i}": 123.0 for i in range(9)}
    table = report.before_after_table(summary_of(many))
    assert max(map(len, table.splitlines())) <= 100


def test_the_sentence_says_what_changed():
    """Catches a loss that reads as a gain."""
    surer = {"markers_per_completion": 0.1, "direct_frac": 0.9, "completion_tokens": 4.0}
    for after, said in (
        ({"accuracy_frac": 0.9}, "now is more often right (0.50 -> 0.90)"),
        ({"accuracy_frac": 0.3} | surer, "hesitates less, writes shorter and is less often right"),
        ({"accuracy_frac": 0.52}, "is as often right"),
    ):
        assert said in report.in_words(summary_of(TOY, **after))
    assert "On reversed problems" in report.in_words(
        {when: {"train": TOY, "reversed": TOY} for when in ("before", "after")})


def test_samples_are_the_same_problems_of_rising_length():
    """Catches an answer next to the prompt of another problem, and examples without a prompt."""
    examples = [SimpleNamespace(prompt="x" * n, answer=n) for n in (5, 1, 4, 2, 3)]
    runs = [Evaluation({}, examples, [f"{w}{e.answer}" for e in examples], [0.0] * 4 + [1.0])
            for w in "ba"]
    rows = report.samples(report.chosen(runs[0], None), runs[1])
    assert [row["answer"] for row in rows] == ["2", "3", "4"]
    assert all(row["before"] == f"b{row['answer']}" for row in rows)
    assert [row["after_right"] for row in rows] == [False, True, False]
    cut = Evaluation({}, examples, [Cut("c")] * 5, [0.0] * 5)  # torch.load refuses its class
    texts = [row[when] for row in report.samples(report.chosen(cut, None), cut)
             for when in ("before", "after")]
    assert {*map(type, texts)} == {str}
    plain = Evaluation({}, ["ab", "cde"], ["b", "e"], [0.0, 0.0])
    task = SimpleNamespace(reference=lambda example, rng: example[::-1])
    assert report.chosen(plain, task)[0]["answer"] == "ba"
    assert report.failures(plain, task)[1].endswith("cdee   (expected edc)")
    assert len(report.failures(runs[0], task)) == 3


def test_text_of_models_is_shown_in_one_short_line():
    """Catches control characters, which could do anything to a terminal, and endless lines."""
    assert report.brief("a\nb\x1b[2Jc") == "a b [2Jc"
    assert len(report.brief("x" * 1000)) < 130
    for line in report.sample_lines(summary_of(TOY)).splitlines():
        assert len(line) < 150 and line.isprintable()


TEXT = {"accuracy_frac": 1.0, "completion_tokens": 3.0, "mine": 2.0}


@pytest.mark.parametrize("means", [TOY, TEXT], ids=["toy", "text"])
def test_curves_are_drawn_whatever_the_model_wrote(means, tmp_path):
    """Catches dollars read as mathematics, glyphs that the font lacks, and half a file."""
    rows = [{"kind": "evaluation", "step": n, "teacher": means, "train": means, "fresh": means}
            for n in (0, 5)]
    rows += [{"kind": "step", **dict.fromkeys(report.COLUMNS, n)} for n in (1, 5)]
    report.draw_curves(tmp_path / "curves.png", "sdpo: $5 || $6", rows, summary_of(means))
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
