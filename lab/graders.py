r"""Verdicts on completions: is what a model wrote the answer of the data set?

    1 where the answer stands   2 the verdict on two answers   3 the rewards

`boxed` asks math-verify whether two formulas are equal. It is not asked where it was found wrong on
answers: numbers that differ in the seventh decimal, units (it takes 3t for 3, and 35 m for 35 cm),
words (it multiplies their letters: eat = tea), times and ratios (it divides), mixed numbers
(1 1/2 = 1), points (a pair is a set), equations (x + y = 5 is 5), and sums left to be done.
"""

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from lab import answers
from lab.answers import compact, is_word, quantity, tidy
from lab.verifier import same_formula

# 1. Where the answer stands -----------------------------------------------------------------------


class Unfinished(str):
    """The text of a completion that ends inside a thought: a str like any other, but worth nothing.

    A type, because a task gives its rewards the text alone. A mark inside the text could be written
    by a model, and a teacher would be shown it.
    """

    __slots__ = ()


class Cut(Unfinished):
    """The text of a completion that has no end token: the length limit cut it off."""

    __slots__ = ()


THOUGHTS = {  # what begins and ends what a model writes for itself
    **{f"<{name}>": f"</{name}>" for name in (
        "think", "thinking", "thought", "thoughts", "reasoning", "scratchpad", "seed:think")},
    "[THINK]": "[/THINK]", "<|begin_of_thought|>": "<|end_of_thought|>",
    "\N{WHITE LEFT-POINTING TRIANGLE}think\N{WHITE RIGHT-POINTING TRIANGLE}":
    "\N{WHITE LEFT-POINTING TRIANGLE}/think\N{WHITE RIGHT-POINTING TRIANGLE}",
}
CLOSED_BY = {begin.casefold(): end for begin, end in THOUGHTS.items()}
THOUGHT = re.compile("|".join(map(re.escape, (*THOUGHTS, *THOUGHTS.values()))), re.IGNORECASE)


def open_thought(text: str) -> str:
    """What would close the thought in which a text ends, such as </think>; empty: in none."""
    marks = THOUGHT.findall(text)
    return CLOSED_BY.get(marks[-1].casefold(), "") if marks else ""


def read_completion(tokenizer: Any, ids: list[int], end_ids: list[int], thought_end: str) -> str:
    """Text of token ids up to their first end token, without padding and special tokens.

    Cut by id: an end token need not be special, and would stay in the answer. Without one the text
    is a `Cut`; one that ends inside a thought is `Unfinished`. Both earn nothing.
    thought_end: what closes the thought that the prompt has begun, such as </think>, or nothing.
    """
    ends, how = set(end_ids), {"clean_up_tokenization_spaces": False}
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True, **how)
    if end == len(ids):
        return Cut(text)
    # The marks of a thought may be special.
    whole = tokenizer.decode(ids[:end], skip_special_tokens=False, **how)
    begun = next((begin for begin, end in THOUGHTS.items() if end == thought_end), "")
    return Unfinished(text) if open_thought(begun + whole) else text


def final_part(completion: str) -> str | None:
    """What stands behind the thoughts of a completion; None if it is unfinished."""
    if isinstance(completion, Unfinished) or open_thought(completion):
        return None
    marks = [*THOUGHT.finditer(completion)]
    return completion[marks[-1].end() :] if marks else completion


# Without braces a box holds a number: \boxed5.
BRACES = re.compile(r"\\f?box(?:ed)?\s*\{|\\boxed\s*(-?\d[\d.,/]*)|\\\\(?!f?box)|\\[{}]|[{}]")


def last_boxed(text: str) -> str | None:
    r"""What stands in the last complete \boxed{...} or \fbox{...} of a text, or None."""
    open_braces, start, end = [], -1, 0  # of each its position; -1: of no box
    for token in BRACES.finditer(text):
        if token[1]:
            start, end = token.span(1)
        elif token[0] == "{":
            open_braces.append(-1)
        elif token[0].endswith("{") and "box" in token[0]:
            open_braces.append(token.end())
        elif token[0] == "}" and open_braces and (begun := open_braces.pop()) > start:
            start, end = begun, token.start()
    return text[start:end].strip() if start >= 0 else None


# 2. The verdict on two answers --------------------------------------------------------------------

DEEPEST = 25  # brackets inside each other; a parser of formulas needs a second for a hundred
NAME = re.compile(  # of what is asked for: x, x_1, f(x), \theta, AB, P(A), \angle ABC, (x, y)
    r"\s*(\(\\?[a-zA-Z]+(?:\s*,\s*\\?[a-zA-Z]+)+\)|[|\[][A-Z]{1,5}[|\]]|"
    r"\\(?:vec|bar|hat|overline|overrightarrow)\s*\{?\w+\}?|\\(?:lim|int)(?![a-zA-Z])[^=]*|"
    r"[a-zA-Z]{2,}(?:\s+[a-zA-Z]+)*\s*(?=[:=])|(?:\\(?:angle|triangle)\s*)?(?:\\?[a-zA-Z]+)"
    r"(?:_(?:\w|\{\w+\}))?'*(?:\^\s*\{-1\})?(?:\s*\([\w, ]{1,9}\))?)"
    r"\s*(?:(?<![<>!\\])=|(?<=\w\w):|(?<=\w\w\s):|\\in(?![a-zA-Z]))\s*")
CHOICE = re.compile(r"(?:(?:option|choice)\s*)?[([]?\s*([A-J])\s*(?:[)\]]|[.:](?=\s|$))?"
                    r"(?:(?<=[).:\]])(?!.*(?:[([]\s*[A-J]\s*[)\]]|\b(?:and|or)\b)).*)?",
                    re.IGNORECASE | re.DOTALL)
SEPARATOR = r"[,;]|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])"
TOKENS = re.compile(rf"\\begin|\\end|\\[{{}}]|[()\[\]{{}}]|{SEPARATOR}")
OPENING, CLOSING = {"(": "(", "[": "[", "\\{": "{"}, {")": ")", "]": "]", "\\}": "}"}
DEEPER = {"\\begin", "{", *OPENING}
HIGHER = {"\\end", "}", *CLOSING}
FUNCTIONS = {"sqrt", "sin", "cos", "tan", "log", "exp", "max", "min", "gcd", "mod", "det", "infty"}
# A number is asked for: a sum or product is the way to it, and the problem itself often is one.
UNDONE = re.compile(r"[\w)}\]!]\s*(?:[-+*]|\\(?:times|cdot|div|pm|mp)(?![a-zA-Z]))|"
                    r"\\(?:max|min|gcd|lcm|sum|prod|int|lim)(?![a-zA-Z])")
MEASURED = re.compile(  # a formula and the unit behind it; of one letter, if there is no other
    r"(.*?(?:[\d})]|\\[a-z]+(?=\s)))\s*"
    r"((?:[^\W\d_]{2}|[%$])(?:[^\W\d_]|[ ./%$]|\^ ?\{?\d\}?)*)|"
    r"((?:\\[a-z]+|[^a-zA-Z])*[\d})])\s"
    r"([a-zA-Z](?:/[a-zA-Z]{1,2}(?![a-zA-Z])|\^ ?\{?\d\}?)*)")


def same_answer(given: str, reference: str) -> bool:
    """Whether an answer is the reference's, however it is written. Bounded in time; see the head.

    Compared in this order: text, choices, numbers with units, words, lists, formulas.
    """
    if max(len(given), len(reference)) > answers.LONGEST:
        return compact(given) == compact(reference)
    given, reference = tidy(given), tidy(reference)
    if not compact(given) or not compact(reference):
        return False
    if compact(given) == compact(reference):
        return True
    if letter := re.fullmatch(r"\(?([A-J])\)?", reference):
        chosen = CHOICE.fullmatch(given)
        return bool(chosen) and chosen[1].upper() == letter[1]
    given, reference = as_intervals(given), as_intervals(reference)
    (name, value), (asked, wanted) = named(given), named(reference)
    if name and asked and name != asked:
        return False
    if bool(name) == bool(asked) or "=" not in value + wanted:  # y = 2x + 1 is y - 2x = 1
        given, reference = value, wanted
    for compare in (same_plain, same_parts, same_measured):
        if (verdict := compare(given, reference)) is not None:
            return verdict
    return False


HALF_LINE = re.compile(r"\s*([a-zA-Z])\s*(<|>|\\[lg]e(?![a-zA-Z]))\s*([^<>=]+)")


def as_intervals(text: str) -> str:
    r"""x < 1 or x > 2 as (-\infty,1) \cup (2,\infty), which math-verify does not know by itself."""
    found = [HALF_LINE.fullmatch(part) for part in re.split(r"\bor\b", text)]
    if len(found) < 2 or None in found or len({match[1] for match in found}) > 1:
        return text
    forms = {"<": r"(-\infty,%s)", r"\le": r"(-\infty,%s]",
             ">": r"(%s,\infty)", r"\ge": r"[%s,\infty)"}
    return r" \cup ".join(sorted(forms[match[2]] % match[3].strip() for match in found))


def named(text: str) -> tuple[str, str]:
    """The name that a value is given, or nothing, and the value: x and 5 of x = 5."""
    parts = re.split(r"(?<![\\<>!])=", text)
    if len(parts) > 1 and not re.search(SEPARATOR, text):
        found = NAME.match(text)
        # x = 2 + 3 = 5: what it comes to.
        if len(parts) > 2 or not re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)):
            return compact(found[1]) if found else "", parts[-1].strip()
    found = NAME.match(text) if len(parts) < 3 else None
    return (compact(found[1]), text[found.end() :].strip()) if found else ("", text)


def same_plain(given: str, reference: str) -> bool | None:
    """The verdict on numbers and words; None if one of the answers is neither."""
    if compact(given) == compact(reference):
        return True
    one, other = quantity(given), quantity(reference)
    if one and other:
        return answers.same_quantity(one, other)
    words = [wordy(text) for text in (given, reference)]
    if any(words):
        return words[0] == words[1]
    return False if any(q and isinstance(q.value, tuple) for q in (one, other)) else None


def wordy(text: str) -> str:
    """The words of a text that has nothing else, in small letters; else the empty string."""
    plain = re.fullmatch(r"[^\W\d_]+(?:[ .'-]+[^\W\d_]+)*[!?]?", text)
    words = re.findall(r"[^\W\d_]+", text.casefold()) if plain else []
    known = any(is_word(word) or (len(word) > 2 and "a" in word) for word in words)
    return " ".join(words) if known else ""


def split_at_top(text: str) -> list[str] | None:
    """The parts between the separators outside of all brackets; None if brackets do not match."""
    depth, deepest, parts, start = 0, 0, [], 0
    for token in TOKENS.finditer(text):
        depth += (token[0] in DEEPER) - (token[0] in HIGHER)
        deepest = max(deepest, depth)
        if depth < 0 or deepest > DEEPEST:
            return None
        if depth == 0 and token[0] not in HIGHER:
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return None if depth else [part for part in (*parts, text[start:].strip()) if part]


def both_signs(parts: list[str]) -> list[str]:
    r"""The parts of a list; in place of one with \pm the two that it stands for."""
    return [part.replace("\\pm", sign) for part in parts
            for sign in (("+", "-") if part.count("\\pm") == 1 else ("\\pm",))]


def parts_of(text: str) -> tuple[str, list[str]]:
    """The brackets around a list, such as () or [), and its parts; a single part has none."""
    left = next((mark for mark in OPENING if text.startswith(mark)), "")
    right = next((mark for mark in CLOSING if text.endswith(mark)), "")
    if left and right:
        parts = split_at_top(text[len(left) : -len(right)])
        if parts is not None:
            kind = OPENING[left] + CLOSING[right]
            parts = both_signs(parts) if kind == "{}" else parts
            return (kind if len(parts) != 1 else ""), parts
    # 1,234 is one number, but not in brackets, where a point is likelier.
    parts = split_at_top(re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)) or [text]
    return "", both_signs(parts)


def same_parts(given: str, reference: str) -> bool | None:
    """The verdict on lists; None if none is one, or formulas in them have to be compared.

    Sets and lists without brackets have no order; points and intervals have one.
    """
    (kind, parts), (asked, wanted) = parts_of(given), parts_of(reference)
    if len(parts) == len(wanted) == 1:
        changed = (parts[0], wanted[0]) != (given, reference)
        return same_plain(parts[0], wanted[0]) if changed else None
    if 1 in (len(parts), len(wanted)):
        single = parts[0] if len(parts) == 1 else wanted[0]
        return False if quantity(single) or wordy(single) else None
    if len(parts) != len(wanted) or (kind and asked and kind != asked):
        return False
    pairs, expected = [named(part) for part in parts], [named(part) for part in wanted]
    ordered = not {kind, asked} <= {"", "{}"}
    if all(name for name, _ in pairs) and len({name for name, _ in expected}) > 1:
        pairs, expected, ordered = sorted(pairs), sorted(expected), True
        if [name for name, _ in pairs] != [name for name, _ in expected] and expected[0][0]:
            return False
    elif any(name for name, _ in expected[1:]) and len({name for name, _ in expected}) > 1:
        ordered = True
    found = [value for _, value in pairs]
    unsure = False
    for i, (_, value) in enumerate(expected):
        verdicts = [same_plain(x, value) for x in (found[i : i + 1] if ordered else found)]
        if True in verdicts and not ordered:
            del found[verdicts.index(True)]
        elif True not in verdicts:
            if None not in verdicts:
                return False
            unsure = True
    return None if unsure else True


def same_measured(given: str, reference: str) -> bool:
    """math-verify's verdict on formulas, without their units, where it is to be asked."""
    (given, unit), (reference, asked) = measured(given), measured(reference)
    both = (given, reference)
    if not answers.same_unit(unit, asked) or any(map(not_for_parsers, both)):
        return False
    if len({bool(re.search(r"(?<![\\<>!])=", text)) for text in both}) > 1:
        return False  # an equation is not its right side
    if quantity(reference) and UNDONE.search(given):
        return False
    return same_formula(given, reference)


def measured(text: str) -> tuple[str, tuple[str, ...]]:
    """A formula and the unit behind it."""
    found = MEASURED.fullmatch(text)
    formula = found and (found[1] or found[3])
    unit = answers.unit_of(found[2] or f" {found[4]}") if found else None
    return (formula, unit[1]) if unit and unit[1] and unit[0] == 1 else (text, ())


def not_for_parsers(text: str) -> bool:
    """Whether a text has words, a time or ratio, numbers side by side, or open brackets or ends."""
    bare = re.sub(r"\\(?:begin|end)\s*\{\w+\}|\\[a-zA-Z]+", " ", text)
    words = {word for word in re.findall("[a-zA-Z]+", bare) if len(word) > 2 and is_word(word)}
    numbers = re.search(r"\d\s*[:']\s*\d|(?<![\w^])\d+\s+\d|\\[lc]?dots", text)
    return bool(words - FUNCTIONS or numbers) or split_at_top(text) is None


# 3. The rewards -----------------------------------------------------------------------------------

DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A sign counts only where nothing stands before it that it could subtract from. What stands behind
# ^ belongs to a unit, such as cm^2. more: what makes another thing of it, 12:30 or 3/4/2024 or 2^5.
LAST = re.compile(rf"""
    (?<![\w.^])(?<!\^[{{-])(?P<sign>-)?\$?
    (?:(?:(?P<whole>\d+)\ )?(?P<over>{DIGITS})\ ?/\ ?(?P<under>{DIGITS})(?![\d/])
      | (?P<plain>{DIGITS})(?:[eE](?P<exponent>[+-]?\d{{1,3}})(?!\w))?)
    (?:\ (?P<multiple>hundred|thousand|million|billion|trillion|dozen)\b)?
    (?P<more>(?:(?:[:/]|\ [:/]\ )\$?|\.|\*\*|\^\{{?-?|[eE][+-]?|(?<=\d{{4}})-\d\d-)\d[\d:/.]*)?
    """, re.VERBOSE)
PLAINER = [(re.compile(pattern), new) for pattern, new in (
    ("[\N{MINUS SIGN}\N{EN DASH}]", "-"),
    (answers.SMALL_FRACTIONS, lambda m: " " + unicodedata.normalize("NFKC", m[0])),
    ("\N{FRACTION SLASH}", "/"),
    (r"\\\$", "$"),
    (r"(?<=\d)(?:\{,\}|,\\!|\\,|[_'" "\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}"
     r"])(?=\d{3}(?!\d))", ","),
    (r"(\d)?\\[dtc]?frac ?\{(-?)([\d,.]{1,99})\} ?\{([\d,.]{1,99})\}",
     lambda m: f"{m[1] + ' ' if m[1] else ''}{m[2]}{m[3]}/{m[4]}"),
    (r"\\[dtc]?frac ?(\d)(\d)", r" \1/\2"),
    (r"\b10\*\*(?=\d)", "10^"),
    (r"(?<=\d) ?(?:\\times|\\cdot|x|\*|\N{MULTIPLICATION SIGN}) ?10\^\{?(-?\d{1,3})(?!\d)\}?",
     r"e\1"),
    (r"(?<![\w.])10\^\{?(-?\d{1,3})(?!\d)\}?", r"1e\1"),
)]


def last_number(text: str) -> Decimal | Fraction | None:
    """The last number in a text, `$1,234.50` as 1234.50; None if there is none, or a time or date.

    Fractions, 1e5 and millions are what they are.
    """
    text = answers.raised(text)
    for pattern, new in PLAINER:
        text = pattern.sub(new, text)
    matches = [*LAST.finditer(text)]
    if not matches or matches[-1]["more"]:
        return None
    found = matches[-1]
    if found["plain"] is None and len(found[0]) > answers.LONGEST:
        return None  # Python reads no whole numbers of thousands of digits
    sign, factor = (-1 if found["sign"] else 1), answers.MULTIPLES.get(found["multiple"], 1)
    if found["over"]:
        above, below = (Fraction(found[name].replace(",", "")) for name in ("over", "under"))
        return sign * factor * (int(found["whole"] or 0) + above / below) if below else None
    number = Decimal(found["plain"].replace(",", ""))
    if (found["exponent"] or factor > 1) and len(found[0]) <= answers.LONGEST:
        number = Fraction(number) * factor * Fraction(10) ** int(found["exponent"] or 0)
    return -number if sign < 0 else number


def single_number(reference: str) -> Fraction:
    """The number that an answer is. Raises ValueError if it is none, or several, or a time."""
    found = quantity(named(tidy(reference))[1]) if len(reference) <= answers.LONGEST else None
    if found is None or isinstance(found.value, tuple) or "base" in " ".join(found.unit):
        what = "is no single number" if re.search(r"\d", reference) else "has no number"
        raise ValueError(f"reward last_number: the answer {reference[:80]!r} {what}; allowed: one "
                         "such as 72, -1,234.5, 1/2, 1e5 or 18 dollars")
    return found.value


def reward_last_number(completion: str, reference: str) -> float:
    """1.0 if the completion's last number is the answer. Raises ValueError: see single_number."""
    expected, text = single_number(reference), final_part(completion)
    return float(text is not None and last_number(text) == expected)


def reward_boxed(completion: str, reference: str) -> float:
    r"""1.0 if the last \boxed{} holds the answer; see same_answer."""
    text = final_part(completion)
    given = None if text is None else last_boxed(text)
    return float(given is not None and same_answer(given, reference))


def reward_exact(completion: str, reference: str) -> float:
    """1.0 if the completion is the answer and nothing else, up to spaces around it."""
    text = final_part(completion)
    return float(text is not None and text.strip() == reference.strip())


TEXT_REWARDS: dict[str, Callable[[str, str], float]] = {
    "last_number": reward_last_number,
    "boxed": reward_boxed,
    "exact": reward_exact,
}
