"""Laws of the microscope: one completion, token by token."""

import dataclasses

import pytest
import torch
from conftest import plain_log_probs

import toy_tasks
import train_gpt
from minisd import GPT, GPTConfig, Teacher
from toy_tasks import Problem

PROBLEM = Problem.parse("3*7+4-8")  # 1, 5, 7


def untrained(seed: int) -> GPT:
    """A model that has learned nothing, far from uniform."""
    shape = GPTConfig(vocab_size=len(toy_tasks.VOCABULARY), head_std=0.5)
    return GPT(shape, torch.Generator().manual_seed(seed))


def look(completion: str = "", **flags) -> train_gpt.Inspection:
    """Two different models on a completion of the problem."""
    config = train_gpt.method_config(flags)
    teacher = Teacher("frozen", untrained(1))
    return train_gpt.inspect_completion(config, untrained(0), teacher, PROBLEM.text, completion)


def test_the_numbers_are_those_of_student_and_teacher_on_the_same_completion():
    """Catches swapped models or directions, targets shifted by one, a student that sees a hint."""
    x = look("wait 3*7=1; answer 1")
    ids = [*toy_tasks.encode("wait 3*7=1; answer 1"), toy_tasks.END_ID]
    with torch.no_grad():
        p = plain_log_probs(untrained(0), toy_tasks.encode("3*7+4-8 = "), ids)
        q = plain_log_probs(untrained(1), toy_tasks.encode("solution 1,5,7 | 3*7+4-8 = "), ids)
    chosen = torch.tensor(ids)[:, None]
    own_p, own_q = (log_probs.gather(1, chosen)[:, 0] for log_probs in (p, q))
    demo = toy_tasks.TOKEN_ID[toy_tasks.REMARK]
    expected = {
        **{"student_prob": own_p.exp(), "teacher_prob": own_q.exp(), "advantage": own_q - own_p},
        "forward_kl": (q.exp() * (q - p)).sum(-1),
        "reverse_kl": (p.exp() * (p - q)).sum(-1),
        **{"student_remark": p[:, demo].exp(), "teacher_remark": q[:, demo].exp()},
        "teacher_top_prob": q.exp().amax(-1),
    }
    for name, values in expected.items():  # float32, another order of additions
        torch.testing.assert_close(torch.tensor(x.values[name]), values, atol=1e-4, rtol=1e-4)
    tops = [toy_tasks.VOCABULARY[i].strip() for i in q.argmax(-1).tolist()]
    assert x.values["teacher_top"] == tops and x.tokens[-1] == "<end>"
    assert len(x.tokens) == len(ids) and x.context == "solution 1,5,7 | " and not x.right


WRONG = {  # completion: index of the token that is the first wrong value
    "wait 3*7=1; 1+4=5; 5-8=7; answer 7": None,
    "wait 3*7=1; 1+4=6; 6-8=8; answer 8": 11,
    "3*7=1; 1+4=6; 6-8=8; answer 8 demo": 10,
    "wait 3*7=1; 1+4=6; wait 1+4=5; 5-8=7; answer 7": None,
    "wait 3*7=1; 1+4=6; wait 1+4=8; 8-8=0; answer 0": 11,
    "wait 3*7=1; 1+4=5; 5-8=7; answer 2": 20,
    "wait 3*7=2; wait 3*7=1; 1+4=5; 5-8=8; answer 8": 24,
    "wait 3*7=1; 1+4=": None,
}


@pytest.mark.parametrize("completion, token", WRONG.items(), ids=str)
def test_the_first_wrong_step_is_marked(completion, token):
    """Catches a slip that counts although it was corrected, and a rule in front of another row."""
    assert train_gpt.first_wrong_value(PROBLEM, completion, toy_tasks.encode) == token
    lines = train_gpt.inspection_table(look(completion)).splitlines()
    marks = [i for i, line in enumerate(lines) if "first wrong step" in line]
    if token is not None:
        assert lines[marks[0] + 1].split()[:2] == [str(token), look(completion).tokens[token]]
        assert marks == [token + 2]  # below the two lines of the header
    elif "answer" in completion:  # else the student goes on, and may be wrong itself
        assert not marks


def test_a_beginning_is_continued_by_the_student_as_the_seed_says():
    """Catches a continuation that forgets the beginning, or the same one for every seed."""
    texts = [look("wait 3*7=1; ", seed=seed, max_new_tokens=20).completion for seed in (3, 3, 4)]
    assert all(text.startswith("wait 3*7=1; ") for text in texts)
    assert texts[0] == texts[1] != texts[2]
    assert look("", max_new_tokens=5).completion != look("", max_new_tokens=5, seed=1).completion


def test_every_context_can_be_looked_at():
    """Catches feedback about another attempt, and a rule that counts as a mistake."""
    assert look("answer 2", context="feedback").context == "tried:2 wrong | "
    ruled = look("3*7=1; 1+4=5; 5-8=7; 7+3=0; answer 0", context="rule", rules="3")
    assert ruled.context == "rule +3 | " and ruled.right and ruled.wrong is None
    for context in ("answer", "partial", "sibling", "other_problem", "wrong"):
        assert look("answer 7", context=context).context.endswith(" | ")


def test_the_command_prints_a_table_that_fits_and_draws_it(tmp_path, monkeypatch, capsys):
    """Catches a table too wide for a terminal, and a checkpoint that is not the one looked at."""
    monkeypatch.chdir(tmp_path)
    model = untrained(5)
    content = {"weights": model.state_dict(), "shape": dataclasses.asdict(model.config)}
    torch.save(content, tmp_path / "student.pt")
    completion = "wait 3*7=1; 1+4=6; 6-8=8; answer 8"
    train_gpt.main(["--inspect", PROBLEM.text, "--completion", completion, "--checkpoint", "."])
    out = capsys.readouterr().out
    assert all(len(line) <= 100 for line in out.splitlines())
    config = train_gpt.method_config({})
    teacher = Teacher("frozen", model)
    x = train_gpt.inspect_completion(config, model, teacher, PROBLEM.text, completion)
    assert train_gpt.inspection_table(x) in out and "2. First wrong step: t = 11." in out
    assert (tmp_path / "out" / "inspect" / "inspect.png").stat().st_size > 10_000
    train_gpt.main(["--inspect", "3+4", "--pretrain_steps", "1", "--max_new_tokens", "1"])
    assert "base model" in capsys.readouterr().out


BAD = [
    (["--inspect", "3x7"], "--inspect", "3*7+4-8"),
    (["--inspect", "3*7", "--completion", "hello"], "--completion", "tokens"),
    (["--inspect", "3*7", "--checkpoint", "nowhere"], "--checkpoint", "student.pt"),
    (["--inspect", "3*7", "--context", "none"], "--context", "any other"),
    (["--inspect", "3*7", "--init", "nowhere"], "--inspect", "without --init"),
    (["--inspect", "3*7", "--compare", "base", "sdpo"], "--compare", "one of them"),
    (["--inspect", "3*7", "--out_dir", "file"], "--out_dir", "a folder"),
    (["--completion", "answer 7"], "--completion", "with --inspect"),
    (["--checkpoint", "nowhere"], "--checkpoint", "with --inspect"),
]


@pytest.mark.parametrize("arguments, named, allowed", BAD, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, named, allowed, capsys, tmp_path, monkeypatch
):
    """Catches a traceback, a silently ignored flag, or minutes of work before the refusal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"error: {named}: " in error and allowed in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
