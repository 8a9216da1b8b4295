"""Laws of the forecast: manner from one reader, content from the other; samples as training has."""

import dataclasses
import json
import math
import random

import pytest
import torch
from tiny import all_completions, build_gpt, plain_log_probs

import toy_tasks
from lab import base, forecast
from lab.flags import run_main
from lab.forecast import LAWS, Look
from minisd import GPT, Completions, Row, Sizes

CLASSES = torch.tensor([0, 0, 1, 2])  # two tokens of one class, two of their own
STUDENT, TEACHER = torch.tensor([[0.1, 0.3, 0.4, 0.2]]), torch.tensor([[0.35, 0.05, 0.5, 0.1]])


def some_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# Laws ---------------------------------------------------------------------------------------------


def test_the_class_is_the_teachers_and_the_token_within_it_the_students():
    """Catches swapped readers, and a class that is not renormalised."""
    found = forecast.transplant(STUDENT.log(), TEACHER.log() + 2, CLASSES).exp()
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.3, 0.5, 0.1]]), atol=1e-6, rtol=0)


def test_the_corrected_law_deals_the_teachers_probabilities_in_the_students_order():
    """Catches ranks across classes, an ascending order, and the teacher's own order."""
    found = forecast.transplant_sureness(STUDENT.log() - 1, TEACHER.log(), CLASSES).exp()
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.35, 0.5, 0.1]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("law", LAWS)
def test_a_reader_that_is_student_and_teacher_stays_itself(law):
    """Catches a law that changes a model without any hint, or numbers that are no distribution."""
    classes, one, other = torch.tensor([2, 0, 1, 0, 0, 2, 3]), *(some_logits(5, 7, seed=i)
                                                                 for i in range(2))
    itself = LAWS[law](one, one + 3, classes)
    torch.testing.assert_close(itself, one.log_softmax(-1), atol=1e-10, rtol=0)
    mixed = LAWS[law](one, other, classes)
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(5).double(), atol=1e-10, rtol=0)
    # Each class has the teacher's probability.
    by_class = [torch.zeros(5, 4).double().index_add(1, classes, x.exp())
                for x in (mixed, other.log_softmax(-1))]
    torch.testing.assert_close(*by_class, atol=1e-10, rtol=0)


@pytest.mark.parametrize("law", LAWS)
def test_one_class_leaves_the_teacher_nothing_but_sureness_and_classes_of_one_give_it_all(law):
    """Catches classes that are taken for positions."""
    one, other = some_logits(2, 6, seed=2), some_logits(2, 6, seed=3)
    whole = LAWS[law](one, other, torch.zeros(6, dtype=torch.long))
    assert torch.equal(whole.argsort(-1), one.argsort(-1))
    each = LAWS[law](one, other, torch.arange(6))
    torch.testing.assert_close(each, other.log_softmax(-1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("law", LAWS)
def test_impossible_tokens_and_half_precision_leave_a_distribution(law):
    """Catches nan where the student rules a whole class out, and sums in bfloat16."""
    one, other = some_logits(1, 4).bfloat16(), some_logits(1, 4, seed=1).bfloat16()
    one[0, :2] = -math.inf
    found = LAWS[law](one, other, CLASSES)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_tokens_share_a_class_by_the_first_pattern_that_matches_whole():
    """Catches `=` among operators, a match of a part, and words of one class in the toy."""
    tokens = list(toy_tasks.VOCABULARY)
    classes = dict(zip(tokens, forecast.token_classes(tokens, forecast.TOY_CLASSES).tolist()))
    assert len({classes[d] for d in "0123456789"}) == len({classes[o] for o in "+-*"}) == 1
    assert len(set(classes.values())) == len(tokens) - 9 - 2
    assert sorted(set(classes.values())) == list(range(len(tokens) - 11))
    words = ["the", "12", " wait", "\n", "3x"]
    found = forecast.token_classes(words, (r"\d+", r" ?wait", r"(?s).*"))
    assert found.tolist() == [0, 1, 2, 0, 0]


DRAWS = 4000


@torch.no_grad()
@pytest.mark.parametrize("law", LAWS)
def test_sampled_texts_follow_the_law_exactly(law):
    """Catches readers of different texts, a prompt of the other, and classes of another token.

    Both readers are one model behind different prompts; every completion is listed.
    """
    tiny = {"vocab_size": 4, "width": 8, "mlp_width": 6, "n_heads": 2, "n_kv_heads": 1,
            "head_dim": 4}
    model, prompts = build_gpt(1, dtype=torch.float32, **tiny), ([2, 3], [0, 3, 2, 2, 3])
    classes = torch.tensor([1, 2, 0, 0])
    every = all_completions(vocab_size=4, length=3, end_id=1)
    expected = []
    for ids, mask in zip(every.ids, every.mask):
        row = ids[mask].tolist()
        pair = [plain_log_probs(model, prompt, row) for prompt in prompts]
        expected.append(LAWS[law](*pair, classes).gather(1, ids[mask][:, None]).sum().exp())
    expected = torch.stack(expected)
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)

    task = Digits()
    task.prompt_ids = lambda example, context="": prompts[bool(context)]
    look = Look(task, model, "hint", classes, Sizes(max_new_tokens=3))
    uniforms = torch.rand(DRAWS, 3, generator=torch.Generator().manual_seed(0))
    written = look.write(law, [Row(0, {"hint": "4"})] * DRAWS, uniforms)
    code = torch.tensor([16, 4, 1])
    keys = (every.ids * code).sum(1) + 64 * every.mask.sum(1)
    found = (written.ids * code).sum(1) + 64 * written.mask.sum(1)
    observed = (found[:, None] == keys).float().mean(0)
    error = (expected * (1 - expected) / DRAWS).sqrt()
    assert observed.sum().item() == pytest.approx(1)  # each is one of the listed
    assert ((observed - expected).abs() < 4.5 * error + 1e-6).all()


# Samples ------------------------------------------------------------------------------------------


class Digits:
    """Texts of digits from 2 on, right if they begin with an even one; 0 is padding, 1 the end."""

    pad_id, end_ids, splits = 0, (1,), ("train", "fresh")

    def __init__(self):
        self.attempts = {"verdict": "own", "peer": "sibling"}

    def draw(self, split, rng): return rng.randrange(2, 10)

    def context(self, example, kind, rng, attempt=""):
        return {"verdict": f"9{attempt}", "peer": f"8{attempt}", "hint": "7"}[kind]

    def prompt_ids(self, example, context=""): return [*map(int, context), example]

    def reward(self, text, example): return float(text[:1] in tuple("2468"))

    def measures(self, text, example):
        return {"accuracy_frac": self.reward(text, example), "length": float(len(text))}

    def encode(self, text): return list(map(int, text))

    def decode(self, ids): return "".join(str(i) for i in ids if i > 1)


def look_at(task, kind: str, group_size: int = 1, laws=tuple(LAWS)) -> Look:
    model = build_gpt(3, dtype=torch.float32, vocab_size=10)
    classes = torch.tensor([0, 1, 2, 3, 2, 3, 2, 3, 2, 3])
    return Look(task, model, kind, classes, Sizes(group_size=group_size, max_new_tokens=5), laws)


def test_behind_the_same_prompt_all_authors_write_what_the_student_writes():
    """Catches other random numbers for other authors: noise in place of a difference of pairs."""
    task = Digits()
    task.prompt_ids = lambda example, context="": [example]
    for kind, group_size in (("hint", 1), ("peer", 4)):
        look = look_at(task, kind, group_size)
        x = forecast.forecast(look, count=20, seed=1, visits=8.0)
        for split in ("fresh", "pool"):
            table = x[split]
            assert 0 < table["student_accuracy_frac"] < 1
            for who in ("teacher", *LAWS):
                for name in ("accuracy_frac", "accuracy_se_frac", "length"):
                    assert table[f"{who}_{name}"] == table[f"student_{name}"]
            assert table["initial_gap_frac"] == 0
            assert table["reverse_kl_per_token"] == pytest.approx(0, abs=1e-6)
            assert table["entropy_drop_per_completion"] == pytest.approx(0, abs=1e-4)
        assert x["predicted_fresh_change_frac"] == x["predicted_fresh_change_se_frac"] == 0
        assert x["verdict"] == "no difference"


def test_contexts_are_made_of_the_students_own_texts_or_of_right_siblings():
    """Catches references in their place, a wrong sibling, and a row that has no sibling at all."""
    task, examples = Digits(), list(range(2, 10)) * 5
    rows, uniforms = forecast.students_rows(
        look_at(task, "verdict"), examples, random.Random(0), "a")
    assert [row.example for row in rows] == examples and uniforms.shape == (40, 5)
    assert all(row.contexts["verdict"] == f"9{row.text}" for row in rows)
    rows, uniforms = forecast.students_rows(
        look_at(task, "peer", group_size=2), examples, random.Random(0), "a")
    assert 0 < len(rows) < 40 and len(uniforms) == len(rows)
    assert all(row.contexts["peer"][1] in "2468" for row in rows)
    own = sum(row.contexts["peer"] == f"8{row.text}" for row in rows)
    assert own < len(rows) / 2  # another completion than the row's own


def test_no_context_anywhere_is_an_error_that_names_the_flag():
    """Catches a mean over nothing."""
    task = Digits()
    task.reward = lambda text, example: 0.0
    with pytest.raises(ValueError, match="--context: 'peer'; allowed: one that two of 6"):
        forecast.samples_of(look_at(task, "peer", group_size=2), "fresh", 6, 0)


def test_divergence_and_entropies_are_those_of_who_wrote():
    """Catches swapped directions, a teacher's entropy on the student's texts, lost tokens."""
    look, kind = look_at(Digits(), "hint"), "hint"
    rows, uniforms = forecast.students_rows(look, [2, 5, 7, 4], random.Random(0), "b")
    found = forecast.compared(look, rows, uniforms, random.Random(0))
    taught = look.write("teacher", rows, uniforms)
    for i, row in enumerate(rows):
        teachers = taught.ids[i][taught.mask[i]].tolist()
        plain, hinted = [row.example], [7, row.example]
        with torch.no_grad():
            p, q = (plain_log_probs(look.model, x, row.ids) for x in (plain, hinted))
            of_teacher = plain_log_probs(look.model, hinted, teachers)
        expected = {"reverse_kl": (p.exp() * (p - q)).sum(), "tokens": float(len(row.ids)),
                    "student_entropy": -(p.exp() * p).sum(),
                    "teacher_entropy": -(of_teacher.exp() * of_teacher).sum()}
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(float(value), abs=1e-4), (name, kind)
        assert found["student_length"][i] == len(row.text)


@dataclasses.dataclass(frozen=True)
class Contrary(Look):
    """An author that is right whenever the verdict was wrong, and the other way round."""

    def write(self, author, rows, uniforms):
        texts = ["3" if row.contexts["verdict"][1] in "2468" else "2" for row in rows]
        return Completions.of([[int(text), 1] for text in texts], 0)


def test_attempts_settle_where_what_is_written_no_longer_changes():
    """Catches attempts that are all replaced at once: accuracies that swing between 0 and 1."""
    look = Contrary(**vars(look_at(Digits(), "verdict")))
    rows = [Row(2, {"verdict": "92"}) for _ in range(400)]
    written = forecast.settled(look, rows, torch.zeros(400, 5), random.Random(0))
    assert (written.ids[:, 0] == 2).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert all(row.contexts == {"verdict": "92"} for row in rows)  # others look at them, too


@pytest.mark.parametrize("kind, rounds", [("verdict", forecast.SETTLING), ("hint", 1)])
def test_only_the_corrected_law_and_only_own_attempts_settle(kind, rounds):
    """Catches the plain law behind contexts of no student there is, and rounds that are skipped."""
    look, authors = look_at(Digits(), kind), []

    def write(who, *rest):
        authors.append(who)
        return Look.write(look, who, *rest)

    object.__setattr__(look, "write", write)
    rows, uniforms = forecast.students_rows(look, [2, 5, 7], random.Random(0), "c")
    forecast.compared(look, rows, uniforms, random.Random(0))
    assert authors == ["teacher", "transplant", *["corrected"] * rounds]


def test_fresh_numbers_are_of_fresh_problems_and_the_pools_of_training_problems():
    """Catches a forecast for new problems that is made on those of the pool."""
    task = Digits()
    task.draw = lambda split, rng: {"fresh": 2, "train": 3}[split]
    task.measures = lambda text, example: {"accuracy_frac": float(example == 2)}
    x = forecast.forecast(look_at(task, "hint"), count=3, seed=0, visits=8.0)
    assert x["fresh"]["student_accuracy_frac"] == x["predicted_fresh_accuracy_frac"] == 1
    assert x["pool"]["student_accuracy_frac"] == x["predicted_pool_accuracy_frac"] == 0


# Numbers ------------------------------------------------------------------------------------------


def accuracies(**rows: list[float]) -> dict[str, torch.Tensor]:
    return {f"{name}_accuracy_frac": torch.tensor(values) for name, values in rows.items()}


def test_predictions_are_worked_by_hand():
    """Catches k at the wrong author, errors of sums in place of pairs, a verdict with its sign."""
    fresh = accuracies(student=[1.0, 1, 1, 0], transplant=[0.0, 0, 1, 0])
    pool = accuracies(teacher=[1.0, 1, 1, 0], transplant=[0.0, 1, 0, 0])
    x = forecast.predictions(fresh, pool, "transplant", k=0.75)
    assert x["predicted_fresh_accuracy_frac"] == 0.25
    assert x["predicted_fresh_accuracy_se_frac"] == pytest.approx(0.25)
    assert x["predicted_fresh_change_frac"] == -0.5
    assert x["predicted_fresh_change_se_frac"] == pytest.approx(math.sqrt(1 / 3 / 4))
    assert x["predicted_pool_accuracy_frac"] == pytest.approx(0.75 * 0.75 + 0.25 * 0.25)
    assert x["verdict"] == "no difference"  # .5 is less than twice .289
    many = {name: values.repeat(4) for name, values in fresh.items()}
    assert forecast.predictions(many, pool, "transplant", k=0)["verdict"] == "do not"
    turned = accuracies(student=[0.0, 0, 1, 0] * 4, transplant=[1.0, 1, 1, 0] * 4)
    assert forecast.predictions(turned, pool, "transplant", k=0)["verdict"] == "self-distil"


def test_rival_forecasts_are_worked_by_hand():
    """Catches a drop with its sign turned, a gap the other way round, KL per completion."""
    columns = {"tokens": [2, 4], "reverse_kl": [1, 0.5], "student_entropy": [3, 5],
               "teacher_entropy": [1, 2], "student_accuracy_frac": [0, 1],
               "teacher_accuracy_frac": [1, 1], "student_markers_per_completion": [2, 1],
               "teacher_markers_per_completion": [0, 1]}
    x = forecast.table_of({name: torch.tensor(v).float() for name, v in columns.items()})
    expected = {"reverse_kl_per_token": 0.25, "entropy_drop_per_completion": 2.5, "problems": 2,
                "initial_gap_frac": 0.5, "marker_change_per_completion": -1, "tokens": 3,
                "student_accuracy_se_frac": 0.5, "teacher_accuracy_se_frac": 0}
    assert expected.items() <= {name: round(v, 6) for name, v in x.items()}.items()


TINY = ["--pretrain_steps", "1", "--max_new_tokens", "4", "--eval_problems", "6",
        "--train_problems", "8", "--steps", "16", "--batch_size", "32", "--group_size", "4",
        "--device", "cpu"]


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    """Catches a file without the promised keys, lines of another law, the share of another pool."""
    monkeypatch.chdir(tmp_path)
    shape = dataclasses.replace(base.shape_of("base"), head_std=0.3)
    model, asked = GPT(shape, torch.Generator().manual_seed(0)), []
    monkeypatch.setattr(
        forecast, "base_model", lambda *a, **how: (asked.append((*a, how)), (model, 0.0))[1])
    kept = {"steps": 1, "device": "cpu", "cache_dir": "out/base"}
    for flags in ([], ["--corrected", "--context", "feedback", "--train_problems", "0"]):
        forecast.main([*TINY, *flags])
        assert asked.pop() == (toy_tasks.World(), 0, kept)
        x = json.loads((tmp_path / "out/forecast/forecast.json").read_text())
        lines = capsys.readouterr().out.splitlines()[-6:]
        for name in ("fresh_accuracy", "pool_accuracy"):
            number = f"{x[f'predicted_{name}_frac']:.2f} +- {x[f'predicted_{name}_se_frac']:.2f}"
            assert any(number in line for line in lines)
        assert lines[4].startswith(f"verdict   {x['verdict']}")
        now, then = (f"{x['fresh'][f'{who}_markers_per_completion']:.2f}"
                     for who in ("student", x["law"]))
        assert f"markers per completion: {now}, after it {then}" in lines[0]
        if flags:
            assert x["visits"] == x["k"] == 0 and "endless" in lines[3]
            assert list(x["laws"]) == list(LAWS) and x["law"] == "corrected"
        else:
            assert x["visits"] == 16 and x["k"] == pytest.approx(1 - math.exp(-1))
            assert x["settings"]["train_problems"] == 8 and list(x["laws"]) == ["transplant"]
        assert x["laws"][x["law"]].items() <= x.items()
        for split in ("fresh", "pool"):
            assert {"initial_gap_frac", "entropy_drop_per_completion", "reverse_kl_per_token",
                    "marker_change_per_completion", "teacher_accuracy_frac"} <= x[split].keys()


def test_a_group_is_written_where_a_sibling_is_shown_and_nowhere_else(tmp_path, monkeypatch):
    """Catches a sibling that is looked for among one, and eight times the work for nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, "base_model", lambda *a, **how: (torch.nn.Linear(1, 1), 0.0))

    def look_only(look, **how):
        raise ValueError(f"{look.context} {look.sizes.group_size}")

    monkeypatch.setattr(forecast, "forecast", look_only)
    for kind, size in (("sibling", 4), ("feedback", 1), ("solution", 1)):
        with pytest.raises(ValueError, match=f"^{kind} {size}$"):
            forecast.main([*TINY, "--context", kind])


def test_the_share_of_a_verdict_on_the_own_attempt_is_nothing_in_the_corrected_law():
    """Catches a pool that is to learn answers which its context does not tell."""
    x = forecast.forecast(look_at(Digits(), "verdict"), count=8, seed=0, visits=16.0)
    assert x["k"] == x["laws"]["corrected"]["k"] == 0
    assert x["laws"]["transplant"]["k"] == pytest.approx(1 - math.exp(-1))
    x = forecast.forecast(look_at(Digits(), "hint"), count=8, seed=0, visits=16.0)
    assert x["k"] == x["laws"]["transplant"]["k"] > 0.6


BAD = [
    (["--context", "hint"], "--context", "solution"),
    (["--context", "none"], "--context", "the loss 0"),
    (["--context", "rule"], "--rules", "numbers"),
    (["--eval_problems", "1"], "--eval_problems", "2 to"),
    (["--steps", "-1"], "--steps", "0 to"),
    (["--group_size", "0"], "--group_size", "1 to"),
    (["--world", "doubt=1"], "--world", "allowed"),
    (["--out_dir", "file"], "--out_dir", "a folder"),
    (["--method", "sdpo"], "unrecognized arguments", "--method"),
]


@pytest.mark.parametrize("arguments, named, allowed", BAD, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, named, allowed, capsys, tmp_path, monkeypatch
):
    """Catches a traceback, a silently ignored flag, or minutes of work before the refusal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("sys.argv", ["forecast", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_main("python -m lab.forecast", forecast.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"error: {named}" in error and allowed in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
