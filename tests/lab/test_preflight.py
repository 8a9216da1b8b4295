"""Laws of the preflight: planted faults are named, prompts are compared, nothing is promised."""

import dataclasses
import json
import re
from types import SimpleNamespace

import pytest
import torch
from tiny import build_gpt
from torch import Tensor

import minisd
import toy_tasks
from lab import (
    benchmark,
    forecast,
    hf,
    lints,
    memory,
    preflight,
    preflight_law,
    preflight_page,
    preflight_subject,
    preflight_table,
)
from lab.fixes.row import Fix, Recipe
from lab.flags import run_main
from lab.lints import LOSS_LINTS, PROMPT_LINTS, Loss, Shown
from minisd import METHODS, Batch, Completions, Method, Prompts, Row, Sizes
from toy_tasks import Toy

# 1. Losses with a fault ---------------------------------------------------------------------------

B, T, V = 4, 6, 7


def some_logits(seed: int) -> Tensor:
    return 2 * torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed))


def loss_of(
    method: Method, *, student: Tensor | None = None, teacher: Tensor | None = None, warm: float = 1
) -> Loss:
    """A loss on given logits of four completions of uneven length, sampled at a temperature."""
    s, t = some_logits(0) if student is None else student, teacher
    t = some_logits(1) if t is None else t
    mask = torch.arange(T) < torch.tensor([2, 6, 3, 5])[:, None]
    ids = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))
    old = minisd.token_log_probs(s / warm, ids) * mask
    shown = {"none": Prompts(ids[:, :1], ids[:, 0] * 0)}
    batch = Batch([], shown, Completions(ids, mask, old), torch.tensor([1.0, 0, 1, 0]),
                  Sizes(2, 2, max_new_tokens=T))
    for name in ("distillation", "policy"):
        batch.weights[name], batch.totals[name] = minisd.REDUCTIONS[method.reduction](
            mask.float(), T)
    batch.weights["advantages"] = (batch.rewards - 0.5)[:, None].expand(B, T)
    return Loss(method, batch, s, t, (s, t))


def found(lint: str, loss: Loss) -> tuple[bool | None, str]:
    return LOSS_LINTS[lint](loss)


def failed(loss: Loss) -> set[str]:
    return {what for what, passed, _ in lints.findings(LOSS_LINTS, loss) if passed is False}


SOUND = [{}, {"divergence": "forward_kl"}, {"divergence": "jensen_shannon"},
         {"divergence": "top_k_reverse_kl", "top_k": 3}, {"credit": "sequence"},
         {"credit": "sampled"}, {"reduction": "sequence_mean"}, {"reduction": "constant"},
         {"reward_weight": 1.0}, {"reward_weight": 0.5}]


@pytest.mark.parametrize("changes", SOUND, ids=str)
def test_a_sound_loss_fails_no_lint(changes):
    """Catches a lint that cries wolf: at surrogates, at samples' noise, at kinks of a support."""
    assert failed(loss_of(Method(teacher="live", **changes))) == set()


def test_the_published_clip_is_no_divergence_and_reversed_where_it_clips():
    """Catches a lint that looks at the sum over tokens alone, which still points to the teacher."""
    method = dataclasses.replace(METHODS["opsd"], divergence="clipped_forward_kl")
    loss = loss_of(method)
    assert failed(loss) == {"the value is a divergence", "it points to the teacher"}
    assert "below 0 at" in found("the value is a divergence", loss)[1]
    share = re.search(r"at (\d+)% of the tokens", found("it points to the teacher", loss)[1])
    assert 0 < int(share[1]) < 100


def zero(s: Tensor, t: Tensor, m: Method) -> Tensor:
    return minisd.top_k_reverse_kl(s, t, 1, tail="renormalised")


FAULTS = {  # name: table, row, lint that must fail, words that must be said
    "one renormalised token": ("DIVERGENCES", zero, "there is a gradient", "zero"),
    "KL to oneself": ("DIVERGENCES", lambda s, t, m: minisd.reverse_kl(s, s.detach()),
                      "there is a gradient", "zero"),
    "the wrong sign": ("DIVERGENCES", lambda s, t, m: -minisd.reverse_kl(s, t),
                       "it points to the teacher", "100%"),
    "a part without gradient": (
        "DIVERGENCES", lambda s, t, m: minisd.forward_kl(s, t) + minisd.reverse_kl(s, t).detach(),
        "nothing is detached", "a part is detached"),
    "an entropy that heeds nobody": ("DIVERGENCES", lambda s, t, m: -minisd.entropy(s),
                                     "the gradient heeds the teacher", "whatever the teacher says"),
    "centred over a micro-batch": ("CREDITS", lambda x, m: x["divergence"] - x["divergence"].mean(),
                                   "the value is a divergence", "below 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name, monkeypatch):
    """Catches each fault that passes, though the loss falls as in any run."""
    table, row, lint, words = FAULTS[name]
    monkeypatch.setitem(getattr(minisd, table), "planted", row)
    field = {"DIVERGENCES": "divergence", "CREDITS": "credit"}[table]
    passed, reading = found(lint, loss_of(Method(teacher="live", **{field: "planted"})))
    assert passed is False and words in reading


def test_a_sum_over_an_uneven_batch_is_no_mean(monkeypatch):
    """Catches a loss that doubles with the batch, and so the learning rate."""
    row = lambda counts, limit: (counts, counts.new_tensor(1.0))  # noqa: E731
    monkeypatch.setitem(minisd.REDUCTIONS, "sum", row)
    loss = loss_of(Method(teacher="live", reduction="sum"))
    assert failed(loss) == {"the loss is a mean"}
    assert "twice the batch is 2.00 times" in found("the loss is a mean", loss)[1]


def test_a_teacher_that_is_the_student_teaches_nothing():
    """Catches a context that never reaches the prompt: the loss is 0 and looks perfect."""
    loss = loss_of(Method(teacher="live"), teacher=some_logits(0))
    assert found("there is a gradient", loss) == (
        False, "zero: teacher and student read the same, so they are one; nothing is learnt")


def test_a_batch_of_which_nothing_counts_is_named_and_no_traceback():
    """Catches the largest value of no tokens: no completion has its context, as siblings may be."""
    loss = loss_of(METHODS["sdpo"])
    loss.batch.weights["distillation"] = loss.batch.weights["distillation"] * 0
    passed = {what: p for what, p, _ in lints.findings(LOSS_LINTS, loss)}
    assert passed["there is a gradient"] is False and "the value is a divergence" not in passed


def test_old_log_probabilities_from_another_temperature_are_told():
    """Catches importance ratios against the policy that sampled colder."""
    method = Method(teacher="live", reward_weight=0.5)
    passed, words = found("old log-probabilities fit", loss_of(method, warm=0.7))
    assert passed is False and "at temperature 0.7" in words
    assert found("old log-probabilities fit", loss_of(method))[0]


def subject(method: Method, **model) -> preflight.Subject:
    """A tiny untrained student in the toy."""
    student = build_gpt(dtype=torch.float32, **{"vocab_size": len(toy_tasks.VOCABULARY), **model})
    asked = preflight_subject.Preflight(
        problems=8, fix_problems=0, batch_size=4, group_size=2, max_new_tokens=8, train_problems=4)
    teacher = preflight_subject.AtStart(method, student)
    return preflight.Subject(asked, method, Toy().make_task(4, 0), teacher, hf.Checkpoint())


def test_dropout_that_is_left_on_is_seen_in_a_second_reading():
    """Catches a teacher that is another one at every look."""
    looked_at = subject(METHODS["sdpo"])
    by_name = {row["what"]: row for row in preflight.loss_lint(looked_at)}
    assert by_name["no dropout"]["passed"]
    looked_at.student.norm.register_forward_hook(
        lambda module, inputs, x: torch.nn.functional.dropout(x, 0.1))
    row = {row["what"]: row for row in preflight.loss_lint(looked_at)}["no dropout"]
    assert row["passed"] is False and "dropout" in row["reading"]


def test_a_lint_of_ones_own_is_one_function_and_one_row(monkeypatch):
    """Catches a table that is not what is read; the lint is that of lab/docs/preflight.md."""

    def is_bounded(loss: Loss) -> tuple[bool, str]:
        gap = (loss.log_probs[1] - loss.log_probs[0]).abs().max().item()
        return gap < 30, f"log q - log p is at most {gap:.0f} nats"

    monkeypatch.setitem(LOSS_LINTS, "a ratio that floats can hold", is_bounded)
    assert "nats" in lints.findings(LOSS_LINTS, loss_of(Method(teacher="live")))[-1][2]
    far = some_logits(1) * torch.tensor([20.0] * V)
    assert failed(loss_of(Method(teacher="live"), teacher=far)) == {"a ratio that floats can hold"}


# 2. Prompts ---------------------------------------------------------------------------------------

BOS, END = 1, 2


HINTED = ("hint", [3, 4], [3, 9, 4])


def shown(*, pairs=(HINTED,), template="{{ x }}", rows=(), **arguments) -> Shown:
    """Prompts of a stub of a chat tokenizer that begins each text with BOS."""
    tokenizer = SimpleNamespace(
        bos_token_id=BOS, decode=lambda ids: f"<{ids[0]}>",
        encode=lambda text, add_special_tokens: [BOS, 5])
    sides = {"student": {}, "teacher": {}} | arguments
    chat = SimpleNamespace(tokenizer=tokenizer, template=template, arguments=sides)
    task = SimpleNamespace(chat=chat, end_ids=(END,))
    return Shown(Method(teacher="live"), task, list(pairs), list(rows), limit=4, window=8)


def prompt(ids: list[int], hint: list[int]) -> tuple:
    return ("hint", ids, [*ids, *hint])


@pytest.mark.parametrize(("what", "look", "passed"), [
    ("one beginning of a text", shown(pairs=[prompt([BOS, 3], [4])]), True),
    ("one beginning of a text", shown(pairs=[prompt([BOS, BOS, 3], [4])]), False),
    ("one beginning of a text", shown(pairs=[prompt([3], [4])]), False),
    ("no end token in a context", shown(pairs=[prompt([3, END], [4])]), True),
    ("no end token in a context", shown(pairs=[prompt([3], [END, 4])]), False),
    ("the switch for thinking", shown(), True),
    ("the switch for thinking", shown(template="{% if enable_thinking %}"), None),
    ("the switch for thinking", shown(template="{% if enable_thinking %}",
                                      teacher={"enable_thinking": True}), False),
    ("no truncation", shown(pairs=[prompt([3], [4])]), True),
    ("no truncation", shown(pairs=[prompt([3, 4, 5], [6, 7])]), False),
    ("completions end by themselves", shown(rows=[Row(0, {}, [3, 3, 3, END])]), True),
    ("completions end by themselves", shown(rows=[Row(0, {}, [3, 3, 3, 3])]), False),
])
def test_what_is_wrong_with_a_prompt_is_named(what, look, passed):
    """Catches a doubled or missing BOS, a turn that ends early, a switch, cuts."""
    assert PROMPT_LINTS[what](look)[0] is passed


def test_prompts_stand_side_by_side_and_no_colour_is_the_only_sign():
    """Catches a hint that is told by its colour alone, columns that colours shift, lost tokens."""
    student = ["How", " many", "?\n", "\N{EURO SIGN}", "Answer"]
    teacher = ["How", " many", "?\n", "Hint: ", "7", "\N{EURO SIGN}", "Answer"]
    plain = lints.side_by_side(student, teacher, width=60)
    painted = lints.side_by_side(student, teacher, width=60, colour=True)
    assert [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in painted] == plain
    assert any("\x1b[" in line for line in painted)
    hinted = [line for line in plain if " + " in line]
    assert len(hinted) == 1 and hinted[0].endswith("+ |Hint: |7") and hinted[0].startswith(" " * 28)
    assert all(line.isascii() and len(line) <= 60 for line in plain)
    for token in ("|How| many|?\\n", "|\\u20ac|Answer"):
        assert sum(token in line for line in plain) == 1 and any(line.count(token) == 2
                                                                  for line in plain)
    other = lints.side_by_side(["a", "b"], ["a", "c"], width=30)
    assert other[1].split() == ["|b", "!", "|c"]


def test_colour_is_for_somebody_who_wants_it(monkeypatch):
    """Catches escape codes in a file, and NO_COLOR that is not heeded."""
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert preflight_page.has_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not preflight_page.has_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: False))
    assert not preflight_page.has_colour()


# 3. Signals and forecast --------------------------------------------------------------------------


def test_a_false_equation_is_the_first_error_of_a_text():
    """Catches a cut before the result, and a right equation that is taken for wrong."""
    task = SimpleNamespace(decode=lambda ids: "".join(chr(i) for i in ids if i), end_ids=(0,))

    def cut(text: str) -> str | None:
        row = Row("", {}, [*map(ord, text), 0], text=text)
        n = preflight.error_token(task, row)
        return None if n is None else text[:n]

    assert cut("3 + 4 = 7. 7 - 2 = 4. So 4.") == "3 + 4 = 7. 7 - 2 = 4"
    assert cut("3 + 4 = 7. 2 * 3 = 6") is None


def test_the_law_sees_a_target_as_a_share_of_the_hint():
    """Catches a trust region that counts twice, and a law for rewards or for other weights."""
    hint = preflight_law.hint_of
    assert hint(METHODS["sdpo"]) == ("solution", 1.0, 0.0)
    region = Method(teacher="trust_region", teacher_update_rate=0.25)
    assert hint(region) == ("solution", 1.0, 0.0)
    half = Method(target=((0.5, "frozen", "answer"), (0.5, "live", "none")))
    assert hint(half) == ("answer", 0.5, 0.5)
    assert hint(METHODS["grpo"]) is hint(METHODS["opd"]) is hint(METHODS["sdpo_grpo"]) is None


def test_half_a_hint_lies_between_the_student_and_the_hinted_teacher(monkeypatch):
    """Catches weights that are swapped or lost on the way into the law."""
    monkeypatch.setattr(forecast, "LAWS", dict(forecast.LAWS))
    classes, s, t = torch.arange(V), some_logits(0)[0], some_logits(1)[0]
    by = {a: forecast.LAWS[preflight_law.law_of(("answer", a, 1 - a))](s, t, classes)
          for a in (1.0, 0.5, 0.0)}
    torch.testing.assert_close(by[1.0], t.log_softmax(-1))
    torch.testing.assert_close(by[0.0], s.log_softmax(-1))
    mixed = (s.log_softmax(-1) + t.log_softmax(-1)) / 2
    torch.testing.assert_close(by[0.5], mixed.log_softmax(-1))


def test_the_pool_is_forecast_on_problems_that_were_looked_at_before():
    """Catches other problems than the pool's, whose completions cost minutes to write again."""
    looked_at = subject(METHODS["sdpo"])
    x = preflight.on_pool(looked_at, ("solution", 1.0, 0.0))
    right = torch.tensor([row.reward for row in looked_at.rows])
    assert torch.equal(x[forecast.NOW].float(), right)
    assert len(x[forecast.HINTED]) == len(x["law_accuracy_frac"]) == len(right)
    looked_at.rows = looked_at.rows[:1]
    assert len(preflight.on_pool(looked_at, ("solution", 1.0, 0.0))[forecast.NOW]) == 4


def test_the_verdict_keeps_within_the_interval_and_a_law_that_failed_gives_none():
    """Catches a promise from noise, and one that real runs have broken."""
    verdict = preflight_law.verdict
    assert verdict(0.2, 0.1) == "likely to help"
    assert verdict(-0.2, 0.1) == "likely to hurt fresh problems"
    assert verdict(-0.1, 0.1) == "cannot tell"
    assert verdict(0.2, 0.1, failed=True).startswith("none")


def test_the_record_of_the_law_is_what_was_published(tmp_path):
    """Catches an error that is copied by hand, and real runs that are passed over."""
    toy = preflight_law.track_record(False)
    assert toy["toy"]["runs"] == 72 and toy["toy"]["moved"] == 60 and not toy["failed"]
    assert toy["toy"]["signs_frac"] == pytest.approx(0.97, abs=0.005)
    source = preflight_law.RESULTS / "forecasts.json"
    (tmp_path / "forecasts.json").write_text(source.read_text())
    assert preflight_law.track_record(True, tmp_path) == toy
    point = {"now_fresh": 0.4, "predicted_fresh": 0.8, "after_fresh": 0.2, "before_fresh": 0.5}
    points = {"points": [point] * 4 + [{"predicted_fresh": 0.5}]}
    (tmp_path / "preflight.json").write_text(json.dumps(points))
    real = preflight_law.track_record(True, tmp_path)
    assert real["failed"] and real["error_frac"] == pytest.approx(0.7)
    assert preflight_law.track_record(False, tmp_path) == toy


# 4. The command -----------------------------------------------------------------------------------

SMALL = [
    "--problems", "8", "--fix_problems", "0", "--batch_size", "8", "--group_size", "2",
    "--train_problems", "4", "--max_new_tokens", "12", "--pretrain_steps", "2", "--threads", "1",
    "--device", "cpu"]


@pytest.mark.parametrize("method", ["sdpo", "seq_kd", "grpo"])
def test_a_page_is_printed_and_nothing_is_trained(method, tmp_path, cache_dir, capsys):
    """Catches a part that fails for a method without samples, a teacher or a forecast."""
    places = ["--out_dir", str(tmp_path), "--cache_dir", cache_dir]
    preflight.main(["--method", method, *SMALL, *places])
    said = capsys.readouterr().out
    assert [f"\n{n} " in said for n in range(1, 6)] == [True] * 5
    assert said.isascii() and max(map(len, said.splitlines()[2:-1])) <= 100
    x = json.loads((tmp_path / "preflight.json").read_text())
    assert {"loss", "prompts", "signals", "forecast", "cost"} <= x.keys()
    assert (tmp_path / "preflight.png").stat().st_size > 10_000
    weighs = {m["step_s"] > 0 for m in x["cost"]["by_dtype"].values()}
    assert weighs == {True} and 0 <= x["signals"]["accuracy_frac"] <= 1
    if method == "grpo":
        assert x["forecast"]["verdict"] == "cannot tell" and "horizon" not in x["signals"]
    else:
        shares = x["signals"]["information_by_kind_frac"].values()
        assert sum(shares) == pytest.approx(1, abs=1e-4)


def test_a_checkpoint_is_looked_at_as_well(tmp_path, capsys, monkeypatch):
    """Catches what text has and the toy has not: a chat, classes of tokens, a real horizon.

    Also a cost without the blocks that are computed twice.
    """
    twice = []
    monkeypatch.setattr(preflight_subject.distributed, "checkpoint_blocks", twice.append)
    pytest.importorskip("transformers")
    from test_real_checkpoints import make_checkpoint

    init, data = make_checkpoint(tmp_path / "tiny")
    at = SMALL.index("--pretrain_steps")
    preflight.main(["--init", init, "--data", data, "--out_dir", str(tmp_path / "out"),
                    "--activation_checkpointing", *SMALL[:at], *SMALL[at + 2 :]])
    assert len(twice) == 1
    said = capsys.readouterr().out
    x = json.loads((tmp_path / "out/preflight.json").read_text())
    assert x["forecast"]["hypothesis"] and "a hypothesis" in said.lower()
    assert x["prompts"]["context"] == "solution" and "+ |" in said
    assert x["cost"]["dtype"] in ("float32", "bfloat16")
    checks = {row["what"]: row["passed"] for row in x["prompts"]["lints"]}
    assert checks["completions end by themselves"] is False  # it has learned nothing
    assert checks["no privileged text in the student's prompt"]


def test_the_weights_are_the_same_after_the_cost_was_measured():
    """Catches an optimiser that takes its step, which every later part would read."""
    looked_at = subject(METHODS["sdpo"])
    before = [p.clone() for p in looked_at.student.parameters()]
    x = preflight.cost(looked_at)
    assert all(map(torch.equal, before, looked_at.student.parameters()))
    weights = sum(p.numel() for p in before)
    assert x["weights_bytes"] == 4 * weights * 5  # one copy, of the EMA teacher


@pytest.mark.parametrize("words", [
    "--method nope", "--problems 1", "--batch_size 6 --group_size 4", "--init somewhere",
    "--divergence top_k_reverse_kl --top_k 1 --top_k_tail renormalised",
    "--context none", "--method rlvr_teacher", "--compile", "--shard",
])
def test_bad_input_is_one_line(words, tmp_path, monkeypatch, capsys):
    """Catches a traceback, and files that are written before the input is known to be good."""
    folder = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["", *words.split(), "--out_dir", str(folder)])
    with pytest.raises(SystemExit) as stop:
        run_main("python -m lab.preflight", preflight.main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "--" in said and "allowed" in said
    assert not (folder / "preflight.json").exists()


# 5. The table -------------------------------------------------------------------------------------


def test_data_of_one_manner_has_the_same_problems_and_right_solutions(tmp_path):
    """Catches a comparison on other problems, an event that is misread, and a mixed manner."""
    files = preflight_table.write_data(tmp_path)
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()]
            for name, path in files.items()}
    for name, checks in (("sure", 0), ("careful", 1)):
        for row, mixed in zip(rows[name], rows["mixed"], strict=True):
            assert row | {"solution": mixed["solution"]} == mixed
            assert row["solution"].count("check") == checks
            assert re.findall(r"\d+", row["solution"])[-1] == row["answer"]
    made = {row["solution"] for name in ("sure", "careful") for row in rows[name]}
    kept = [row["solution"] in made for row in rows["mixed"]]
    assert sum(kept) > len(kept) / 2  # all but for the words of doubt


def point(**more) -> dict:
    variants = dict.fromkeys(preflight_table.VARIANTS, 0.3)
    return dataclasses.asdict(preflight_table.SETTINGS[0]) | {
        "now_fresh": 0.5, "hinted_fresh": 0.9, "predicted_fresh": 0.3, "half_width_frac": 0.1,
        "verdict": "likely to hurt fresh problems", "variants": variants} | more


def test_the_report_says_what_was_not_run_and_what_came_true(tmp_path):
    """Catches a table that looks finished, and a verdict that is counted although it failed."""
    assert "None of the runs has been made yet" in preflight_table.report([point()])
    run = {"before_fresh": 0.6, "change_se_frac": 0.03, "greedy_before_fresh": 0.7,
           "greedy_after_fresh": 0.1}
    rows = [point(after_fresh=0.3, **run), point(after_fresh=1.0, **run)]
    said = preflight_table.report(rows)
    assert "Verdicts other than `cannot tell`: 2, of which 1 came true." in said
    assert "| 0.30 (-0.20 +- 0.10) |" in said and "| 0.60 -> 0.30 | -0.30 +- 0.06 | 0.70" in said
    # A change of -.2 is predicted, once it is -.3 and once +.4; none is no sign.
    assert "| law, corrected | 0.430 | 50% of 2 |" in said
    assert "| nothing will change | 0.354 | 0% of 2 |" in said
    path = tmp_path / "preflight.json"
    preflight_table.save(path, {"a": rows[0]})
    assert preflight_table.known_points(path) == {preflight_table.SETTINGS[0].name: rows[0]}
    older = point(before_fresh=0.6, after_fresh=0.3)  # predictions are kept, the rest is made anew
    path.write_text(json.dumps({"points": [older]}))
    assert preflight_table.known_points(path) == {preflight_table.SETTINGS[0].name: point()}
    path.write_text('{"points": [{"context": "solution"}]}')
    with pytest.raises(ValueError, match=r"--out_dir.*other predictions"):
        preflight_table.known_points(path)


def test_the_arenas_targets_are_forecast_beside_the_one_asked_for(monkeypatch):
    """Catches a row of the arena that is read with another context, twice, or unpaired."""
    told = {("solution",): 0.25, ("none", "solution", "wrong"): 0.75}
    asked = []

    def transplanted(task, model, recipe, count, sizes, classes, law, seed):
        kinds = tuple(dict.fromkeys(c for _, _, c in recipe.terms))
        if kinds not in told:
            raise KeyError("a context of the arena's task")
        asked.append((kinds, recipe.combine, recipe.strength, seed))
        return [told[kinds]] * count

    monkeypatch.setattr(preflight, "transplanted", transplanted)
    rows = preflight.arena_fixes(subject(METHODS["sdpo"]), ("solution", 1.0, 0.0), 4)
    assert {(r["difference_frac"], r["fix"]) for r in rows} == {
        (0.5, "the arena's ogls_sd, contrast")}
    assert len(asked) == len(set(asked)) == 2 and len({seed for *_, seed in asked}) == 1
    assert preflight.arena_fixes(subject(METHODS["sdft"]), ("sibling", 1.0, 0.0), 4) == []


def test_an_arena_target_that_is_the_asked_one_leaves_the_forecast(monkeypatch):
    """Catches a forecast whose two terms or whose random numbers are not those of the row."""
    same = Recipe(target=((0.5, "frozen", "solution"), (0.5, "live", "none")))
    monkeypatch.setitem(preflight.FIXES, "same", Fix("T", "", same))
    monkeypatch.setattr(
        toy_tasks.ToyTask, "reward", lambda self, text, example: float(len(text) % 2))
    rows = preflight.arena_fixes(subject(METHODS["sdpo"]), ("solution", 0.5, 0.5), 16)
    mine = next(row for row in rows if row["fix"] == "the arena's same")
    assert mine["difference_frac"] == 0.0 and 0 < mine["predicted_fresh_accuracy_frac"] < 1
    assert any(row["difference_frac"] for row in rows)


# 6. Memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not memory.HAS_GLIBC, reason="it keeps nothing elsewhere")
def test_large_pieces_are_handed_back_at_once():
    """Catches a library that learns to keep pieces of the size of logits."""
    told = benchmark.child("""
from pathlib import Path
from lab.memory import LARGE, hand_back_at_once

def held_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

b"x" * (30 * 2**20)  # from now on the C library would keep pieces of that size
hand_back_at_once()
pieces = [b"x" * 6_000_000 for _ in range(30)]
last = b"x" * 1000  # behind them
before = held_mib()
del pieces[:-1]
print(before - held_mib(), LARGE)
""")
    given_back, large = map(int, told.split())
    assert given_back > 160 and large < 64 * 49_152 * 4  # logits of --chunk_tokens 64 at 135M


@pytest.mark.skipif(not memory.HAS_GLIBC, reason="it keeps nothing elsewhere")
def test_freed_memory_is_kept_until_it_is_handed_back():
    """Catches a library that is not told, and a peak that is measured over what was freed."""
    told = benchmark.child("""
from pathlib import Path
from lab.memory import hand_back, keep_what_is_freed

def held_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

keep_what_is_freed()
before = held_mib()
pieces = [b"x" * 2**26 for _ in range(3)]  # 64 MiB each, above the limit of its heap
del pieces
kept = held_mib() - before
hand_back()
print(kept, held_mib() - before)
""")
    kept, left = map(int, told.split())
    assert kept > 180 and left < 20
