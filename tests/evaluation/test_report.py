"""Tables of many tasks: what training heard, and below it what it never did."""

from blsp.evaluation.report import UNHEARD, about_the_test, gap_tables, table, task_tables

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


def test_a_gap_stands_beside_its_floors_and_what_is_unknown_is_left_out():
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    own = {"kl": figure, "top1_agreement": figure, "share": figure, "untrained": {"kl": figure}}
    gap = {"kl": figure, "top1_agreement": figure, "share": figure, "reply": own}
    lines = gap_tables(gap).splitlines()
    assert lines[0] == "**reply**" and [line.split("|")[1].strip() for line in lines if line[:3] in ("| t", "| i")] == [
        "the LLM hears",
        "the utterance",
        "it, through an untrained adapter",
    ]
    assert "from another's speech to text: 0.500 [0.400, 0.600]" in gap_tables(gap)
    systems = {"text": {"asr": {"wer": figure}}}
    assert "speech to text: 0.500" in table({"systems": systems, "tasks": TASKS[:1], "alignment": gap})
    assert "no test utterance" in table({"systems": systems, "tasks": TASKS[:1], "alignment": {}})


def test_what_was_tested_on_is_said_to_be_new_only_where_it_is():
    new = {"speakers": 3, "speakers_in_training": 0, "without_speaker": 0, "sentences_in_training": 0}
    test = {"utterances": 9, "audio_s": 90.0, "items": None}
    said = about_the_test({"test": {**test, **new}, "confidence": 0.9})
    assert "sentences and voices are in no training data" in said and "90 % bootstrap" in said
    said = about_the_test({"test": {**test, **new, "speakers_in_training": 2, "without_speaker": 1, "items": 5}})
    assert "no training data" not in said and "2 of their 3 known speakers are" in said and "5 of them at most" in said
    assert "no training data" not in about_the_test({"test": test}), "nobody knows of older reports"
