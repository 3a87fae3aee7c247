"""What Great Expectations found, as plain records for reports, pages and messages."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blsp.contracts.expectations import SHOWN_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core.expectation_validation_result import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
    )

EXAMPLES = 5
_SHOWN_CHARS = 80


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One expectation and what was found."""

    table: str
    name: str
    description: str
    remedy: str
    severity: str
    """`critical` (a failure stops the pipeline) or `warning`."""
    success: bool
    observed: str
    unexpected_count: int
    """Rows that are not as expected; some may be tolerated."""
    rows_judged: int
    """Of so many rows these were judged."""
    rows: int
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first such rows: columns by name."""

    @property
    def stops(self) -> bool:
        return not self.success and self.severity == "critical"

    @property
    def in_full(self) -> bool:
        return self.rows_judged == self.rows

    @property
    def judged(self) -> str:
        """On which rows."""
        if self.in_full:
            return f"judged on all {self.rows:,} rows"
        return f"judged on a sample: {self.rows_judged:,} of {self.rows:,} rows"

    def lines(self) -> list[str]:
        """The verdict for a terminal: what was expected, what was found, example rows, the remedy."""
        return [
            f"{self.table}, {self.name} ({self.severity}): {self.description}",
            f"  found: {self.observed}" + ("" if self.in_full else f"; {self.judged}"),
            *(f"    {show_row(row)}" for row in self.examples),
            f"  remedy: {self.remedy}",
        ]


def verdicts_of(results: "ExpectationSuiteValidationResult") -> list[Verdict]:
    """One verdict an expectation of the suite, in the suite's order, once `complete` has seen the results.

    Raises RuntimeError where an expectation could not be judged at all.
    """
    return [_verdict(str(results.suite_name), result) for result in results.results]


def _verdict(table: str, result: "ExpectationValidationResult") -> Verdict:
    config = result.expectation_config
    assert config is not None and config.meta is not None
    fault = _exception(result.exception_info)
    if fault:
        raise RuntimeError(f"{table}, {config.meta['name']}: could not be judged: {fault}")
    found = result.result
    return Verdict(
        table=table,
        name=config.meta["name"],
        description=config.description or "",
        remedy=config.meta["remedy"],
        severity=config.severity.value,
        success=bool(result.success),
        observed=_observed(found),
        rows_judged=found["rows"][0],
        rows=found["rows"][1],
        unexpected_count=int(found.get("unexpected_count") or 0),
        examples=[
            {name: row[name] for name in found["columns"]} for row in found.get("partial_unexpected_index_list") or []
        ],
    )


def _observed(found: dict[str, Any]) -> str:
    if "observed" in found:
        return str(found["observed"])
    if "partial_missing_list" in found:
        missing = sorted(map(str, found["partial_missing_list"]))
        return f"no rows of {', '.join(missing)}" if missing else "as expected"
    rows, unexpected = found["element_count"], found["unexpected_count"]
    if not unexpected:
        return f"as expected in {rows:,} of {rows:,} rows"
    return f"not as expected in {unexpected:,} of {rows:,} rows ({unexpected / rows:.2%})"


def _exception(info: dict[str, Any]) -> str | None:
    # One record, or one for each metric that failed.
    for record in [info] if "raised_exception" in info else info.values():
        if record["raised_exception"]:
            return str(record["exception_message"])
    return None


def complete(results: "ExpectationSuiteValidationResult", rows: "pd.DataFrame", of: int) -> None:
    """Nothing; afterwards `results` says on how many rows of how many it was judged, and shows rows by their columns.

    Asking Great Expectations for columns (`unexpected_index_column_names`) has it look up every unexpected
    row, one value at a time: minutes where 100,000 rows fail.
    """
    for result in results.results:
        config = result.expectation_config
        assert config is not None and config.meta is not None
        # What identifies the row first, what is judged last.
        columns = [*SHOWN_COLUMNS[str(results.suite_name)], *config.meta["shows"], *_judged(result)]
        positions = (result.result.get("partial_unexpected_index_list") or [])[:EXAMPLES]
        shown = rows.loc[positions, list(dict.fromkeys(columns))].to_dict("records")
        result.result["partial_unexpected_index_list"] = [
            {str(name): _plain(value) for name, value in row.items()} for row in shown
        ]
        # What is stored has its keys by alphabet.
        result.result["columns"] = list(dict.fromkeys(columns))
        result.result["rows"] = [len(rows), of]
        if drops_of := config.meta["drops_of"]:
            (row,) = rows[rows.iloc[:, 0] == drops_of].to_dict("records")
            result.result["observed"] = f"of {row['rows_in']:,} dropped: {row['dropped']}"


def _judged(result: "ExpectationValidationResult") -> list[str]:
    kwargs = result.expectation_config.kwargs if result.expectation_config else {}
    columns = [kwargs[name] for name in ("column", "column_A", "column_B") if name in kwargs]
    return columns + list(kwargs.get("column_list", []))


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    # pandas writes NaN for what is missing; JSON has no such number.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_row(row: dict[str, Any]) -> str:
    """The row's values by column on one line, long ones cut."""
    return ", ".join(f"{key} {_show(value)}" for key, value in row.items())


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "missing"
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 1] + "…")
    return str(value)
