r"""Verdicts: pairs of what stands in the box and the answer of the data set, right and wrong.

The tables are lines `given | reference`. They are the place for a new kind of answer.
"""

import os
import signal
import sys
import threading
import time

import pytest

from lab import graders, verifier
from lab.graders import Cut, reward_boxed, reward_exact, reward_last_number

RIGHT = r"""
18 | 18
\$18 | 18
$18 | 18
18\text{ dollars} | 18
18 | \$18
\$1,234.50 | 1234.5
18\,\text{€} | €18
\$5\text{ million} | 5000000
35 cm | 35
35\,\mathrm{cm} | 35 centimeters
35cm | 35
12\text{ cm}^2 | 12 square centimeters
60 mph | 60 miles per hour
18\text{ red apples} | 18 apples
30^{\circ} | 30
30° | 30 degrees
1{,}234 | 1234
1\,234 | 1,234
1,\!234{,}567 | 1234567
50\% | 50%
50 | 50\%
50\text{ percent} | 0.5
MINUS5 | -5
+5 | 5
FULLWIDTH5 | 5
x=5 | 5
5 | x = 5
f(x) = x^2 | x^2
2+3=5 | 5
\dfrac12 | \frac{1}{2}
1/2 | \frac{1}{2}
.5 | \tfrac{1}{2}
\frac{-1}{2} | -1/2
\frac24 | 0.5
1\frac{1}{2} | 1.5
1 1/2 | \frac32
2½ | 5/2
0.\overline{3} | \frac13
72. | 72.00
$72$ | 72
\(\mathbf{72}\) | 72
{72}\text{.} | 72
1.5\times10^{3} | 1500
1e3 | 10^3
\text{(B)} | B
(b) 12 | (B)
\text{Option B} | B
\text{Monday} | monday
Yes. | \text{yes}
\left( 1, 2.0 \right) | (1,2)
(x,y)=(1,2) | (1,2)
\{2,1\} | \{1,2\}
x=1\text{ or }x=2 | 2, 1
y=2, x=1 | x=1, y=2
[0,1) | \left[0, 1\right)
12:30 | 12 : 30
2*x | 2x
1+x² | x^2+1
x(x+1) | x^2+x
y=2x+1 | 2x+1
√12 | 2\sqrt{3}
\frac{\sqrt3}{3} | \frac{1}{\sqrt{3}}
36\pi\text{ cm}^2 | 36π
(\sqrt{8}, 1) | (2\sqrt{2}, 1)
(2,\infty) | x>2
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
2^{10} | 1024
\boxed{7} | 7
5\ \mathrm{cm^{2}} | 5 cm^2
5\text{ cm$^{2}$} | 5 square centimeters
9.8\,\mathrm{m\,s^{-2}} | 9.8
5\ {\rm cm} | 5 cm
10\sqrt{3}\text{ m} | 10\sqrt{3}
180^\text{o} | 180^\circ
3{:}45 | 3:45
\textcolor{red}{5} | 5
0.\dot{3} | \frac13
0.1\bar{6} | 1/6
{10 \choose 3} | 120
n \equiv 1 \pmod 3 | n\equiv 1\pmod{3}
(r,\theta) = (2, \pi) | (2,\pi)
f^{-1}(x) = \frac{x-1}{2} | \frac{x-1}{2}
|AB| = 5 | 5
\overline{AB} = 5 | 5
[ABC]=12 | 12
\vec{v} = (1,2) | (1,2)
\text{Total cost} = \$12 | 12
\text{Profit: } \$12 | 12
\int_0^1 x\,dx = \frac12 | \frac12
\frac{1}{3}+\frac{1}{6}=\frac{1}{2} | \frac12
12\text{ more apples} | 12 apples
45\% \text{ of the students} | 45\%
12^{\text{th}} | 12
July 4th | July 4
4\text{ to }3 | 4:3
0,\pm1 | -1,0,1
\frac{-1+\sqrt{5}}{2}, \frac{-1-\sqrt{5}}{2} | \frac{-1\pm\sqrt{5}}{2}
x<-1\text{ or }x>1 | (-\infty,-1)\cup(1,\infty)
(-\infty,-2] \cup [3,\infty) | x\leq -2\text{ or }x\ge 3
\begin{cases}x=1\\y=2\end{cases} | x=1,y=2
x \lt 2 | (-\infty,2)
"""
WRONG = r"""
19 | 18
18.5 | 18
-18 | 18
18 euros | \$18
18 cents | \$18
35 m | 35 cm
12 cm^2 | 12 cm
18 oranges | 18 apples
5 million | 5
5 | 5 million
1.234 | 1,234
1, 234 | 1234
5\% | 50\%
0.5 | 50
MINUS5 | 5
y=5 | x=5
x+y=5 | 5
x>5 | 5
2/1 | \frac{1}{2}
12 | \frac12
0.333333 | \frac{1}{3}
3.141593 | \pi
0.0000002 | 0.0000001
1 1/2 | 1
1 1/2 | 11/2
2\frac{1}{2} | 1
1e5 | 1
2+3 | 5
3\cdot 7 + 4 | 25
\max(1,2,3) | 3
C | B
(A) or (B) | B
\text{tea} | eat
cat | act
no | yes
(2,1) | (1,2)
\{1,2\} | (1,2)
(0,1) | [0,1)
1,2,3 | 1,2
18 or 19 | 18
18\text{ to }19 | 18
x=2, y=1 | x=1, y=2
12.3 | 12:30
1.5 | 3:2
1 2 | 3
1 2 | 12
3t | 3
3xy | 3
2 abc | 2
42\ldots | 42
101_3 | 101_2
x^3 | x^2
x-1 | 1-x
2\sqrt{3} | 3\sqrt{2}
36\pi cm | 36\pi m
\begin{pmatrix}1&2\\4&3\end{pmatrix} | \begin{pmatrix}1&2\\3&4\end{pmatrix}
18! | 18
\text{not } 18 | 18
 | 18
\text{} | 18
9^{5000} | 5
5\ \mathrm{cm^{2}} | 5\ \mathrm{cm^{3}}
10\sqrt{3}\text{ m} | 10\sqrt{3}\text{ cm}
3{:}45 | 345
0.\dot{3} | 0.3
5'6" | 56
12\text{ more} | 12\text{ less}
12\text{ or more} | 12
\text{Total: }12 | 21
[ABC]=12 | [ABD]=12
12^{\text{th}} | 1
4\text{ to }3 | 3:4
4\text{ to }3 | 4
\pm 3 | 3
3 | \pm 3
0,\pm1 | 0,1
x<-1\text{ or }x>1 | (-\infty,-1]\cup(1,\infty)
x<-1\text{ or }y>1 | (-\infty,-1)\cup(1,\infty)
x<-1\text{ and }x>1 | (-\infty,-1)\cup(1,\infty)
\begin{cases}x=1\\y=2\end{cases} | x=2,y=1
"""


def pairs(table: str) -> list[list[str]]:
    table = table.replace("MINUS", "\N{MINUS SIGN}")
    table = table.replace("FULLWIDTH5", "\N{FULLWIDTH DIGIT FIVE}")
    table = table.replace("NARROW", "\N{NARROW NO-BREAK SPACE}")
    return [line.split(" | ") for line in table.splitlines() if line]


@pytest.mark.parametrize("right, table", [(1.0, RIGHT), (0.0, WRONG)], ids=["right", "wrong"])
def test_a_box_is_judged_by_what_it_says(right, table):
    """Catches right answers that earn 0 because they are written otherwise, and the reverse."""
    assert len(pairs(table)) >= 60
    found = {(given, reference): reward_boxed(f"So \\boxed{{{given}}}, I think.", reference)
             for given, reference in pairs(table)}
    assert [pair for pair, reward in found.items() if reward != right] == []


LAST_RIGHT = r"""
That is 1,200. | 1200
a half, 1/2 | 1/2
so 0.5 | \frac{1}{2}
\boxed{\frac{1}{2}} | 1/2
3 1/2 | 7/2
1{,}234 | 1234
-\$7 | -7
1e5 | 100000
10^5 | 1e5
5 million | 5 million
18 cm^2 | 18 cm
it is 5! | 5
72 dollars | $72
18% | 18%
Step 3: 72 | 72
1NARROW234 | 1234
1'234 | 1234
2½ | 5/2
\frac {1} {2} | 1/2
1.5x10³ | 1500
10**3 | 1000
5 m² | 5
(-3) | (-3)
"""
LAST_WRONG = r"""
3/2 | 1/2
3/2 | 2
1/3 | 3
1e5 | 1
1e99999 | 1
10^5 | 5
12:30 | 30
3/4/2024 | 2024
1.2.3 | 3
\frac{1}{2} | 2
18 cm^2 | 2
5 million | 5
5/0 | 0
2024-01-05 | 5
3 : 4 | 4
2³ | 3
"""


@pytest.mark.parametrize("right, table", [(1.0, LAST_RIGHT), (0.0, LAST_WRONG)], ids=str)
def test_the_last_number_is_what_it_is(right, table):
    """Catches 3/2 taken for 2 and for 1/2, 1e5 for 1, minutes for an answer."""
    found = {(given, reference): reward_last_number(given, reference)
             for given, reference in pairs(table)}
    assert [pair for pair, reward in found.items() if reward != right] == []


@pytest.mark.parametrize("answer", [
    "3,4", "12:30", "3:2", "5 or 6", "(3,4)", "10-12", "2024-01-01", "2x", "5+3", "1.2.3", "5 6",
    "12,34", "1/0", "101_2", "1e999999", "9" * 5000, "5-", "5\N{PLUS-MINUS SIGN}1",
    "5 feet 6 inches",
])
def test_an_answer_that_is_no_single_number_is_refused(answer):
    """Catches a reference of which one part is graded, so that another answer is right."""
    with pytest.raises(ValueError, match="is no single number; allowed: one such as 72"):
        reward_last_number("1", answer)


# Where the answer stands --------------------------------------------------------------------------


@pytest.mark.parametrize("text, right", [
    (r"<think>\boxed{5}", 0), (r"<think>a</think> \boxed{5}", 1), (r"a</think> \boxed{5}", 1),
    (r"<think>\boxed{5}</think> so", 0), (r"<think>1</think><think> \boxed{5}", 0),
    (r"[THINK] \boxed{5}", 0), (r"[THINK]a[/THINK]\boxed{5}", 1), (Cut(r"\boxed{5}"), 0),
    (r"<Think>\boxed{5}", 0), (r"<|begin_of_thought|>\boxed{5}", 0),
    (r"<|begin_of_thought|>\boxed{5}<|end_of_thought|> so", 0), (r"<scratchpad>\boxed{5}", 0),
])
def test_a_thought_is_no_answer(text, right):
    """Catches a reward for what is cut off, or inside a thought, with any of the rewards."""
    assert reward_boxed(text, "5") == right
    plain = text.replace(r"\boxed{5}", "5")
    for reward in (reward_last_number, reward_exact):
        assert reward(type(text)(plain), "5") == right


@pytest.mark.parametrize("text, expected", [
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed{[0,1)\}", None), (r"\\boxed{5}", "5"),
    (r"\boxed{\boxed{5}}", "5"), (r"\fbox{5}", "5"), (r"} \boxed{5} {", "5"),
    (r"\boxed{a\\{b}}", r"a\\{b}"), (r"\boxed{4} or $\boxed 5$", "5"), (r"\boxed-5.", "-5."),
])
def test_boxes_are_closed_by_their_own_brace(text, expected):
    """Catches braces of a set, or of a line break, that are counted for the box."""
    assert graders.last_boxed(text) == expected


# Bounds -------------------------------------------------------------------------------------------

HOSTILE = {
    "unclosed boxes": "\\boxed{" * 8000, "boxes": "\\boxed{" * 4000 + "}" * 4000,
    "braces": "{" * 56000, "thoughts": "<think>" * 8000, "digits": "\\boxed{" + "9" * 56000 + "}",
    "groups": "1,111" * 11000, "fractions": "1/" * 28000, "points": "1." * 28000,
    "long fraction": "1" * 28000 + "/" + "1" * 28000, "spaces": "\\boxed" + " " * 56000,
    "deep": "\\boxed{" + "{" * 400 + "1" + "}" * 400 + "}", "e": "1e" * 28000,
    "styles": "\\boxed{" + "\\text{" * 140 + "}" * 141, "letters": "\\boxed{7" + "a" * 950 + "}",
    "parentheses": "\\boxed{" + "(" * 400 + "x" + ")" * 400 + "}", "minus": "-" * 56000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_grading_is_linear(case, monkeypatch):
    """Catches a search that begins again at every brace: 56 kB took 17 s."""
    monkeypatch.setattr(graders, "same_formula", lambda *texts: pytest.fail("a parser is asked"))
    start = time.process_time()
    for reward in graders.TEXT_REWARDS.values():
        assert reward(HOSTILE[case], "5") == 0
    assert time.process_time() - start < 0.5


HANDLERS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGALRM", signal.SIGTERM))


def test_a_formula_without_end_is_given_up(tmp_path):
    """Catches a run that hangs on 9^9^9^9, in a thread as well, and signal handlers taken away."""
    before, found = [*map(signal.getsignal, HANDLERS)], []
    code = f"__import__('os').mkdir('{tmp_path}/x')"
    assert not verifier.same_formula(code, "x") and not any(tmp_path.iterdir())
    endless = r"\boxed{9^{9^{9^9}}}"
    thread = threading.Thread(target=lambda: found.append(reward_boxed(endless, "2x")))
    thread.start()
    thread.join(60)
    assert found == [0.0] and [*map(signal.getsignal, HANDLERS)] == before


class Quick(verifier.Worker):
    """Answers true in a process without libraries; never, if asked for the formula stop."""

    command = (sys.executable, "-ISc", "import os, sys, time; input(); print('ready', flush=True)\n"
               "for x in sys.stdin: time.sleep(60 * ('stop' in x)); print('true', flush=True)")


@pytest.fixture
def quick():
    worker = Quick()
    yield worker
    worker.stop()


def test_an_ended_process_is_started_again(quick, monkeypatch):
    """Catches verdicts that are 0 for good after the first one that took too long."""
    assert quick.ask("x", "y")
    first = quick.process
    quick.process.kill()
    quick.process.wait()
    assert quick.ask("x", "y") and quick.process is not first
    with monkeypatch.context() as patch:
        patch.setattr(verifier, "WALL_S", 0.1)
        assert not quick.ask("stop", "y") and quick.process is None
    assert quick.ask("x", "y")


def test_a_signal_while_it_works_does_not_shift_the_verdicts(quick, monkeypatch):
    """Catches Ctrl-C after which every verdict is that of the question before."""
    assert quick.ask("x", "y")
    with monkeypatch.context() as patch:
        patch.setattr(quick, "line", lambda *x: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quick.ask("x", "x")
    assert quick.process is None and quick.ask("x", "y")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_asks_a_process_of_its_own(monkeypatch):
    """Catches two processes that read each other's verdicts from one pipe."""
    monkeypatch.setattr(verifier, "Worker", Quick)
    monkeypatch.setattr(verifier, "WORKERS", {})
    ask = verifier.same_formula.__wrapped__
    assert ask("x", "y") and list(verifier.WORKERS) == [os.getpid()]
    number = os.fork()
    if not number:
        right = ask("x", "y") and list(verifier.WORKERS)[1:] == [os.getpid()]
        verifier.stop_own()
        os._exit(0 if right else 1)
    assert os.waitpid(number, 0)[1] == 0 and ask("x", "y")
    verifier.stop_own()


def test_a_missing_library_is_named(monkeypatch):
    """Catches rewards that are all 0 where math-verify is not installed."""
    monkeypatch.setattr(Quick, "command", (sys.executable, "-ISc", "import math_verify_is_not"))
    with pytest.raises(ValueError, match="--reward boxed: math-verify does not start; allowed"):
        Quick().ask("x", "y")
