"""The smoke test with a real model: logged, registered, loaded by a process of its own, and asked."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blsp import tracking
from blsp.data.records import Utterance
from blsp.data.shards import ShardWriter, encode_flac, load_cuts, make_cut
from blsp.errors import BlspError
from blsp.model.chat import respond
from blsp.registry import promote
from blsp.registry.aliases import held
from blsp.registry.smoke import choose, prepare
from blsp.tracking.store import MODEL_TAG, session
from tests import tiny
from tests.trained import Trained

RATE_HZ = 16_000
INSTRUCTIONS = ("Repeat the following text.", "Name the intent of the following text.")
MAX_NEW_TOKENS = 64


@pytest.fixture
def answering(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """A tiny random model whose adapter is the working directory's, a test split of one utterance, its answers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the process that is asked
    pins = tiny.save_backbones(Path("models/backbones"))
    Path("models/backbones/backbones.json").write_text(json.dumps(pins))
    model, processor = tiny.build(pins)
    model.save_pretrained("models/adapter")
    samples = np.random.default_rng(1).normal(0, 0.1, RATE_HZ).astype(np.float32)
    utterance = Utterance(id="test-000", audio=Path("unused.wav"), text="switch it on", source="mine")
    with ShardWriter("data/corpus/test", shard_size=1) as writer:
        writer.write(make_cut(utterance, "test", len(samples), RATE_HZ), encode_flac(samples, RATE_HZ))
    trained.write_evaluation()
    (cut,) = load_cuts("test")
    heard = cut.load_audio()[0]
    answers = [respond(model, processor, one, [heard], MAX_NEW_TOKENS)[0] for one in INSTRUCTIONS]
    assert all(answers) and len(set(answers)) == 2
    write_answers(answers)
    return trained


def write_answers(answers: list[str]) -> None:
    table = pd.read_parquet("reports/answers.parquet")
    one = table[(table["id"] == "test-000") & (table["system"] == "speech")].reset_index(drop=True)
    one.assign(answer=answers).to_parquet("reports/answers.parquet", index=False)


def test_a_model_that_says_what_was_evaluated_is_promoted(answering: Trained) -> None:
    assert promote(answering.params).outcome == "promoted"


def test_a_model_that_says_something_else_is_refused_before_any_alias_moves(answering: Trained) -> None:
    """It is the logged model that is asked, with the code that was logged with it."""
    run_id = str(tracking.sync(answering.params))
    with session() as store:
        model = store.client.get_logged_model(store.client.get_run(run_id).data.tags[MODEL_TAG])
        folder = Path(model.artifact_location.removeprefix("file://"))
        code = folder / "code" / "blsp" / "serving" / "speech.py"
        logged = code.read_text()
        code.write_text(re.sub("return respond\\(.*", 'return ["other"] * len(recordings)', logged))
        try:
            promotion = promote(answering.params)
        finally:
            code.write_text(logged)  # tests share the store, and another's adapter may have these very weights
        assert promotion.outcome == "refused"
        assert "asked 'Repeat the following text.' about test-000 it answered 'other'" in promotion.summary()
        assert held(store, answering.params.promote.model_name) == {}


def test_a_model_that_cannot_be_loaded_is_told_with_the_reason(answering: Trained) -> None:
    fault = prepare(answering.params).fault("models:/no-such-model/1")
    assert fault is not None and "could not be loaded and asked (status 1)" in fault
    assert "no-such-model" in fault


def table(*rows: tuple[str, str, str, str, float]) -> pd.DataFrame:
    """Of system, id, instruction, answer and length."""
    columns = ["system", "id", "instruction", "answer", "audio_s"]
    return pd.DataFrame(rows, columns=columns).assign(condition="clean", task="any")


def test_the_shortest_utterance_is_asked_on_which_speech_says_what_text_says() -> None:
    rows: list[Any] = []
    for id_, audio_s, said in (("short", 1.0, "else"), ("long", 3.0, "right"), ("middle", 2.0, "right")):
        for instruction in ("repeat", "name", "translate"):
            rows.append(("text", id_, instruction, f"{instruction} right", audio_s))
            rows.append(("speech", id_, instruction, f"{instruction} {said}", audio_s))
    asked = choose(table(*rows))
    assert [(one.id, one.instruction, one.expected) for one in asked] == [
        ("middle", "repeat", "repeat right"),
        ("middle", "name", "name right"),
    ]


def test_two_instructions_with_two_answers_come_before_all() -> None:
    asked = choose(
        table(
            ("speech", "short", "repeat", "same", 1.0),
            ("speech", "short", "name", "same", 1.0),
            ("speech", "mute", "repeat", " ", 1.5),
            ("speech", "mute", "name", "a", 1.5),
            ("speech", "long", "repeat", "a", 2.0),
            ("speech", "long", "name", "b", 2.0),
            ("text", "short", "name", "same", 1.0),
        )
    )
    assert {one.id for one in asked} == {"long"}


def test_an_adapter_that_says_nothing_is_not_asked() -> None:
    with pytest.raises(BlspError, match="answered no test utterance with a single word"):
        choose(table(("speech", "short", "repeat", "  ", 1.0)))
