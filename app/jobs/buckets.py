"""A job's curves in few points, made in SQL so that spikes survive."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from app.tables import Metric


def buckets(of_job: Sequence[ColumnElement[bool]], points: int) -> Select[Any]:
    """Select the metrics of a job in at most so many buckets of steps, by name and step.

    A shorter run has a bucket for each step. A bucket has the columns name, first and last (steps),
    low, high and mean (values), and seen (how many values).
    """
    span = (
        select(func.min(Metric.step).label("low"), (func.max(Metric.step) + 1).label("high"))
        .where(*of_job)
        .cte("span")
        .prefix_with("MATERIALIZED")  # inlined, it would be computed again for every row
    )
    bucket = func.width_bucket(Metric.step, span.c.low, span.c.high, points)
    return (
        select(
            Metric.name,
            func.min(Metric.step).label("first"),
            func.max(Metric.step).label("last"),
            func.min(Metric.value).label("low"),
            func.max(Metric.value).label("high"),
            func.avg(Metric.value).label("mean"),
            func.count().label("seen"),
        )
        .join(span, span.c.low.is_not(None))
        .where(*of_job)
        .group_by(Metric.name, bucket)
        .order_by(Metric.name, bucket)
    )
