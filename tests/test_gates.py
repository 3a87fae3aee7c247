import pytest

from blsp.errors import BlspError
from blsp.gates import check_gates, table
from blsp.params import Gate

FIGURES = {"speech.st.bleu": 76.5, "cascade.st.bleu": 90.0, "speech.asr.wer": 0.16, "cascade.asr.wer": 0.07}


@pytest.mark.parametrize(
    ("metric", "gate", "champion", "holds", "margin"),
    [
        ("speech.st.bleu", {"min": 76.5}, None, True, 0.0),
        ("speech.st.bleu", {"min": 77.0}, None, False, -0.5),
        ("speech.asr.wer", {"max": 0.2}, None, True, 0.04),
        ("speech.asr.wer", {"max": 0.1}, None, False, -0.06),
        (
            "speech.st.bleu",
            {"min_ratio_to_cascade": 0.85},
            None,
            True,
            0.0,
        ),  # 0.85 * 90.0 < 76.5 by a rounding
        ("speech.st.bleu", {"min_ratio_to_cascade": 0.9}, None, False, -4.5),
        ("speech.asr.wer", {"max_excess_over_cascade": 0.1}, None, True, 0.01),
        ("speech.asr.wer", {"max_excess_over_cascade": 0.08}, None, False, -0.01),
        ("speech.st.bleu", {"max_drop": 2.0}, 78.0, True, 0.5),
        ("speech.st.bleu", {"max_drop": 2.0}, 79.0, False, -0.5),
        ("speech.asr.wer", {"max_rise": 0.02}, 0.15, True, 0.01),
        ("speech.asr.wer", {"max_rise": 0.02}, 0.13, False, -0.01),
    ],
)
def test_each_kind_of_bound(
    metric: str, gate: dict[str, float], champion: float | None, holds: bool, margin: float
) -> None:
    standing = None if champion is None else {metric: champion}
    (check,) = check_gates({metric: Gate(**gate)}, FIGURES, standing)
    assert check.holds is holds
    assert check.margin == pytest.approx(margin)


def test_without_a_champion_only_its_own_bounds_count() -> None:
    gates = {"speech.st.bleu": Gate(min=70.0, max_drop=2.0)}
    assert [check.source for check in check_gates(gates, FIGURES, None)] == ["min"]


def test_a_complaint_names_figure_value_bound_and_distance() -> None:
    (check,) = check_gates({"speech.asr.wer": Gate(max_excess_over_cascade=0.08)}, FIGURES, None)
    assert check.complaint() == (
        "speech.asr.wer is 0.16, but must be at most 0.15 (cascade (0.07) + 0.08): 0.01 too high"
    )


def test_the_table_has_one_aligned_row_a_check() -> None:
    gates = {"speech.st.bleu": Gate(min=70.0, max=76.0), "speech.asr.wer": Gate(max=0.2)}
    lines = table(check_gates(gates, FIGURES, None)).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["holds", "FAILS", "holds"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("gates", "champion", "message"),
    [
        (
            {"speech.slu.accuracy": Gate(min=0.9)},
            None,
            "needs speech.slu.accuracy, which reports/evaluation.json",
        ),
        ({"speech.st.bleu": Gate(max_drop=1.0)}, {}, "needs speech.st.bleu, which the champion's run"),
        ({"text.asr.wer": Gate(max_excess_over_cascade=0.1)}, None, "only figures of the speech system"),
        ({"speech.st.bleu": Gate()}, None, "promote.gates.speech.st.bleu: bounds nothing"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_an_error_that_names_it(
    gates: dict[str, Gate], champion: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(BlspError, match=message.replace("(", r"\(")):
        check_gates(gates, {**FIGURES, "text.asr.wer": 0.0}, champion)
