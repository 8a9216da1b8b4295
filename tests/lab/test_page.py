"""Laws of the page to teach from: what a run keeps for it, its numbers, and itself in a browser."""

import json
from pathlib import Path
from types import SimpleNamespace

import browser
import pytest
import torch
from tiny import plain_log_probs

import minisd
import toy_tasks
import train_gpt
from lab import forecast, moments, page, report
from lab.base import base_model
from lab.evaluation import evaluate_all
from lab.flags import run_main
from lab.forecast import TOY_CLASSES, token_classes
from lab.report import READINGS, Log
from minisd import GPT, METHODS, Batch, Completions, GPTConfig, Method, Prompts, Sizes, Teacher
from toy_tasks import Toy

QUICK = {
    "world": "operators=+,max_operations=3,persona_rate=0.3", "train_problems": 16, "steps": 4,
    "pretrain_steps": 2, "batch_size": 8, "group_size": 4, "max_new_tokens": 12, "threads": 1,
    "eval_problems": 6, "eval_every": 2, "page_problems": 4, "learning_rate": 0.01,
}
SAMPLES = 16  # of a forecast


def untrained(seed: int) -> GPT:
    """A model that has learned nothing, far from uniform, in numbers that hardly round."""
    shape = GPTConfig(vocab_size=len(toy_tasks.VOCABULARY), head_std=0.5)
    return GPT(shape, torch.Generator().manual_seed(seed)).double()


def looked_at(method: Method, count: int = 4, rules: str = "") -> tuple[Teacher, list[dict]]:
    """A teacher, and the moments of an evaluation of its student."""
    external = any(weights == "external" for _, weights, _ in method.terms)
    teacher = Teacher(method, untrained(0), external=untrained(1) if external else None)
    sizes, task = Sizes(max_new_tokens=9), Toy(rules=rules).make_task(16, 0)
    results = evaluate_all(task, teacher.student, teacher, count=8, seed=0, sizes=sizes)
    run = SimpleNamespace(page_problems=count, eval_every=25, steps=50, batch_size=128)
    results = moments.kept(run, results, task, teacher, sizes)
    return teacher, [m for e in results.values() for m in e.moments]


# What an evaluation keeps -------------------------------------------------------------------------


def test_the_numbers_are_those_of_score():
    """Catches targets shifted by one, swapped models or directions, a hint of another row."""
    teacher, found = looked_at(Method(teacher="external"))
    assert [m["split"] for m in found] == ["train"] * 2 + ["fresh"] * 2
    student, other = teacher.student, teacher.copies["external"]
    ids = [[toy_tasks.TOKEN_ID[word] for word in m["tokens"]] for m in found]
    written, N = Completions.of(ids, toy_tasks.PAD_ID), sum(map(len, ids))
    for kind in ("solution", "none", "feedback", "wrong", "rule"):
        hints = {"none": [""] * 4, "solution": [m["teachers"][kind]["sees"] for m in found]}
        shown = {name: Prompts.of([toy_tasks.encode(hint + m["prompt"]) for hint, m in
                                   zip(texts, found)], 0) for name, texts in hints.items()}
        batch = Batch([], shown, written, torch.zeros(len(ids)), Sizes())
        with torch.no_grad():
            x = minisd.score(
                teacher.method, student, [(1.0, other, shown["solution"])], batch, READINGS)
        for name, values in (
            ("student_log_probs", [m["student"]["p"] for m in found]),
            ("teacher_log_probs", [m["teachers"][kind]["p"] for m in found]),
            ("reverse_kl", [m["teachers"][kind]["kl"] for m in found]),
        ):
            expected = x[name][written.mask]
            expected = expected.exp() if name.endswith("log_probs") else expected
            flat = torch.tensor([v for row in values for v in row], dtype=expected.dtype)
            assert flat.shape == (N,)
            torch.testing.assert_close(flat, expected, atol=1e-6, rtol=0)


def test_the_likeliest_tokens_and_the_two_parts_of_the_divergence():
    """Catches a top five of another position, and manner that is counted as content."""
    teacher, found = looked_at(Method(teacher="external"))
    m, digits = found[0], [toy_tasks.TOKEN_ID[d] for d in "0123456789"]
    ids = [toy_tasks.TOKEN_ID[word] for word in m["tokens"]]
    hinted = toy_tasks.encode(m["teachers"]["solution"]["sees"] + m["prompt"])
    with torch.no_grad():
        p = plain_log_probs(teacher.student, toy_tasks.encode(m["prompt"]), ids).exp()
        q = plain_log_probs(teacher.copies["external"], hinted, ids).exp()
    for probs, top in ((p, m["student"]["top"]), (q, m["teachers"]["solution"]["top"])):
        best = probs.topk(5)
        assert [[w for w, _ in row] for row in top] == [
            [toy_tasks.VOCABULARY[i] for i in row] for row in best.indices.tolist()]
        shown = torch.tensor([[x for _, x in row] for row in top], dtype=torch.float64)
        torch.testing.assert_close(shown, best.values, atol=1e-6, rtol=0)
    signs = [toy_tasks.TOKEN_ID[sign] for sign in "+-*"]
    content = 0.0
    for kind in (digits, signs):  # every other token is alone in its class
        P, Q = (x[:, kind] / x[:, kind].sum(1, keepdim=True) for x in (p, q))
        content = content + p[:, kind].sum(1) * (P * (P / Q).log()).sum(1)
    shown = torch.tensor(m["teachers"]["solution"]["content"], dtype=torch.float64)
    torch.testing.assert_close(shown, content, atol=1e-6, rtol=0)


def test_every_context_of_the_task_can_be_switched_to():
    """Catches a hint that changes between evaluations, and a teacher that loses a term."""
    _, found = looked_at(METHODS["sdpo"], rules="")
    assert found == looked_at(METHODS["sdpo"])[1]
    for m in found:
        assert m["taught"] == "solution" == next(iter(m["teachers"]))
        assert m["teachers"].keys() == toy_tasks.CONTEXTS.keys()
        sees = {kind: x["sees"] for kind, x in m["teachers"].items()}
        assert sees["none"] == "" and sees["answer"] == f"answer {m['answer']} | "
        given = toy_tasks.final_answer(m["text"])
        assert sees["feedback"].startswith(f"tried:{'' if given is None else given} ")
        assert sees["rule"] == "rule +3 | " and "peer" in sees["sibling"]
    two = Method(target=((0.5, "frozen", "answer"), (0.5, "live", "solution")))
    _, (m, *_) = looked_at(two, count=1)
    assert m["taught"] == "answer and solution" in m["teachers"]
    assert m["teachers"]["answer and solution"]["sees"].count(" | ") == 2
    contrast = Method(target=((1.5, "frozen", "solution"), (-0.5, "live", "none")))
    assert looked_at(contrast, count=1)[1][0]["taught"] == "solution"


def test_long_completions_are_cut_and_problems_differ(monkeypatch):
    """Catches a page of one problem eight times, and a cut that nobody is told of."""
    monkeypatch.setattr(moments, "TOKENS", 5)
    _, found = looked_at(METHODS["sdpo"], count=12)
    assert len({(m["split"], m["prompt"]) for m in found}) == len(found) == 12
    assert all(len(m["tokens"]) <= 5 for m in found)
    assert any(m["tokens_left_out"] for m in found)
    for m in found:
        assert len(m["student"]["p"]) == len(m["teachers"]["wrong"]["kl"]) == len(m["tokens"])


def test_hints_that_would_take_too_long_are_left_out():
    """Catches a run of few steps that spends its time on its page, and a page without its hint."""
    teacher = Teacher(METHODS["sdpo"], untrained(0))
    task, sizes = Toy().make_task(16, 0), Sizes(max_new_tokens=9)
    for steps, passes in ((1, 2), (10, 5), (1000, 10)):
        results = evaluate_all(task, teacher.student, teacher, count=2, seed=0, sizes=sizes)
        run = SimpleNamespace(page_problems=2, eval_every=25, steps=steps, batch_size=30)
        results = moments.kept(run, results, task, teacher, sizes)
        assert sum(len(e.texts) for e in results.values()) == 10
        for m in (m for e in results.values() for m in e.moments):
            assert m["taught"] == next(iter(m["teachers"])) == "solution"
            assert len(m["teachers"]) == passes - 1
            assert m["hints_left_out"] == len(toy_tasks.CONTEXTS) - len(m["teachers"])


def test_what_a_killed_process_kept_is_replaced(tmp_path):
    """Catches an evaluation that stands in the file twice after a resumed run."""
    for step in (0, 2, 4, 2):
        Log(tmp_path, []).keep({"step": step, "moments": [step]})
    lines = (tmp_path / "page.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2]
    Log(None, []).keep({"step": 0})


# The page from files ------------------------------------------------------------------------------


def trained(folder: Path, cache_dir: str, **changes) -> Path:
    """The folder of a run of a moment."""
    given = QUICK | changes | {"out_dir": folder, "cache_dir": cache_dir}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", lambda path, *_: path.touch())
        patch.setattr(moments, "SHARE", 10.0)  # a run of a moment has time for one hint
        train_gpt.main([part for name, v in given.items() for part in (f"--{name}", str(v))])
    return folder


def made(out_dir: Path, *folders) -> Path:
    """The page of some runs, with a forecast of few samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "SAMPLES", SAMPLES)
        page.main([*map(str, folders), "--out_dir", str(out_dir)])
    return out_dir / "page.html"


def data_of(path: Path) -> dict:
    text = path.read_text().partition('id="data">')[2].partition("</script>")[0]
    return json.loads(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache_dir) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: trained(folder / name, cache_dir, method=name) for name in ("sdpo", "grpo")}


HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">", "<!-- <script>", "&lt;b&gt;", "{{data}}",
)


def hostile(folder: Path, run: Path) -> Path:
    """The page of a run in which every text is one that no model should write."""
    folder.mkdir()
    for name in ("config.json", "summary.json", "metrics.jsonl"):
        text = (run / name).read_text().replace('"arithmetic"', '"another"')
        (folder / name).write_text(text.replace('"sdpo"', json.dumps(HOSTILE[1])))
    rows = [json.loads(line) for line in (run / "page.jsonl").read_text().splitlines()]
    for m in (m for row in rows for m in row["moments"]):
        n = len(m["tokens"])
        m["tokens"] = [HOSTILE[i % len(HOSTILE)] for i in range(n)]
        m["prompt"], m["answer"] = f"{HOSTILE[0]} = ", HOSTILE[1]
        for who in (m["student"], *m["teachers"].values()):
            who |= {"sees": HOSTILE[2], "kl": [4.0] * n}
            who["top"] = [[[word, p] for word, (_, p) in zip(HOSTILE, x)] for x in who["top"]]
    (folder / "page.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"tokens": HOSTILE, "text": "", "right": False, "content": [True] * 5,
              "probs": [[0.5] * 4] * 5}] * 2
    law = {"hint": HOSTILE[2], "corrected": [0.5, 0.1], "transplant": [0.5, 0.1], "texts": texts}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "forecast_of", lambda run: law)
        return made(folder, folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, runs) -> dict[str, Path]:
    """A page of one run, one of three columns, and one that is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    return {"one": made(folder / "one", runs["sdpo"]),
            "three": made(folder / "three", "base", runs["sdpo"], runs["grpo"]),
            "hostile": hostile(folder / "hostile", runs["sdpo"])}


def test_the_page_has_what_the_run_has_kept(pages, runs):
    """Catches a number that is rounded, or one that stands at another token, step or problem."""
    data = data_of(pages["one"])
    (run,) = data["runs"]
    rows = [json.loads(x) for x in (runs["sdpo"] / "page.jsonl").read_text().splitlines()]
    assert run["steps"] == [row["step"] for row in rows] == [0, 2, 4] and not data["left_out"]
    for row, shown in zip(rows, run["moments"]):
        kept = page.in_order(row["moments"])
        for m, x, problem in zip(kept, shown, data["problems"], strict=True):
            assert problem == {name: m[name] for name in ("split", "prompt", "answer")}
            assert [data["words"][i] for i in x["tokens"]] == m["tokens"]
            for ours, theirs in ((m["student"], x["student"]), *(
                    (m["teachers"][kind], x["teachers"][kind]) for kind in m["teachers"])):
                pairs = [[[data["words"][t[i]], t[i + 1]] for i in range(0, len(t), 2)]
                         for t in theirs["top"]]
                assert theirs | {"top": pairs} == ours
    summary = json.loads((runs["sdpo"] / "summary.json").read_text())
    for split in ("train", "fresh"):
        ends = [row[split] for row in (run["curve"][0], run["curve"][-1])]
        assert ends == [summary[when][split]["accuracy_frac"] for when in ("before", "after")]


def test_nothing_is_kept_if_nothing_is_asked_for(tmp_path, cache_dir):
    """Catches a run that does the work all the same, and one whose numbers depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "moments_of", None)
        folder = trained(tmp_path / "run", cache_dir, page_problems=0)
    assert not (folder / "page.jsonl").exists()
    with pytest.raises(ValueError, match=r"page\.jsonl; allowed: a run with --page_problems above"):
        page.main([str(folder)])


def test_the_forecast_is_that_of_its_command(pages, runs, cache_dir, tmp_path, monkeypatch):
    """Catches a forecast of another model, seed or hint than that which is trained."""
    base, sdpo, grpo = (run["forecast"] for run in data_of(pages["three"])["runs"])
    assert base == {"why": ""} and "hint alone" in grpo["why"] and sdpo["hint"] == "solution"
    monkeypatch.setattr(page, "SAMPLES", SAMPLES)  # and rewards of a coin: it is never right
    monkeypatch.setattr(
        toy_tasks.ToyTask, "reward", lambda self, text, example: float(sum(map(ord, text)) % 2))
    ours = page.forecast_of(page.run_of(str(runs["sdpo"])))
    names = ("world", "train_problems", "pretrain_steps", "group_size", "max_new_tokens")
    given = {name: QUICK[name] for name in names} | {"eval_problems": SAMPLES}
    given |= {"cache_dir": cache_dir, "out_dir": tmp_path}
    forecast.main(["--corrected", *(f"--{name}={value}" for name, value in given.items())])
    for law, found in json.loads((tmp_path / "forecast.json").read_text())["laws"].items():
        said = [found[f"predicted_fresh_accuracy_{unit}"] for unit in ("frac", "se_frac")]
        assert list(ours[law]) == said and 0 < said[0] < 1


def test_a_text_of_the_forecast_shows_who_chose_what(pages, cache_dir):
    """Catches a choice that is ascribed to the other one, and a hint of another problem."""
    run = data_of(pages["three"])["runs"][1]
    model, _ = base_model(toy_tasks.parse_world(QUICK["world"]), 0, steps=2, cache_dir=cache_dir)
    fresh = [m for m in run["moments"][0] if m["split"] == "fresh"]
    assert len(fresh) == len(run["forecast"]["texts"]) == 2
    classes = token_classes(list(toy_tasks.VOCABULARY), TOY_CLASSES)
    for m, text in zip(fresh, run["forecast"]["texts"]):
        words = [word for word in text["tokens"] if word not in ("<pad>", "<end>")]
        assert "".join(words) == text["text"]
        ids, sees = [*map(toy_tasks.VOCABULARY.index, text["tokens"])], m["teachers"]["solution"]
        with torch.no_grad():
            p, q = (plain_log_probs(model, toy_tasks.encode(hint + m["prompt"]), ids).exp()
                    for hint in ("", sees["sees"]))
        for t, (token, probs) in enumerate(zip(ids, text["probs"])):
            same = classes == classes[token]
            (p_class, p_token), (q_class, q_token) = (
                (x[t, same].sum(), x[t, token]) for x in (p, q))
            expected = (q_class, p_class, p_token / p_class, q_token / q_class)
            assert probs == pytest.approx([x.item() for x in expected], rel=1e-3, abs=1e-5)
            assert text["content"][t] == (same.sum() > 1)


def test_the_first_wrong_value_is_marked(runs, monkeypatch):
    """Catches a mark at a glance that was checked, and one where a rule adds a step."""
    monkeypatch.setattr(page, "forecast_of", lambda run: {"why": ""})
    run_of = page.run_of
    for rules, wrong in (("", 7), ("3", None)):
        run = run_of(str(runs["sdpo"]))
        for m in (m for x in run["moments"] for m in x):
            m |= {"prompt": "3*7+4-8 = ", "text": "wait 3*7+4=2; 2-8=4; answer 4"}
        run["settings"]["toy"]["rules"] = rules
        monkeypatch.setattr(page, "run_of", lambda name, run=run: run)
        assert page.page_of(["run"])["runs"][0]["moments"][0][0].get("wrong") == wrong


def test_a_page_that_is_too_large_says_what_it_leaves_out(runs, monkeypatch):
    """Catches a file that cannot be mailed, and a silent cut."""
    monkeypatch.setattr(page, "forecast_of", lambda run: {"why": ""})
    whole, said = page.page_of([str(runs["sdpo"])]), []
    size = len(page.packed(whole))
    for share in (1.01, 0.7, 0.3, 0.08):
        fresh = page.page_of([str(runs["sdpo"])])
        text = page.fitted(fresh, int(share * size))
        assert len(text) <= share * size
        said.append(json.loads(text)["left_out"])
    assert said[0] == [] and [len(x) for x in said] == [0, 1, 3, 4]
    assert said[1] == ["hints that were not taught, between the first evaluation and the last"]
    assert "some of the problems" in said[-1] and fresh["runs"][0]["steps"] == [0, 4]
    two = page.page_of(["base", str(runs["sdpo"]), str(runs["sdpo"])])
    names = [[len(x) for x in run["moments"]] for run in json.loads(
        page.fitted(two, size // 10))["runs"]]
    assert names == [[len(two["problems"])], [len(two["problems"])] * 2]
    with pytest.raises(ValueError, match=r"allowed: 1000; try fewer runs"):
        page.fitted(page.page_of([str(runs["sdpo"])]), 1000)


BAD = [
    (["nowhere"], "folder: 'nowhere'", "a run's folder"),
    (["unfinished"], "folder: 'unfinished' has no summary.json", "finished"),
    (["damaged"], "folder: 'damaged' has damaged files", "a run's folder"),
    (["run", "other"], "folder: 'other' has other problems than 'run'", "one --seed"),
    (["base"], "folder: 'base'", "besides"),
    (["run", "--out_dir", "file"], "--out_dir: 'file'", "a new one"),
    ([], "the following arguments are required", "folder"),
]


@pytest.mark.parametrize("arguments, named, allowed", BAD, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, named, allowed, runs, tmp_path, monkeypatch, capsys
):
    """Catches a traceback, columns of different problems, and a page in place of a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "forecast_of", lambda run: {"why": ""})
    content = {p.name: p.read_text() for p in runs["sdpo"].glob("*.json*")}
    lines = content["page.jsonl"]
    for name in ("run", "unfinished", "damaged", "other"):
        (tmp_path / name).mkdir()
        changed = {"damaged": lines[:-100], "other": lines.replace('"answer": "', '"answer": "x')}
        for file, text in (content | {"page.jsonl": changed.get(name, lines)}).items():
            if (name, file) != ("unfinished", "summary.json"):
                (tmp_path / name / file).write_text(text)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("sys.argv", ["page", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_main("python -m lab.page", page.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    assert f"error: {named}" in error and allowed in error
    assert (tmp_path / "file").read_text() == "mine" and not list(tmp_path.rglob("page.html"))


# The page in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if not browser.PROGRAM:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


SHOWN = {  # what a reader sees in the first column
    "text": "[...document.querySelectorAll('.text .word')].map(x => x.textContent).join('')",
    "student": "document.querySelector('.student').textContent",
    "teacher": "document.querySelector('.teacher').textContent",
    "readout": "document.querySelector('.text > .readout').textContent",
    "curve": "document.querySelector('.accuracy svg').getAttribute('aria-label')",
    "token": "[...document.querySelectorAll('.text .token')].findIndex(x => x.ariaCurrent === "
             "'true')",
    "focus": "[...document.querySelectorAll('.text .token')].indexOf(document.activeElement)",
    "step": "document.getElementById('stepname').textContent",
}


def shown(chromium, *names):
    values = [chromium.evaluate(SHOWN[name]) for name in names]
    return values if len(values) > 1 else values[0]


def test_it_loads_silently_and_asks_nobody(chromium, pages):
    """Catches an error in the console, and a font, a script or a picture from some host."""
    for path in pages.values():
        chromium.look(1400, 900)
        chromium.open(path)
        bars = chromium.evaluate("document.querySelectorAll('td.p').length")
        assert shown(chromium, "text") and bars >= 10
        assert chromium.errors == [] and chromium.requests == [path.resolve().as_uri()]


def test_the_slider_goes_through_training(chromium, pages):
    """Catches a slider that moves nothing but itself, and a marker that stays."""
    chromium.open(pages["one"], "#problem=1&step=0&token=1")
    data = data_of(pages["one"])
    for i, step in enumerate(data["runs"][0]["steps"]):
        chromium.evaluate(f"step.value = {i}; step.dispatchEvent(new Event('input'))")
        m = data["runs"][0]["moments"][i][0]
        words = [data["words"][t] for t in m["tokens"]]
        text, curve, student, label = shown(chromium, "text", "curve", "student", "step")
        assert text == "".join(words) and f"step {step}:" in curve and label == f"{step} of 4"
        for p in m["student"]["top"][0][1::2]:
            assert (f"{p:.3f}" if p >= 0.0005 else "<.001") in student


def test_a_button_changes_the_hint(chromium, pages):
    """Catches bars that keep those of the hint before, and a hint that is only said."""
    chromium.open(pages["one"], "#problem=1&step=0&token=1")
    data, seen = data_of(pages["one"]), set()
    for kind, x in data["runs"][0]["moments"][0][0]["teachers"].items():
        chromium.evaluate(f"document.querySelector('[data-hint={kind}]').click()")
        teacher, readout = shown(chromium, "teacher", "readout")
        assert x["sees"].removesuffix(" | ") in teacher
        assert f"nats = {x['kl'][0] - x['content'][0]:.2f}" in readout.replace("-0.00", "0.00")
        pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(x => x.dataset.hint)"
        assert chromium.evaluate(pressed) == [kind]
        seen.add(teacher)
    assert len(seen) == len(toy_tasks.CONTEXTS)


def test_it_is_used_by_keyboard_and_by_pointer(chromium, pages):
    """Catches arrow keys that scroll instead, a focus that is lost, and a token out of reach."""
    chromium.look(1400, 900)
    chromium.open(pages["one"], "#problem=1&step=0&token=1")
    chromium.press("ArrowRight")
    assert shown(chromium, "token", "focus") == [1, -1]
    chromium.evaluate("document.querySelector('.text [aria-current=true]').focus()")
    chromium.press("ArrowRight")
    assert shown(chromium, "token", "focus") == [2, 2]
    chromium.press("ArrowRight", shift=True)
    token, focus, step = shown(chromium, "token", "focus", "step")
    assert token == focus == 2 and step == "2 of 4"
    for _ in range(30):
        chromium.press("ArrowLeft")
    assert shown(chromium, "token", "focus") == [0, 0]
    x, y = chromium.evaluate(
        "(r => [r.x + r.width / 2, r.y + 5])(document.querySelectorAll('.text .token')[3]"
        ".getBoundingClientRect())")
    chromium.point(x, y)
    assert shown(chromium, "token") == 3
    assert shown(chromium, "readout").startswith("Token 4, ")
    chromium.evaluate("step.focus()")
    chromium.press("ArrowLeft")
    token, step = shown(chromium, "token", "step")
    assert (token, step) == (3, "0 of 4") and chromium.errors == []


def test_text_is_shown_as_text(chromium, pages):
    """Catches a completion that runs: a closed script, an image with a handler, a comment."""
    chromium.open(pages["hostile"])
    page_text = chromium.evaluate("document.body.textContent")
    visible = chromium.evaluate("document.body.innerText")
    assert all(word in page_text and word.split()[0] in visible for word in HOSTILE)
    assert HOSTILE[0] in shown(chromium, "text").replace("\u2423", " ")
    assert chromium.evaluate("document.images.length") == 0
    assert chromium.evaluate("document.scripts.length") == 2
    assert "taken" not in chromium.evaluate("document.title") and chromium.errors == []


def test_runs_stand_side_by_side(chromium, pages):
    """Catches a column that follows another one's token, and a base that is trained."""
    chromium.look(1400, 900)
    chromium.open(pages["three"])
    columns = "[...document.querySelectorAll('.run')]"
    names = chromium.evaluate(f"{columns}.map(x => x.querySelector('h2').textContent)")
    assert [name.split()[0] for name in names] == ["base", "sdpo", "grpo"]
    assert [name.split()[-1] for name in names] == ["0", "4", "4"]
    tops = chromium.evaluate(f"{columns}.map(x => x.getBoundingClientRect().top)")
    assert len(set(tops)) == 1
    places = f"{columns}.map(x => [...x.querySelectorAll('.text .token')].findIndex(" \
             "t => t.ariaCurrent === 'true'))"
    before = chromium.evaluate(places)
    chromium.evaluate(f"{columns}[1].querySelector('.text .token:nth-child(5)').focus()")
    chromium.evaluate("document.querySelector('[data-hint=none]').click()")  # all is drawn anew
    assert chromium.evaluate(places) == [before[0], 4, before[2]] != [4] * 3


CONTRAST = """(() => {  // the least of all text on the page, and where
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number), alpha = c => c[3] ?? 1;
  const over = (c, below) => [0, 1, 2].map(i => c[i] * alpha(c) + below[i] * (1 - alpha(c)));
  const ground = node => {
    const own = parse(getComputedStyle(node).backgroundColor);
    return alpha(own) === 1 ? own : over(own, ground(node.parentElement ?? document.body));
  };
  const light = c => c.slice(0, 3).map(x => x / 255).map(
    x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  let least = [99, ''];
  for (const node of document.querySelectorAll('body *:not(script, noscript, option)')) {
    const own = [...node.childNodes].some(x => x.nodeType === 3 && x.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const color = parse(node.ownerSVGElement ? style.fill : style.color);
    const [a, b] = [light(color), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least[0]) least = [ratio, node.outerHTML.slice(0, 200)];
  }
  return least;
})()"""


@pytest.mark.parametrize("name", ["three", "hostile"])
def test_it_is_readable_on_a_phone_and_in_the_dark(name, chromium, pages):
    """Catches text that runs out of a narrow window, and text that its ground swallows."""
    for scheme in ("light", "dark"):
        for width in (360, 800, 1400):
            chromium.look(width, 800, scheme)
            chromium.open(pages[name], "#step=0")
            chromium.evaluate("document.querySelector('details').open = true")
            wide = chromium.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (scheme, width, wide)
            rows = "Math.max(...[...document.querySelectorAll('td.p')].map(x => x.clientHeight))"
            assert chromium.evaluate(rows) < 40, "a probability that stands in several lines"
        ratio, where = chromium.evaluate(CONTRAST)
        assert ratio >= 4.5, (scheme, ratio, where)


def test_a_screen_reader_has_words_for_all_of_it(chromium, pages):
    """Catches a control without a name, a picture without words, and news that nobody is told."""
    chromium.open(pages["one"], "#token=1")
    tree = chromium.call("Accessibility.getFullAXTree")["nodes"]
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree
             if not n.get("ignored")]
    for role in ("button", "slider", "combobox", "image", "table", "heading"):
        names = [name for r, name in named if r == role]
        assert names and all(names), (role, names)
    tokens = [name for role, name in named if role == "button" and "divergence" in name]
    assert tokens and all("nats, manner" in name for name in tokens)
    said = chromium.evaluate("document.getElementById('said').textContent")
    assert said.startswith("Token 1, ")
