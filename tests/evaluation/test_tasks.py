"""Which test items a task is about, and which of them are in languages that training heard."""

from pathlib import Path

import numpy as np
import pytest

from blsp.data import shards
from blsp.data.records import Utterance
from blsp.evaluation import tasks
from blsp.evaluation.evaluate import alignment
from blsp.params import Task, load_params
from tests.trained import PARAMS


def pack(**languages):
    """The splits of a corpus in the working directory, an utterance for each of their languages."""
    for split, own in languages.items():
        with shards.ShardWriter(Path(shards.CORPUS_DIR) / split, shard_size=2) as writer:
            for number, language in enumerate(own):
                row = Utterance(
                    id=f"{split}-{number}", audio=b"", text=f"say {number}", language=language, source="mine"
                )
                samples = np.full(1600 + number, 0.1, dtype=np.float32)
                cut = shards.make_cut(row, split, samples.size, 16_000)
                writer.write(cut, shards.encode_flac(samples, 16_000))


def task(language, reference="transcript"):
    return Task(instructions=["Repeat."], reference=reference, metric="wer", drop=None, language=language, source=None)


def ids(items):
    return [item.id for item in items]


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("language", ["en", "en-GB", "English", "eng", "EN"])
def test_a_task_has_the_items_of_its_language_however_it_is_written(language):
    pack(test=["en", "en-US", "en_us", "English", "de", None])
    items = tasks.test_items()
    assert ids(tasks.items_of(task(language), items)) == [f"test-{number}" for number in range(4)]
    assert ids(tasks.items_of(task("de-CH"), items)) == ["test-4"]
    assert len(tasks.items_of(task(None), items)) == 6


def test_where_no_item_names_a_language_they_are_of_any():
    pack(test=[None, None])
    assert len(tasks.items_of(task("en"), tasks.test_items())) == 2


def test_what_was_heard_is_what_the_training_split_holds():
    pack(train=["de-CH", "German"], dev=["en"], test=["en", "de", "de_AT"])
    heard = tasks.heard_languages()
    assert heard == {"de"}
    assert tasks.heard_in_training(tasks.test_items(), heard) == {"test-1", "test-2"}


def test_without_a_test_item_in_a_language_that_was_heard_there_is_no_gap():
    pack(train=["de"], dev=["de"], test=["en"])
    heard = tasks.heard_in_training(tasks.test_items(), tasks.heard_languages())
    for shard in shards.iter_shards("test"):
        answer = {
            "transcript": "say 0",
            "text": "yes",
            "instruction": "Go on.",
            "token_ids": [5],
            "finish_reason": "stop",
        }
        for behaviour in load_params(PARAMS).train.shares:
            shards.write_field(shard, behaviour, {"test-0": answer})
    params = load_params(PARAMS)
    assert heard == set()
    assert alignment(None, None, None, heard, params, None) == {}
