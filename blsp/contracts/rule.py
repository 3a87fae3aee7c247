"""One expectation as Great Expectations takes it, with what reports, pages and messages say about it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation


def rule(
    kind: "type[Expectation]",
    name: str,
    description: str,
    remedy: str,
    severity: Literal["critical", "warning"] = "critical",
    in_full: bool = False,
    shows: Sequence[str] = (),
    drops_of: str | None = None,
    **arguments: Any,
) -> "Expectation":
    """The expectation, of this kind and with its arguments.

    `in_full`: judged on every row, not on a sample. `shows`: columns that examples have besides. `drops_of`: the
    source or behaviour whose dropped rows are shown, by reason, whatever the verdict.
    """
    meta = {"name": name, "remedy": remedy, "in_full": in_full, "shows": list(shows), "drops_of": drops_of}
    return kind(description=description, notes=remedy, meta=meta, severity=severity, **arguments)
