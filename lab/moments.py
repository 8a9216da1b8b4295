"""A few completions of every evaluation, token by token, for the weights of that moment go.

What `python -m lab.page` shows: the likeliest tokens of the student, and those of the teacher
behind every context that the task knows, all on completions that the evaluation has written.
"""

import dataclasses
import random
from typing import Any

import torch
from torch import Tensor

import minisd
import toy_tasks
from lab import distributed
from lab.evaluation import Evaluation
from lab.forecast import TOY_CLASSES, token_classes, within_class
from lab.report import answer_of, main_split, prompt_of
from lab.text_tasks import CONTEXT_TEMPLATES, TextTask
from minisd import GPT, Completions, Prompts, Row, Sizes, Task, Teacher

TOKENS, TOP = 256, 5  # of a completion at most; the likeliest ones shown
CHUNK = 2**24  # logits that exist at a time
# Passes over a completion for every evaluated one, and for every half of a trained one: 2 % of the
# time of a run, as the toy's takes it. Of a checkpoint, which samples slowly, it is far less.
SHARE = 1 / 60
# Where there is no time for all hints, those that tell most about a teacher come first.
FIRST = ("none", "wrong", "feedback", "answer")
KINDS = tuple(dict.fromkeys((*FIRST, *toy_tasks.CONTEXTS, *CONTEXT_TEMPLATES)))
DECIMALS = 7  # of what is kept


def kept(
    run: Any, results: dict[str, Evaluation], task: Task, teacher: Teacher, sizes: Sizes
) -> dict[str, Evaluation]:
    """The results, with moments of completions: half of training problems, half of fresh ones.

    run: page_problems is their number, and the rest says how many hints there is time for. The one
    that is taught is always there.
    """
    count, between = run.page_problems, min(run.eval_every, run.steps)
    work = 2 * between * run.batch_size + sum(len(e.texts) for e in results.values())
    hints = max(1, int(SHARE * work / max(1, count)) - 1)  # one pass is the student's
    shares = {"train": count // 2} | {main_split(results): count - count // 2}
    places = [(split, i) for split, n in shares.items() for i in chosen(results[split], n)]
    if places and distributed.rank() == 0:
        rows = []
        for e, i in ((results[split], i) for split, i in places):
            written = {"ids": e.ids[i][:TOKENS], "text": e.texts[i], "reward": e.rewards[i]}
            rows.append(Row(e.examples[i], {"none": ""}, **written))
        for (split, i), moment in zip(places, moments_of(rows, task, teacher, sizes, hints)):
            left_out = max(0, len(results[split].ids[i]) - TOKENS)
            more = {"split": split, "index": i, "tokens_left_out": left_out}
            results[split].moments.append(moment | more)
    return results


def chosen(evaluation: Evaluation, count: int) -> list[int]:
    """Where different problems of rising length stand, the same ones at every evaluation."""
    places = {prompt_of(example): i for i, example in reversed([*enumerate(evaluation.examples)])}
    order = sorted(places.values(), key=lambda i: (len(prompt_of(evaluation.examples[i])), i))
    count = min(count, len(order))
    return [order[(2 * j + 1) * len(order) // (2 * count)] for j in range(count)]


@torch.no_grad()
def moments_of(
    rows: list[Row], task: Task, teacher: Teacher, sizes: Sizes, hints: int
) -> list[dict]:
    """What student and teacher expected at every token of the rows; numbers in nats or fractions.

    `teachers` has an entry per context: `kl` is KL(student || teacher), `content` its part within
    the classes of tokens (see lab/forecast.py), `top` the likeliest tokens, `p` that of the token.
    """
    method, student = teacher.method, teacher.student
    device, own = next(student.parameters()).device, method.student_context
    known = contexts_of(rows, task, teacher)
    terms = {"": [(1.0, student, own)]} | dict(list(known.items())[:hints])  # the student is ""
    kinds: dict[GPT, dict] = {}
    for _, model, kind in (term for parts in terms.values() for term in parts):
        kinds.setdefault(model, {})[kind] = None
    with sizes.autocast(device):
        states = {model: hidden_states(model, list(seen), rows, task)
                  for model, seen in kinds.items()}
        values = readings(
            {name: [(a, model, states[model][kind]) for a, model, kind in parts]
             for name, parts in terms.items()},
            torch.tensor([i for row in rows for i in row.ids], device=device),
            classes_of(task, device))
    words, lengths = words_of(task), [len(row.ids) for row in rows]
    taught = [{} for _ in rows]
    for name, x in values.items():
        x["top"] = [[[words(i), p] for i, p in zip(*pair)] for pair in zip(x.pop("ids"), x["top"])]
        starts = [sum(lengths[:i]) for i in range(len(rows))]
        for row, start, n, entry in zip(rows, starts, lengths, taught):
            seen = dict.fromkeys(row.contexts[kind] for _, _, kind in terms[name])
            sees = " and ".join(filter(None, seen))
            entry[name] = {k: v[start : start + n] for k, v in x.items()} | {"sees": sees}
    return [
        {"prompt": prompt_of(row.example), "answer": answer_of(row.example, task),
         "text": str(row.text), "right": row.reward == 1, "tokens": [*map(words, row.ids)],
         "taught": next(iter(known)), "hints_left_out": len(known) - len(terms) + 1,
         "student": entry.pop(""), "teachers": entry}
        for row, entry in zip(rows, taught)]


def contexts_of(rows: list[Row], task: Task, teacher: Teacher) -> dict[str, list]:
    """Sets the rows' contexts; by name, (coefficient, model, kind) of a teacher that sees it.

    The first is the method's own. A context is left out where one row cannot have it, or it would
    not fit. That of a sibling is a reference, that of feedback is about the row itself.
    """
    method, student = teacher.method, teacher.student
    own = method.student_context
    taught = list(dict.fromkeys(c for _, _, c in method.terms if c != own)) or [own]
    for kind in dict.fromkeys((own, *taught, *KINDS)):
        try:
            texts = [context(row, i, task, kind) for i, row in enumerate(rows)]
        except (KeyError, ValueError):  # the task's words for what it cannot show
            continue
        prompts = [len(task.prompt_ids(row.example, text)) for row, text in zip(rows, texts)]
        longest = max(n + len(row.ids) for n, row in zip(prompts, rows))
        if kind in method.contexts or longest <= student.config.context_window:
            for row, text in zip(rows, texts):
                row.contexts[kind] = text

    def terms(replaced: dict[str, str]) -> list:
        return [(a, teacher.copies.get(weights, student), replaced.get(c, c))
                for a, weights, c in method.terms]

    found = {" and ".join(taught): terms({})}
    return found | {
        kind: terms(dict.fromkeys(taught, kind)) for kind in rows[0].contexts if kind not in found}


def context(row: Row, i: int, task: Task, kind: str) -> str:
    """The context of row i, the same one at every evaluation unless it is about the completion."""
    rng = random.Random(f"moment-{i}-{kind}")
    attempt = row.text if task.attempts.get(kind) == "own" else task.reference(row.example, rng)
    example = row.example
    if getattr(example, "rule", None) == 0:  # the toy without rules; as a hint one can be seen
        example = dataclasses.replace(example, rule=3)
    return "" if kind == "none" else task.context(example, kind, rng, attempt)


def hidden_states(
    model: GPT, kinds: list[str], rows: list[Row], task: Task
) -> dict[str, Tensor]:
    """By kind of context, states (N, C) that predict the rows' N tokens one after the other."""
    device = next(model.parameters()).device
    prompts = {(kind, i): task.prompt_ids(row.example, row.contexts[kind])
               for kind in kinds for i, row in enumerate(rows)}
    # Similar lengths together, and as many at a time as there are rows.
    order, found = sorted(prompts, key=lambda x: (len(rows[x[1]].ids), len(prompts[x]))), {}
    for start in range(0, len(order), len(rows)):
        part = order[start : start + len(rows)]
        written = Completions.of([rows[i].ids for _, i in part], task.pad_id, device)
        shown = Prompts.of([prompts[x] for x in part], task.pad_id, device)
        hidden = minisd.completion_hidden(model, shown, written.ids)  # (B, T, C)
        found |= {x: states[mask] for x, states, mask in zip(part, hidden, written.mask)}
    return {kind: torch.cat([found[kind, i] for i in range(len(rows))]) for kind in kinds}


def readings(
    terms: dict[str, list], tokens: Tensor, classes: Tensor | None
) -> dict[str, dict[str, list]]:
    """By name, values of N tokens as lists, from terms (coefficient, model, states (N, C))."""
    (_, student, hidden), found = *terms[""], {}
    for part in torch.arange(len(tokens)).split(max(1, CHUNK // student.config.vocab_size)):
        log_p = minisd.log_softmax(student.lm_head(hidden[part]))  # (n, V)
        for name, parts in terms.items():
            logits = [model.lm_head(states[part]) for _, model, states in parts]
            log_q = minisd.log_softmax(minisd.log_linear(logits, [a for a, _, _ in parts]))
            values = {"kl": minisd.kl(log_p, log_q)}
            if classes is not None:
                inside = within_class(log_p, classes) - within_class(log_q, classes)
                values["content"] = (log_p.exp() * inside).sum(-1)
            read(found, name, log_q, tokens[part], **values if name else {})
    return found


def read(found: dict, name: str, log_probs: Tensor, ids: Tensor, **values: Tensor) -> None:
    """Adds the values of some tokens to those found by that name."""
    top = log_probs.topk(min(TOP, log_probs.shape[-1]))
    values |= {"p": log_probs.gather(1, ids[:, None])[:, 0].exp(), "top": top.values.exp()}
    rounded = {k: v.double().round(decimals=DECIMALS).tolist() for k, v in values.items()}
    for key, value in (rounded | {"ids": top.indices.tolist()}).items():
        found.setdefault(name, {}).setdefault(key, []).extend(value)


def classes_of(task: Task, device: torch.device) -> Tensor | None:
    """The kinds of tokens (V,), which the toy knows."""
    if isinstance(task, TextTask):
        return None
    return token_classes(list(toy_tasks.VOCABULARY), TOY_CLASSES).to(device)


def words_of(task: Task):
    """Token id -> its text."""
    if not isinstance(task, TextTask):
        return toy_tasks.VOCABULARY.__getitem__
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return lambda i: task.tokenizer.decode([i], **how)
