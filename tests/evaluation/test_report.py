"""Tables of many tasks: what training heard, and below it what it never did."""

from blsp.evaluation.report import UNHEARD, table, task_tables

TASKS = [
    {"name": "asr", "metric": "wer", "heard": True},
    {"name": "asr_de", "metric": "wer", "heard": False},
    {"name": "slu", "metric": "accuracy", "heard": True},
]


def tables(tasks):
    return task_tables("system", ["speech"], tasks, lambda row, task: f"{row} on {task['name']}")


def test_tasks_in_languages_never_heard_have_a_table_of_their_own():
    first, said, second = tables(TASKS).split("\n\n")
    assert [line.split("|")[1:-1] for line in first.splitlines()[::2]] == [
        [" system ", " asr (wer)     ", " slu (accuracy) "],
        [" speech ", " speech on asr ", " speech on slu  "],
    ]
    assert said == UNHEARD and "asr_de (wer)" in second and "speech on asr_de" in second and "slu" not in second


def test_where_training_heard_all_or_none_there_is_one_table():
    assert tables(TASKS[::2]).count("| system") == 1 and UNHEARD not in tables(TASKS[::2])
    assert tables(TASKS[1:2]).startswith(UNHEARD)


def test_systems_stand_in_their_order_and_the_gap_says_whose_it_is():
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    systems = {name: {"asr": {"wer": figure}} for name in ("untrained", "text")}
    found = table({"systems": systems, "tasks": TASKS[:1], "alignment": {"kl": figure, "top1_agreement": figure}})
    assert found.index("| text") < found.index("| untrained")
    assert "in the languages that training heard: KL 0.500 [0.400, 0.600] nats a token" in found
