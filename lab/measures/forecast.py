"""What a forecast is made of, for both laws: accuracies of all authors before any training."""

from lab.forecast import LAWS, Look, samples_of, table_of
from lab.measures.probe import Settings

GROUP_SIZE = 8  # completions of a problem, among which a sibling is looked for


def measure_forecast(settings: Settings) -> dict[str, dict[str, float] | bool]:
    """`lab.forecast.table_of` fresh problems and of the pool, behind the settings' context.

    own: whether the context is a verdict on the student's own attempt, so that its content is not
    learnt by heart. The number of steps enters later, as the share k of the pool.
    """
    look = Look.at(
        settings.task(), settings.base(), settings.context, group_size=GROUP_SIZE,
        max_new_tokens=settings.max_new_tokens, laws=tuple(LAWS))
    count, seed = settings.eval_problems, settings.seed
    tables = {name: table_of(samples_of(look, split, count, seed))
              for name, split in (("fresh", "fresh"), ("pool", "train"))}
    return tables | {"own": look.own}
