"""What a file of rows is like, for a base model: lengths, labels, repeats, and what to do."""

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from app.files.doubts import OVERLAP, imbalance
from app.files.formats import RowFormat
from app.files.lint import FIRST_LINES, Finding, Lint, Tally
from app.files.parse import Row
from app.files.rows import RowChecker
from app.files.tokens import TokenCounter
from app.jobs.compatible import LEARNED_FORMATS
from app.models.catalog import BaseModel
from app.tables import Json

REMEMBERED_ROWS = 1 << 20  # about 110 MiB while a report is made
MOST_COUNTED = 50_000  # rows whose tokens are counted, evenly spaced over the file
MOST_LENGTHS = 512  # different ones that are kept
MOST_LABELS = 1000
LONGEST_LABEL = 100
SHOWN_LABELS = 20


class Survey:
    """Takes a file piece by piece; `report` reads it once it is finished.

    `rows` is how many rows the file has, if that is known; `validation` is a finished survey.
    """

    def __init__(
        self, base: BaseModel | None, *, rows: int, validation: "Survey | None" = None
    ) -> None:
        self.base, self.validation = base, validation
        self.tokens = TokenCounter(base)
        self.lengths, self.reads, self.learned = array("L"), array("L"), array("L")
        self.truncated, self.dropped, self.overlap = Tally(), Tally(), Tally()
        self.unknown_labels = Tally()
        self.labels: Counter[str] = Counter()
        self.stride = max(1, math.ceil(rows / MOST_COUNTED))
        self.lint = Lint(remembered=REMEMBERED_ROWS)
        self.checker = RowChecker(self.lint, self._see)
        self.feed = self.checker.feed
        self.finish = self.checker.finish

    @property
    def format(self) -> RowFormat | None:
        return self.checker.format

    def _see(self, number: int, line: bytes, row: Row) -> None:
        # What an episode is told is read by its environment, not by the model.
        if self.format != "episode" and (self.checker.rows - 1) % self.stride == 0:
            self._see_length(number, row)
        if self.format == "classification":
            self._see_label(str(row["label"]))
        if self.validation is not None and self.validation.lint.knows(line):
            self.overlap.add(number)

    def _see_label(self, label: str) -> None:
        name = label[:LONGEST_LABEL].replace("\0", "\ufffd")  # PostgreSQL's JSON holds no NUL
        if len(self.labels) < MOST_LABELS or name in self.labels:
            self.labels[name] += 1

    def _see_length(self, number: int, row: Row) -> None:
        assert self.format is not None
        length = self.tokens.measure(row, self.format)
        self.lengths.append(length.tokens)
        self.reads.append(length.read)
        self.learned.append(length.learned_from)
        limit = self.tokens.max_length
        if limit is not None and length.tokens > limit:
            self.truncated.add(number)
            if not length.answered:
                self.dropped.add(number)


def report(survey: Survey) -> Json:
    """Return what a finished survey found, as JSON."""
    unsuited = list(_suits(survey))
    findings = [*_problems(survey), *unsuited, *([] if unsuited else _cut(survey))]
    findings += [*_labels(survey), *_overlap(survey), *survey.lint.findings()]
    severities = ("error", "warn", "info")
    findings.sort(key=lambda finding: severities.index(finding.severity))
    common = survey.labels.most_common(SHOWN_LABELS)
    return {
        "rows": survey.checker.rows,
        "format": survey.format,
        "tokens": _tokens(survey),
        "labels": [{"label": label, "rows": rows} for label, rows in common],
        "findings": [finding.as_json() for finding in findings],
    }


def _tokens(survey: Survey) -> Json | None:
    lengths = sorted(survey.lengths)
    if not lengths:
        return None
    return {
        "estimated": survey.tokens.estimates(survey.format),
        "counted_rows": len(lengths),
        "min": lengths[0],
        "median": lengths[len(lengths) // 2],
        "p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
        "max": lengths[-1],
        "context_length": survey.base.context_length if survey.base else None,
        "max_length": survey.tokens.max_length,
        "truncated": survey.truncated.count,
        "dropped": survey.dropped.count,
        # Not on the wire: what an estimate counts tokens by, wherever rows are cut.
        "lengths": sketch(survey.lengths),
        "read": sketch(survey.reads),
        "learned_from": sketch(survey.learned),
    }


def sketch(values: Sequence[int]) -> list[list[int]]:
    """Return numbers as [number, how often]: each where they are few, else the means of runs."""
    counts = sorted(Counter(values).items())
    if len(counts) <= MOST_LENGTHS:
        return [list(pair) for pair in counts]
    ordered = sorted(values)
    cuts = [len(ordered) * place // MOST_LENGTHS for place in range(MOST_LENGTHS + 1)]
    runs = [ordered[start:stop] for start, stop in pairwise(cuts)]
    return [[round(sum(run) / len(run)), len(run)] for run in runs]


def _problems(survey: Survey) -> Iterator[Finding]:
    problems = survey.checker.problems
    if problems:
        numbers = [problem.partition(":")[0].removeprefix("line ") for problem in problems]
        lines = [int(number) for number in numbers if number.isdecimal()][:FIRST_LINES]
        yield Finding("invalid_rows", "error", len(problems), lines, "; ".join(problems))


def _suits(survey: Survey) -> Iterator[Finding]:
    base, rows = survey.base, survey.checker.rows
    if base is not None and survey.format not in (suited := LEARNED_FORMATS[base.task]):
        message = (
            f"{base.name} is a {base.task} model and learns from {' or '.join(suited)} rows;"
            f" the file holds {survey.format} rows. Choose another base, or convert the rows."
        )
        yield Finding("format_unsuited", "error", rows, [], message)
    valid = survey.validation
    if valid is not None and valid.format != survey.format:
        message = (
            f"The training file holds {survey.format} rows and the validation file {valid.format}"
            " rows. Convert one of them."
        )
        yield Finding("formats_differ", "error", valid.checker.rows, [], message)


def _cut(survey: Survey) -> Iterator[Finding]:
    limit = survey.tokens.max_length
    about = " by estimate" if survey.tokens.estimates(survey.format) else ""
    more = f"{_raised(survey)}." + (
        "" if survey.stride == 1 else f" One row in {survey.stride} was measured."
    )
    yield from survey.dropped.finding(
        "rows_dropped",
        "error" if survey.dropped.count == len(survey.lengths) else "warn",
        f"Rows that keep no answer within {limit} tokens{about}: they will be left out. Shorten"
        f" what comes before the answer{more}",
    )
    if survey.format == "prompt_only":  # one is left out, or whole
        return
    yield from survey.truncated.finding(
        "rows_truncated",
        "warn",
        f"Rows longer than {limit} tokens{about}: they will be cut at the end. Shorten them{more}",
    )


def _raised(survey: Survey) -> str:
    """Return the advice to let rows be longer, where the base can."""
    context = survey.base.context_length if survey.base else 0
    longer = survey.tokens.max_length is not None and context > survey.tokens.max_length
    return f", or raise training.max_length, up to {context}" if longer else ""


def _labels(survey: Survey) -> Iterator[Finding]:
    counts = survey.labels.most_common()
    if not counts:
        return
    most, many = counts[0]
    if len(counts) == 1:
        message = f"Every row has the label {most!r}; a classifier needs at least two."
        yield Finding("one_label", "error", many, [], message)
    elif (uneven := imbalance(counts)) is not None:
        yield Finding("label_imbalance", "warn", many, [], uneven)
    valid = survey.validation
    if valid is not None and len(counts) < MOST_LABELS:
        unknown = {
            label: rows for label, rows in valid.labels.items() if label not in survey.labels
        }
        if unknown:
            message = (
                f"The validation file has labels that no training row has, such as"
                f" {min(unknown)!r}. Remove those rows, or add some to the training file."
            )
            yield Finding("unknown_labels", "error", sum(unknown.values()), [], message)


def _overlap(survey: Survey) -> Iterator[Finding]:
    yield from survey.overlap.finding("validation_overlap", "warn", OVERLAP)
