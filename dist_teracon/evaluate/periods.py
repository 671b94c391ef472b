"""Which period of a test that has several is scored after a stage (docs/method.md, Evaluation)."""

from __future__ import annotations

from dist_teracon.config.run import EvaluateConfig
from dist_teracon.data.schema import DatasetInfo
from dist_teracon.errors import ConfigError


def check_period(evaluate: EvaluateConfig, info: DatasetInfo, *, where: str) -> None:
    """Check that a data set has the periods that an evaluation asks for.

    Raises:
        ConfigError: it does not.
    """
    if evaluate.period == "present" and not info.test_periods:
        why = "has one test period" if info.split.by == "time" else f"is split by {info.split.by}, which has no times"
        raise ConfigError(
            f"{where}: evaluate.period: 'present' scores all tasks on the test period of the present stage, and data set '{info.name}' "
            f"{why}; prepare it with split: {{by: time, …, test_periods: [DATE, …]}}, or take 'own'"
        )


def period_of(evaluate: EvaluateConfig, info: DatasetInfo, *, task: int, stage: int) -> int | None:
    """Return the test period on which a task is scored after a stage, from 0 on; None where the test has one.

    A stage has the period of its own number; stages beyond the last period have the last one.

    Args:
        evaluate: The configuration.
        info: The data set.
        task, stage: Their places in the run, from 0 on.
    """
    if not info.test_periods:
        return None
    return min(task if evaluate.period == "own" else stage, len(info.test_periods) - 1)
