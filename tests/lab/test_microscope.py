"""Laws of the microscope: one completion, token by token."""

import dataclasses

import pytest
import torch
from tiny import plain_log_probs

import toy_tasks
from lab import microscope, storage
from lab.flags import run_main
from minisd import GPT, METHODS, GPTConfig, Method, Teacher
from toy_tasks import Problem, Toy

PROBLEM = Problem.parse("3*7+4-8")  # 1, 5, 7
SOLUTION = "solution 3*7=1+4=5-8=7 | "
BY_OTHER = Method(teacher="external")  # the solution is shown to another model


def untrained(seed: int) -> GPT:
    """A model that has learned nothing, far from uniform."""
    shape = GPTConfig(vocab_size=len(toy_tasks.VOCABULARY), head_std=0.5)
    return GPT(shape, torch.Generator().manual_seed(seed))


def look(completion: str = "", method: Method = BY_OTHER, rules: str = "", **how):
    """Two different models on a completion of the problem."""
    needed = any(weights == "external" for _, weights, _ in method.terms)
    teacher = Teacher(method, untrained(0), external=untrained(1) if needed else None)
    task = Toy(rules=rules).make_task(0, 0)
    return microscope.inspect_completion(teacher, task, PROBLEM.text, completion, **how)


def test_the_numbers_are_those_of_student_and_teacher_on_the_same_completion():
    """Catches swapped models or directions, targets shifted by one, a student that sees a hint."""
    x = look("wait 3*7=1; answer 1")
    ids = [*toy_tasks.encode("wait 3*7=1; answer 1"), toy_tasks.END_ID]
    with torch.no_grad():
        p = plain_log_probs(untrained(0), toy_tasks.encode("3*7+4-8 = "), ids)
        q = plain_log_probs(untrained(1), toy_tasks.encode(f"{SOLUTION}3*7+4-8 = "), ids)
    chosen = torch.tensor(ids)[:, None]
    own_p, own_q = (log_probs.gather(1, chosen)[:, 0] for log_probs in (p, q))
    demo = toy_tasks.TOKEN_ID[toy_tasks.REMARK]
    expected = {
        "student_prob": own_p.exp(), "teacher_prob": own_q.exp(), "advantage": own_q - own_p,
        "forward_kl": (q.exp() * (q - p)).sum(-1), "reverse_kl": (p.exp() * (p - q)).sum(-1),
        "student_remark": p[:, demo].exp(), "teacher_remark": q[:, demo].exp(),
        "student_top_prob": p.exp().amax(-1), "teacher_top_prob": q.exp().amax(-1),
    }
    for name, values in expected.items():  # float32, another order of additions
        torch.testing.assert_close(torch.tensor(x.values[name]), values, atol=1e-4, rtol=1e-4)
    for who, log_probs in (("student", p), ("teacher", q)):
        tops = [toy_tasks.VOCABULARY[i].strip() for i in log_probs.argmax(-1).tolist()]
        assert x.values[f"{who}_top"] == tops
    assert len(x.tokens) == len(ids) and x.tokens[-1] == "<end>" and not x.right
    assert x.contexts == {"student": "", "teacher": SOLUTION}


WRONG = {  # completion: index of the token that is the first wrong value
    "wait 3*7=1; 1+4=5; 5-8=7; answer 7": None,
    "wait 3*7=1; 1+4=6; 6-8=8; answer 8": 11,
    "3*7=1; 1+4=6; 6-8=8; answer 8 demo": 10,
    "wait 3*7+4=2; wait 3*7=1; 1+4=5; 5-8=7; answer 7": None,
    "wait 3*7+4=2; 2-8=4; answer 4": 7,
    "3*7+4=5; wait 3*7=1; 1+4=8; 8-8=0; answer 0": 19,
    "wait 3*7=1; 1+4=5; 5-8=7; answer 2": 20,
    "wait 3*7+4=2; wait 3*7=1; 1+4=5; 5-8=8; answer 8": 26,
    "wait 3*7=1; 1+4=": None,
}


@pytest.mark.parametrize("completion, token", WRONG.items(), ids=str)
def test_the_first_wrong_step_is_marked(completion, token):
    """Catches a glance that counts although it was checked, and a rule in front of another row."""
    assert microscope.first_wrong_value(PROBLEM, completion) == token
    x = look(completion)
    lines = microscope.inspection_table(x).splitlines()
    marks = [i for i, line in enumerate(lines) if "first wrong step" in line]
    if token is not None:
        assert lines[marks[0] + 1].split()[:2] == [str(token), x.tokens[token]]
        assert marks == [token + 2]  # below the two lines of the header
    elif "answer" in completion:  # else the student goes on, and may be wrong itself
        assert not marks


def test_a_beginning_is_continued_by_the_student_as_the_seed_says():
    """Catches a continuation that forgets the beginning, or the same one for every seed."""
    texts = [look("wait 3*7=1; ", seed=seed, max_new_tokens=20).completion for seed in (3, 3, 4)]
    assert all(text.startswith("wait 3*7=1; ") for text in texts)
    assert texts[0] == texts[1] != texts[2]
    assert look("", max_new_tokens=9).completion != look("", max_new_tokens=9, seed=2).completion


def test_every_context_and_every_target_can_be_looked_at():
    """Catches feedback about another attempt, a rule that counts as a mistake, a lost term."""
    x = look("answer 2", Method(context="feedback"))
    assert x.contexts["teacher"] == "tried:2 wrong | "
    ruled = look("3*7=1; 1+4=5; 5-8=7; 7+3=0; answer 0", Method(context="rule"), rules="3")
    assert ruled.contexts["teacher"] == "rule +3 | " and ruled.right and ruled.wrong is None
    for context in ("answer", "partial", "sibling", "other_problem", "wrong"):
        assert look("answer 7", Method(context=context)).contexts["teacher"].endswith(" | ")
    two = Method(target=((0.5, "frozen", "answer"), (0.5, "live", "solution")))
    assert look("answer 7", two).contexts["teacher"] == f"answer 7 |  and {SOLUTION}"
    hinted = look("answer 7", Method(student_context="answer", reward_weight=1.0))
    assert hinted.contexts["student"] == "answer 7 | "


def test_the_command_prints_a_table_that_fits_and_draws_it(tmp_path, monkeypatch, capsys):
    """Catches a table too wide for a terminal, and a checkpoint that is not the one looked at."""
    monkeypatch.chdir(tmp_path)
    model = untrained(5)
    storage.save_student(tmp_path / "student.pt", model)
    completion = "wait 3*7=1; 1+4=6; 6-8=8; answer 8"
    microscope.main([PROBLEM.text, "--completion", completion, "--checkpoint", "."])
    out = capsys.readouterr().out
    assert all(len(line) <= 100 for line in out.splitlines())
    task = Toy().make_task(0, 0)
    teacher = Teacher(METHODS["sdpo"], model)
    x = microscope.inspect_completion(teacher, task, PROBLEM.text, completion)
    assert microscope.inspection_table(x) in out and "2. First wrong step: t = 11." in out
    assert (tmp_path / "out" / "microscope" / "microscope.png").stat().st_size > 10_000


def test_without_a_checkpoint_the_base_model_is_looked_at(tmp_path, monkeypatch, capsys):
    """Catches an external teacher that is the student, and a half-typed marker that is refused."""
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(microscope, "draw_inspection", lambda path, x: drawn.append(x))
    flags = ["--pretrain_steps", "1", "--max_new_tokens", "1", "--completion", "wait"]
    for method in ("sdpo", "opd"):
        microscope.main(["3+4", *flags, "--method", method])
    out = capsys.readouterr().out
    assert "student (base model)" in out and "teacher (larger) sees: 3+4 = \n" in out
    assert all(x.tokens[0] == "wait" for x in drawn)
    assert drawn[0].values["student_prob"] == drawn[1].values["student_prob"]
    assert drawn[0].values["teacher_prob"] != drawn[1].values["teacher_prob"]
    assert len(list((tmp_path / "out" / "base").glob("*.pt"))) == 2


BAD = [
    (["3x7"], "problem", "3*7+4-8"),
    ([], "the following arguments are required", "problem"),
    (["3*7", "--completion", "hello"], "--completion", "allowed"),
    (["3*7", "--checkpoint", "nowhere"], "--checkpoint", "student.pt"),
    (["3*7", "--checkpoint", "other"], "--checkpoint", "another kind of file"),
    (["3*7", "--context", "none"], "--context", "the loss 0"),
    (["3*7", "--context", "rule"], "--rules", "numbers"),
    (["3*7", "--method", "sdpa"], "--method", "grpo"),
    (["3*7", "--method", "rlvr_teacher"], "--external_teacher", "larger"),
    (["3*7", "--init", "nowhere"], "unrecognized arguments", "--init"),
    (["3*7", "--seed", "-1"], "--seed", "0 to"),
    (["3*7", "--out_dir", "file"], "--out_dir", "a folder"),
]


@pytest.mark.parametrize("arguments, named, allowed", BAD, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, named, allowed, capsys, tmp_path, monkeypatch
):
    """Catches a traceback, a silently ignored flag, or minutes of work before the refusal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "student.pt").write_text("mine")
    monkeypatch.setattr("sys.argv", ["microscope", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_main("python -m lab.microscope", microscope.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"error: {named}" in error and allowed in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_a_model_of_another_vocabulary_is_refused(tmp_path):
    """Catches a traceback deep in the embedding."""
    shape = dataclasses.replace(untrained(0).config, vocab_size=7)
    storage.save_student(tmp_path / "student.pt", GPT(shape))
    with pytest.raises(ValueError, match=r"--checkpoint: .*allowed: the folder of a run"):
        microscope.load(str(tmp_path), "--checkpoint", torch.device("cpu"))
