r"""What a short answer says: its text without style, its number, its unit.

All of it is plain text and exact fractions; nothing here asks a computer algebra system.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# 1. Its text --------------------------------------------------------------------------------------

LONGEST = 1000  # characters of an answer; what is longer is compared as it stands
CHARACTERS = str.maketrans({  # those that NFKC leaves
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{HYPHEN}": "-",
    "\N{NON-BREAKING HYPHEN}": "-", "\N{DEGREE SIGN}": "^\\circ ", "\N{INFINITY}": "\\infty ",
    "\N{MULTIPLICATION SIGN}": "\\times ", "\N{DIVISION SIGN}": "\\div ",
    "\N{MIDDLE DOT}": "\\cdot ", "\N{DOT OPERATOR}": "\\cdot ", "\N{PLUS-MINUS SIGN}": "\\pm ",
    "\N{GREEK SMALL LETTER PI}": "\\pi ", "\N{GREEK SMALL LETTER THETA}": "\\theta ",
    "\N{LESS-THAN OR EQUAL TO}": "\\le ", "\N{GREATER-THAN OR EQUAL TO}": "\\ge ",
    "\N{ALMOST EQUAL TO}": "\\approx ", "\N{ELEMENT OF}": "\\in ", "\N{ARABIC PERCENT SIGN}": "%",
    "\N{FRACTION SLASH}": "/", "\N{DIVISION SLASH}": "/", "\N{ZERO WIDTH SPACE}": "",
})
SUPERSCRIPTS = re.compile("[\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT THREE}\N{SUPERSCRIPT ONE}"
                          "\N{SUPERSCRIPT ZERO}\N{SUPERSCRIPT FOUR}-\N{SUPERSCRIPT MINUS}]+")
SMALL_FRACTIONS = re.compile(
    "[\N{VULGAR FRACTION ONE QUARTER}-\N{VULGAR FRACTION THREE QUARTERS}"
    "\N{VULGAR FRACTION ONE SEVENTH}-\N{VULGAR FRACTION SEVEN EIGHTHS}]")
STYLES = (r"text|textbf|textit|textrm|textnormal|texttt|textsf|mbox|hbox|mathrm|mathbf|mathit|"
          r"mathsf|mathtt|mathord|boldsymbol|bm|operatorname|emph|underline|boxed|fbox")
TIDY = [(re.compile(pattern), new) for pattern, new in (
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
    (r"\\(?:displaystyle|textstyle|limits|rm|bf|it|q?quad|(?:en|thin)?space)(?![a-zA-Z])", " "),
    (r"(?<=\d)\s*\{,\}\s*(?=\d)|(?<=\d),\\!\s*(?=\d)", ","),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\[,;: >]|(?<!\\)~|\\hspace\*?\{[^{}]*\}|\\phantom\{[^{}]*\}", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"(?<![a-zA-Z])\{([:.;!])\}", r"\1"),
    (r"\\(?:text|math)?color\s*\{[^{}]*\}", ""),
    (r"(?<=[a-zA-Z])\$(\^[^$]*)\$", r"\1"),  # \text{cm$^2$}
    *[(rf"\\(?:{STYLES})\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", r" \1 ")] * 3,  # inside each other
    (r"(?<=\d)\s*\{([^\W\d_][^{}]*|\s[^{}]*)\}", r" \1"),
    (r"\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\(sqrt|pmod)\s*([0-9a-zA-Z])", r"\\\1{\2}"),
    (r"\{([^{}]+?)\s*\\choose\s*([^{}]+)\}", r"\\binom{\1}{\2}"),
    (r"(?<=\.)(\d*)\\(?:bar|dot)\s*\{?(\d+)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?",
     r"\1\\overline{\2\3\4}"),
    (r"(?<=\d)\s*(?:\^\s*\{?\s*)?(?:st|nd|rd|th)(?![a-zA-Z])\s*\}?", ""),
    (r"^\s*(\d+)\s+to\s+(\d+)\s*$", r"\1:\2"),
    (r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\degree(?![a-zA-Z])", " degrees "),
    (r"(?<=\d)\s*\^\s*\{?\s*o(?![a-zA-Z])\s*\}?", " degrees "),
    (r"\\%|%", " % "),
    (r"\\([$#&_])", r"\1"),
    (r"\\(leq|geq|neq)(?![a-zA-Z])", lambda m: "\\" + m[1][:-1]),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
    (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
    ("\N{SQUARE ROOT}\\s*(\\d+|[a-zA-Z])", r"\\sqrt{\1}"),
    (r"(?<![a-zA-Z\\])infinity(?![a-zA-Z])", r"\\infty"),
    (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
    (r"(?<=[\w)}])\s*\*\*\s*(?=[\w({-])", "^"),
    (r"\\begin\{cases\}([^&]*)\\end\{cases\}", lambda m: m[1].replace(r"\\", ", ")),
    (r"\s+", " "),
    (r"^\s*\(\s*([+-][\d.,/]+)\s*\)\s*$", r"\1"),
    (r"^\s*\\\{\s*[a-zA-Z]\s*(?:\\mid|\\vert|\||:)(?![a-zA-Z])(.*)\\\}\s*$", r"\1"),
)]
LEAD = re.compile(  # what says that an answer follows, and how exact it is
    r"^(?:(?:so |the |my )*(?:final |correct )?answer(?:\s+is|\s*[:=])\s*|approximately\s|about\s|"
    r"approx\.?\s|\\(?:approx|therefore|Rightarrow)(?![a-zA-Z])|[=:])\s*", re.IGNORECASE)


def raised(text: str) -> str:
    """A text with ^{2} for a small 2."""
    return SUPERSCRIPTS.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)


def tidy(text: str) -> str:
    """One way to write what is written in several: LaTeX without style, at most LONGEST long."""
    text = SMALL_FRACTIONS.sub(lambda m: f" {m[0]}", raised(text))
    text = unicodedata.normalize("NFKC", text.translate(CHARACTERS)).translate(CHARACTERS)
    text = re.sub(r"^\s*(?:\\\[|\\\(|\$\$)|(?:\\\]|\\\)|\$\$)\s*$", "", text).strip()
    if len(text) > 2 and text[0] == text[-1] == "$" and text[-2] != "\\":
        text = text[1:-1]
    for pattern, new in TIDY:
        text = pattern.sub(new, text)
    for _ in range(3):
        text = LEAD.sub("", re.sub(
            r"(?:(?<!\\)[.,;:]|\\)+$|^(?:\*\*|[\"'`])|(?:\*\*|(?<!\d)[\"']|`)$", "", text.strip()))
        if re.fullmatch(r"\{[^{}]*\}", text):
            text = text[1:-1]
    return text.strip()


def compact(text: str) -> str:
    """A text without dollars, and without spaces but between digits."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|\$", "", text)


def is_word(text: str) -> bool:
    """Whether letters in a row are rather a word than a product of variables."""
    return len(text) > 3 or (len(text) > 1 and bool(re.search("[eiouEIOU]", text)))


# 2. Its number and unit ---------------------------------------------------------------------------

DIGITS = r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
CURRENCIES = {"$": "dollar", "\N{EURO SIGN}": "euro", "\N{POUND SIGN}": "pound",
              "\N{YEN SIGN}": "yen", "\N{INDIAN RUPEE SIGN}": "rupee", "\N{CENT SIGN}": "cent"}
NUMBER = re.compile(rf"""
    (?P<sign>[+-]?)\s*
    (?P<currency>(?:US|USD|EUR|GBP|Rs\.?)?\s*[{re.escape("".join(CURRENCIES))}]?)\s*
    (?P<inner>[+-]?)\s*
    (?: (?P<power>10\s*\^\s*\{{?\s*[+-]?\d{{1,3}}(?!\d)(?:\s*\}})?)
      | (?:(?P<whole>\d+)(?:\s*(?=\\frac)|\s+(?=\d+\s*/)))?
        (?: \\frac\s*\{{\s*(?P<above>[+-]?(?:{DIGITS}))\s*\}}\s*\{{\s*(?P<below>{DIGITS})\s*\}}
          | (?P<over>{DIGITS})\s*/\s*(?P<under>{DIGITS}) )
      | (?P<start>\d*)\.(?P<fixed>\d*)\\overline\s*\{{(?P<period>\d+)\}}
      | (?P<clock>\d+(?:\s*:\s*\d+)+)
      | (?P<plain>{DIGITS})
        (?: \s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{{?\s*(?P<ten>[+-]?\d{{1,3}})(?!\d)(?:\s*\}})?
          | [eE](?P<e>[+-]?\d{{1,3}})(?![\d\w]) )?
    )
    (?:_\s*\{{?\s*(?P<base>[2-9]|[1-3]\d)(?!\d)\s*\}}?)?
    (?P<unit>.*)""", re.VERBOSE | re.DOTALL)
MULTIPLES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
             "trillion": 10**12, "dozen": 12}
UNITS = {name: line.split()[0] for line in """
dollar dollars usd us$ buck bucks; cent cents; euro euros eur; pound pounds lb lbs gbp; yen
rupee rupees rs; % percent percentage pct; degree degrees deg; radian radians rad
m meter meters metre metres; cm centimeter centimeters centimetre centimetres
mm millimeter millimeters millimetre millimetres; km kilometer kilometers kilometre kilometres
kg kilogram kilograms kilo kilos; g gram grams gm; mg milligram milligrams
l liter liters litre litres; ml milliliter milliliters millilitre millilitres
ft foot feet; in inch inches; mi mile miles; yd yard yards; oz ounce ounces; gal gallon gallons
h hour hours hr hrs; min minute minutes mins; s second seconds sec secs; ms millisecond milliseconds
day days; week weeks; month months; year years yr yrs; am; pm; mph; kmh kph kmph; hz hertz
man men; woman women; child children; person people persons; unit units; time times
n newton newtons; j joule joules; w watt watts; v volt volts; k kelvin; c celsius; f fahrenheit
sq square; cu cubic; per
""".replace(";", "\n").strip().splitlines() for name in line.split()}
SHORTHAND = {"mph": ["mi", "per", "h"], "kmh": ["km", "per", "h"]}
# fmt: off
NO_UNITS = {  # behind a number these make another number of it, or leave it open
    "and", "or", "to", "than", "not", "no", "least", "most", "plus", "minus",
    "over", "under", "above", "below", "half", "quarter", "third", "squared", "cubed", "divided",
    "multiplied", "sin", "cos", "tan", "log", "exp", "mod", "between", "through", "point", "if",
    "when", "for", "but", "with", "either", "except", "remainder",
}
# fmt: on


@dataclass(frozen=True)
class Quantity:
    """A number, exactly, or the parts of a time or ratio; and its unit in canonical words."""

    value: Fraction | tuple[int, ...]
    unit: tuple[str, ...] = ()


def quantity(text: str) -> Quantity | None:
    """The one number that a tidy text is, with its unit; None if it is anything else."""
    if not (found := NUMBER.fullmatch(text)) or (found["sign"] and found["inner"]):
        return None
    sign = -1 if "-" in (found["sign"], found["inner"]) else 1
    unit = unit_of(found["unit"])
    if unit is None:
        return None
    factor, unit = unit
    if currency := found["currency"].replace(" ", ""):
        symbol = CURRENCIES.get(currency[-1]) or UNITS.get(currency.casefold().strip("."))
        if symbol is None:
            return None
        unit = (symbol, *[word for word in unit if word != symbol])
    if found["base"]:
        unit = (*unit, f"base {int(found['base'])}")
    if found["clock"]:
        return Quantity(tuple(map(int, found["clock"].split(":"))), unit) if sign > 0 else None
    try:
        value = value_of(found)
    except (ZeroDivisionError, ValueError):  # ValueError: thousands of digits
        return None
    return None if value is None else Quantity(sign * value * factor, unit)


def value_of(found: re.Match) -> Fraction | None:
    """The number in a match of NUMBER without its sign; None for a product that looks mixed."""

    def read(digits: str) -> Fraction:
        return Fraction(re.sub("[, ]", "", digits).removesuffix("."))

    if found["power"]:
        return Fraction(10) ** int(re.sub(r"[^\d+-]", "", found["power"].partition("^")[2]))
    if above := found["above"] or found["over"]:
        value = read(above) / read(found["below"] or found["under"])
        if found["whole"] is None:
            return value
        return read(found["whole"]) + value if 0 <= value < 1 else None
    if period := found["period"]:
        start, fixed = found["start"] or "0", found["fixed"]
        repeated = Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
        return read(f"{start}.{fixed or 0}") + repeated
    return read(found["plain"]) * Fraction(10) ** int(found["ten"] or found["e"] or 0)


UNIT_TOKENS = re.compile(r"[^\W\d_]+(?:[.'-][^\W\d_]+)*\.?|%|/|[" + re.escape("".join(CURRENCIES))
                         + r"]|\^\s*\{?\s*-?\d\s*\}?|\\cdot|\s+|-(?=\s*[^\W\d_])")


def unit_of(text: str) -> tuple[int, tuple[str, ...]] | None:
    """What a unit multiplies by (dozen: 12), and its words; None if the text is no unit.

    Letters behind a number are units if they are known as such, or are a word: 3x is not 3.
    """
    tokens, end, spaced = [], 0, False
    text = re.sub(r"^\s+\(([^()]*)\)$", r" \1", text)
    for token in UNIT_TOKENS.finditer(text):
        if token.start() != end:
            return None
        end = token.end()
        word = re.sub(r"[\s{}]", "", token[0]).casefold().replace(".", "")
        if word in ("", "\\cdot", "-", "of", "the", "a", "an"):
            spaced = True
        elif word.startswith("^") and tokens:
            tokens[-1] += word
        elif word in CURRENCIES:
            tokens.append(CURRENCIES[word])
        elif word in ("/", "%"):
            tokens.append({"/": "per"}.get(word, word))
        elif word.startswith("^") or word in NO_UNITS:
            return None
        elif not tokens and not spaced and (len(word) < 2 or word not in UNITS | MULTIPLES):
            return None  # 5m may be a product; 5 m and 5cm are lengths
        elif word not in UNITS and word not in MULTIPLES and (len(word) < 3 or not is_word(word)):
            return None
        else:
            tokens.append(word)
    if end != len(text):
        return None
    factor = 1
    while tokens and tokens[0].removesuffix("s") in MULTIPLES:
        factor *= MULTIPLES[tokens.pop(0).removesuffix("s")]
    words = []
    for token in tokens:
        name, caret, power = token.partition("^")
        name = UNITS.get(name, name.removesuffix("s") if len(name) > 3 else name)
        if words and words[-1] in ("sq", "cu"):  # square feet are ft^2
            caret, power = "^", {"sq": "2", "cu": "3"}[words.pop()]
        words += SHORTHAND.get(name, [name + caret + power])
    return factor, tuple(words)


def same_unit(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether units agree; one that is left out does, and red apples are apples."""
    if not one or not other or one == other:
        return True
    fewer, more = sorted((set(one), set(other)), key=len)
    return fewer <= more and ("per" not in more or fewer <= set(CURRENCIES.values()))


def same_quantity(given: Quantity, reference: Quantity) -> bool:
    """Whether two quantities are equal, exactly; 50 % is 50 without its unit, and 0.5."""
    if same_unit(given.unit, reference.unit) and given.value == reference.value:
        return True
    if isinstance(given.value, tuple) or isinstance(reference.value, tuple):
        return False
    percents = [q for q in (given, reference) if q.unit == ("%",)]
    bare = [q for q in (given, reference) if not q.unit]
    return len(percents) == len(bare) == 1 and percents[0].value / 100 == bare[0].value
