"""Methods in words: what a table here has no words for is shown under its own name."""

from minisd import Method

DIVERGENCES = {
    "forward_kl": "KL(teacher || student)",
    "reverse_kl": "KL(student || teacher)",
    "jensen_shannon": "Jensen-Shannon divergence (teacher weight {m.teacher_weight:g})",
    "clipped_forward_kl": "KL(teacher || student), terms up to {m.clip:g}",
    "bregman_clipped_forward_kl": "KL(teacher || student), Bregman terms up to {m.clip:g}",
    "top_k_reverse_kl": "KL(student || teacher) on the {m.top_k} likeliest of the "
                        "{m.top_k_support}, tail {m.top_k_tail}",
}
CREDITS = {
    "token": "{divergence} per token",
    "sequence": "{divergence} of sequences, discount {m.discount:g}",
    "sampled": "sg[log p(y_t) - log q(y_t)] log p(y_t)",
    "averaged": "-sg[mean_t log q(y_t) - log p(y_t)] log p(y_t)",
    "imitation": "-log p(y_t)",
}
TOKEN_WEIGHTS = {
    "all": "", "correct_only": "correct ones only",
    "first": "first {m.token_share:g} of the tokens",
    "last": "last {m.token_share:g} of the tokens",
    "spread": "{m.token_share:g} of the tokens, spread",
    "before_error": "tokens before the first wrong one", "error_token": "first wrong token",
    "until_error": "tokens up to the first wrong one",
    "after_error": "tokens after the first wrong one",
    "until_error_scattered": "as many tokens as up to the first wrong one, scattered",
}
ADVANTAGES = {"group": "(r - mean)/std", "group_without_std": "r - mean"}
REDUCTIONS = {
    "token_mean": "", "sequence_mean": "mean per completion", "constant": "divided by a constant"
}
TEACHERS = {
    "frozen": "frozen teacher", "ema": "EMA teacher (rate {m.teacher_update_rate:g})",
    "snapshot": "teacher copied every {m.teacher_every} steps", "live": "live teacher",
    "trust_region": "trust-region teacher (rate {m.teacher_update_rate:g})",
}
EXTERNAL = {
    "larger": "larger teacher", "other_style": "teacher of another style",
    "adapted": "teacher adapted by reward",
}
SIGHTS = {"none": "no hint", "partial": "half the solution", "other_problem": "another problem",
          "wrong": "a wrong solution", "sibling": "a right sibling", "feedback": "feedback"}
KNOWN_SIGHTS = ("answer", "solution", "rule")


def words_for(table: dict[str, str], name: str, method: Method, **more) -> str:
    return table[name].format(m=method, **more) if name in table else name


def sight(kind: str) -> str:
    """What a context shows, in words."""
    return SIGHTS.get(kind, f"the {kind}" if kind in KNOWN_SIGHTS else kind)


def writers_of(method: Method) -> str:
    others = {"teacher": "teacher", "data": "references"}[method.off_policy]
    share = method.student_frac
    mixed = f"student {share:g}, {others} {1 - share:g}"
    return {1.0: "student", 0.0: others}.get(share, mixed)


def teacher_of(method: Method) -> str:
    """Whose weights the teacher has and what it sees; empty for a pure policy gradient."""
    if method.reward_weight == 1:
        return ""
    if method.target:
        terms = [f"{a:+g} log {weights}({sight(c)})" for a, weights, c in method.terms]
        return f"teacher {' '.join(terms)}".replace("teacher +", "teacher ")
    if method.teacher == "external":
        name = method.external_teacher
        return f"{EXTERNAL.get(name, f'teacher {name}')} sees {sight(method.context)}"
    return f"{words_for(TEACHERS, method.teacher, method)} sees {sight(method.context)}"


def losses_of(method: Method) -> list[str]:
    m, parts = method, []
    if m.reward_weight < 1:
        divergence = words_for(DIVERGENCES, m.divergence, m)
        share = f"{1 - m.reward_weight:g} " if m.reward_weight else ""
        parts.append(share + words_for(CREDITS, m.credit, m, divergence=divergence))
        known = m.token_weights in TOKEN_WEIGHTS
        weights = words_for(TOKEN_WEIGHTS, m.token_weights, m)
        parts += filter(None, [weights if known else f"token weights {weights}"])
        if m.importance_cap:
            parts.append(f"importance weight up to {m.importance_cap:g}")
    if m.reward_weight > 0:
        clips = "clipped policy gradient"
        if (m.clip_low, m.clip_high) != (Method.clip_low, Method.clip_high):
            clips += f" ({1 - m.clip_low:g} to {1 + m.clip_high:g})"
        share = f"{m.reward_weight:g} " if m.reward_weight < 1 else ""
        parts += [share + clips, f"A = {words_for(ADVANTAGES, m.advantage, m)}"]
    if m.kl_coef:
        parts.append(f"{m.kl_coef:g} k3(student, initial)")
    if m.resample:
        parts.append(f"equal groups drawn anew up to {m.resample} times")
    if m.warm_start_steps:
        parts.append(f"after {m.warm_start_steps} steps of sft")
    return parts


def in_words_of(method: Method) -> str:
    """A method in one sentence: who writes, who teaches and sees what, which loss."""
    seen = "" if method.student_context == "none" else f" and sees {sight(method.student_context)}"
    verb = " write" if method.student_frac == 0 and method.off_policy == "data" else " writes"
    who = writers_of(method) + (verb if method.student_frac in (0, 1) else " of the groups") + seen
    return ", ".join(filter(None, [who, teacher_of(method), *losses_of(method)]))


def method_table(methods: dict[str, Method]) -> str:
    """The methods as a Markdown table."""
    lines = ["| method | who writes | teacher and what it sees | loss | source |", "|---" * 5 + "|"]
    for name, m in methods.items():
        reduction = words_for(REDUCTIONS, m.reduction, m)
        loss = "; ".join(filter(None, [*losses_of(m), reduction])).replace("||", "\\|\\|")
        cells = (f"`{name}`", writers_of(m), teacher_of(m) or "-", loss, m.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
