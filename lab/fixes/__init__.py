"""Published fixes of self-distillation as rows, one function or less each, with their controls.

    targets      what the teacher says: T, a target of several contexts; C, another context
    weights      W, weights per token
    advantages   M, advantages times what the teacher says; D, plus it; S, who samples
    routing      R, by outcome or pass rate; gates of a schedule

Every row of FIXES has its formula, its source, where it differs from the paper, and the control
that shares everything but its idea. Importing this adds their functions to the core's tables.
"""

import lab.extra_losses  # noqa: F401 (its rows are used here)
from lab.fixes import advantages, routing, targets, weights
from lab.fixes.row import CombinedTeacher, Fix, Recipe

FIXES: dict[str, Fix] = targets.FIXES | weights.FIXES | advantages.FIXES | routing.FIXES

__all__ = ["FIXES", "CombinedTeacher", "Fix", "Recipe"]
