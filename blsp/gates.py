"""Whether figures satisfy the gates of params.yaml, and by how much.

MLflow's own `validate_evaluation_results` does not fit: against a baseline it can only ask for an
improvement (no tolerated drop), it knows no bound relative to another metric of the same run (the cascade),
and it reports a failure as text alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from blsp import markdown
from blsp.errors import BlspError
from blsp.params import Gate

ROUNDING = 1e-9  # 0.85 * 90.0 is not exactly 76.5


@dataclass(frozen=True)
class Check:
    """One bound on one figure."""

    metric: str
    value: float
    bound: float
    lowest: bool
    """Whether `bound` is the lowest value that will do; otherwise it is the highest."""
    source: str
    """Where the bound comes from: `min`, `0.85 x cascade (90)`, `champion (0.97) - 0.02`."""

    @property
    def margin(self) -> float:
        """How far the value is on the right side of the bound; negative on the wrong one."""
        return self.value - self.bound if self.lowest else self.bound - self.value

    @property
    def holds(self) -> bool:
        return self.margin >= -ROUNDING

    def complaint(self) -> str:
        """What is wrong, in words."""
        limit, wrong = ("at least", "low") if self.lowest else ("at most", "high")
        return (
            f"{self.metric} is {self.value:.4g}, but must be {limit} {self.bound:.4g} ({self.source}): "
            f"{-self.margin:.4g} too {wrong}"
        )


def check_gates(
    gates: Mapping[str, Gate], figures: Mapping[str, float], champion: Mapping[str, float] | None
) -> tuple[Check, ...]:
    """Every bound of every gate, held or not. Without a champion, max_drop and max_rise bound nothing.

    Raises BlspError, naming gate and figure, where a figure is missing: a gate that cannot be judged must not
    pass, and a refusal would look like a bad model.
    """
    return tuple(check for metric, gate in gates.items() for check in _checks(metric, gate, figures, champion))


def table(checks: Sequence[Check]) -> str:
    """A Markdown table of all checks, its columns aligned."""
    rows = []
    for check in checks:
        bound = f"{'>=' if check.lowest else '<='} {check.bound:.4g}"
        verdict = "holds" if check.holds else "FAILS"
        rows.append((check.metric, f"{check.value:.4g}", bound, f"{check.margin:+.4g}", check.source, verdict))
    return markdown.table(("gate", "value", "bound", "margin", "from", ""), rows)


def _checks(
    metric: str, gate: Gate, figures: Mapping[str, float], champion: Mapping[str, float] | None
) -> Iterator[Check]:
    key = f"promote.gates.{metric}"
    if not gate.model_fields_set:
        raise BlspError(f"{key}: bounds nothing; give it one of {', '.join(Gate.model_fields)}")
    value = _figure(figures, metric, key, "reports/evaluation.json")
    if gate.min is not None:
        yield Check(metric, value, gate.min, True, "min")
    if gate.max is not None:
        yield Check(metric, value, gate.max, False, "max")
    if gate.min_ratio_to_cascade is not None or gate.max_excess_over_cascade is not None:
        cascade = _figure(figures, _of_cascade(metric, key), key, "reports/evaluation.json")
        if (ratio := gate.min_ratio_to_cascade) is not None:
            yield Check(metric, value, ratio * cascade, True, f"{ratio:g} x cascade ({cascade:.4g})")
        if (excess := gate.max_excess_over_cascade) is not None:
            yield Check(metric, value, cascade + excess, False, f"cascade ({cascade:.4g}) + {excess:g}")
    if champion is not None and (gate.max_drop is not None or gate.max_rise is not None):
        former = _figure(champion, metric, key, "the champion's run in MLflow")
        if (drop := gate.max_drop) is not None:
            yield Check(metric, value, former - drop, True, f"champion ({former:.4g}) - {drop:g}")
        if (rise := gate.max_rise) is not None:
            yield Check(metric, value, former + rise, False, f"champion ({former:.4g}) + {rise:g}")


def _of_cascade(metric: str, key: str) -> str:
    system, _, rest = metric.partition(".")
    if system != "speech":
        raise BlspError(f"{key}: only figures of the speech system have a cascade to be compared with")
    return f"cascade.{rest}"


def _figure(figures: Mapping[str, float], metric: str, key: str, place: str) -> float:
    if metric not in figures:
        values = ", ".join(sorted(name for name in figures if not name.endswith((".low", ".high"))))
        raise BlspError(f"{key}: needs {metric}, which {place} does not have; it has {values or 'none'}")
    return figures[metric]
