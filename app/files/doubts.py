"""What is doubtful in files that are well formed: said by the report on them, and by a run."""

from collections.abc import Sequence

IMBALANCE = 10  # of the most frequent label over the rarest
OVERLAP = (
    "Rows that stand in the validation file, too: what is measured there was partly learned by"
    " heart. Remove them from one of the two."
)


def imbalance(counts: Sequence[tuple[str, int]]) -> str | None:
    """Say that one label stands far more often than another, given all, the most frequent first."""
    (most, many), (least, few) = counts[0], counts[-1]
    if many < IMBALANCE * few:
        return None
    return (
        f"The label {most!r} stands on {many} rows and {least!r} on {few}: a model may learn to"
        " say the former always. Add rows of the latter, and look at F1 beside the accuracy."
    )
