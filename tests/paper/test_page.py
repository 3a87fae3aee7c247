"""The page in words: nine tasks in two tables, and what each variant learned from."""

from blsp.evaluation.report import UNHEARD
from blsp.paper import page
from blsp.params import load_params
from tests.trained import PARAMS

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "signature": "exact match"}


def found(params):
    variants = list(params.experiments.variants)
    names = list(params.evaluate.tasks)
    tasks = [
        {"name": name, "metric": "wer", "higher_is_better": False, "heard": not name.endswith("_de")} for name in names
    ]
    voices = {system: {"m3": FIGURE} for system in ("cascade", "speech")}
    worse = {"figures": {}, "differences": [], "metric": "wer"}
    return {
        "systems": {name: {task: {"wer": FIGURE} for task in names} for name in ("text", *variants)},
        "seeds": {name: {task: {"wer": [0.4, 0.6]} for task in names} for name in variants},
        "tasks": tasks,
        "comparisons": [FIGURE | {"system": "kd", "than": "ce", "task": "asr", "metric": "wer", "p": 0.01}],
        "gaps": {name: {task: {"kl": FIGURE, "top1_agreement": FIGURE} for task in names} for name in variants},
        "conditions": [worse | {"task": "asr", "voices": voices}, worse | {"task": "asr_de", "voices": voices}],
        "instructions": {"asr": ["Repeat."]},
        "provenance": {"data": {}, "systems": [row("kd", 1)]},
    }


def row(system, seed):
    content = {"path": "x", "md5": "0123456789abcdef"}
    return {"system": system, "seed": seed, "run": None, "adapter": content, "answers": content}


def test_tasks_on_speech_never_heard_stand_apart_and_the_page_says_what_is_of_which():
    params = load_params(PARAMS)
    own = found(params)
    systems = page.tables(own).partition("| systems")[0]
    heard, unheard = systems.split(UNHEARD)
    assert "asr (wer)" in heard and "_de" not in heard and unheard.count("_de (wer)") == 5
    assert "0.500 [0.400, 0.600] (0.400 to 0.600)" in unheard
    text = page.text(own, params)
    assert text.count(UNHEARD) == 2, "the systems' table, and that of the gaps"
    assert text.count("in the languages that training heard") == 3  # gap on continuations, similarity, voices
    assert text.count("![voices](voices.png)") == 1
    assert "| kd     | 1    | not recorded | not recorded | 0123456789ab | 0123456789ab |" in text


def test_voices_are_left_out_where_nobody_knows_them():
    params = load_params(PARAMS)
    own = found(params)
    for one in own["conditions"]:
        one["voices"] = {}
    assert "voices" not in page.text(own, params)


def test_what_hears_transcripts_alone_is_said_to_learn_the_llms_own_repetitions():
    params = load_params(PARAMS)
    (line,) = [line for line in page.text(found(params), params).splitlines() if line.startswith("- `asr_pretrained`")]
    said = "cross-entropy on the LLM's own repetitions of the transcript, kept only where within 10% of its letters"
    assert line.endswith(said)
    others = [line for line in page.text(found(params), params).splitlines() if "repetitions of the transcript" in line]
    assert others == [line]
