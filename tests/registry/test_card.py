import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from blsp.evaluation.report import cell
from blsp.files import read_json
from blsp.registry import promote
from blsp.registry.card import DESCRIPTION_CHARS, FILE, Recorded, card, description
from blsp.tracking.store import MODEL_TAG, Store, session
from tests.trained import PARAMS, Trained

REPORTS = PARAMS.parent / "reports"
EVALUATION = read_json(REPORTS / "evaluation.json")


@pytest.fixture
def recorded() -> Recorded:
    """What a run of the committed results has."""
    return Recorded(
        name="blsp",
        run_id="0123abcd",
        params={
            "train.objective": "kd",
            "train.shares.repetition": "0.1",
            "evaluate.max_new_tokens": "64",
            **{f"evaluate.tasks.{name}.language": "en" for name in ("asr", "st", "slu", "qa", "continuation")},
            **{f"evaluate.tasks.{name}_de.language": "de" for name in ("asr", "say", "st", "slu", "qa")},
        },
        tags={
            "blsp.adapter_sha256": "ad" * 32,
            "mlflow.source.git.commit": "c0" * 20,
            "blsp.machine.cpu": "2 x Some CPU",
            "blsp.machine.memory_gib": "24",
            "blsp.machine.gpus": "4 x NVIDIA H200 (140 GiB)",
            "blsp.machine.processes": "4",
            "blsp.machine.software": "torch 2.13.0",
        },
        metrics={"train.adapter_parameters": 425248.0, "train.train_s": 1800.0, "train.peak_memory_gib": 0.9},
        digests={"data/corpus": "e8839e61.dir"},
        evaluation=read_json(REPORTS / "evaluation.json"),
        corpus=read_json(REPORTS / "corpus.json"),
        licences={"CC0-1.0": 4800},
    )


def header(text: str) -> Any:
    return YAML(typ="safe").load(text.split("---\n")[1])


def test_the_header_is_what_model_hubs_read(recorded: Recorded) -> None:
    found = header(card(recorded))
    assert (found["license"], found["language"], found["datasets"]) == ("apache-2.0", ["en"], ["miniature"])
    assert "base_model" not in found  # the miniature's are on no hub
    assert found["metrics"] == ["wer", "bleu", "accuracy", "perplexity", "followed", "changed"]
    (index,) = found["model-index"]
    first = index["results"][0]
    assert first["metrics"] == [
        {"type": "wer", "value": pytest.approx(EVALUATION["systems"]["speech"]["asr"]["wer"]["value"], rel=1e-3)}
    ]
    assert first["dataset"]["revision"] == "e8839e61.dir"


def test_backbones_of_the_hub_are_its_base_models_with_their_licences(recorded: Recorded) -> None:
    for part, name, licence in (("speech", "openai/whisper-small", "Apache-2.0"), ("llm", "meta/llama", "llama2")):
        pin = recorded.evaluation["backbones"][part]
        pin.update(source="hub", origin=name, revision="f" * 40, licence=licence)
    text = card(recorded)
    assert header(text)["license"] == "other"
    assert sorted(header(text)["base_model"]) == ["meta/llama", "openai/whisper-small"]
    assert re.search(
        rf"\| llm +\| meta/llama +\| {'f' * 40} \| `{EVALUATION['backbones']['llm']['sha256'][:16]}` \| llama2", text
    )


def test_it_tells_figures_data_cost_and_limits(recorded: Recorded) -> None:
    text = card(recorded)
    for piece in (
        "adapter of 425,248 parameters",
        f"600 test utterances ({EVALUATION['test']['audio_s'] / 60:.1f} minutes)",
        cell(EVALUATION["systems"]["speech"]["asr"]["wer"]),
        f"| cascade | {cell(EVALUATION['systems']['cascade']['asr']['wer'])}",
        f"KL {cell(EVALUATION['alignment']['kl'])}",
        "| speech - cascade",
        "- Training heard speech in: en.",
        "never heard in training: de",
        "- Device time: 2.00 h over all processes",
        "4 x NVIDIA H200 (140 GiB)",
        "- Peak memory of the first process: 0.90 GiB",
        "| train | 2.73",
        "- licence CC0-1.0: 4,800 utterances",
        "`data/corpus`: DVC digest `e8839e61.dir`",
        "| share of repetition | 0.1",
        f"- commit `{'c0' * 20}`",
        "mlflow models serve -m models:/blsp@champion",
        "Repeat word for word.",
    ):
        assert piece in text, piece
    assert "| untrained" not in text
    assert card(recorded) == text


def test_what_is_not_recorded_is_said(recorded: Recorded) -> None:
    text = card(Recorded(**{**vars(recorded), "tags": {}, "metrics": {}, "corpus": None, "licences": {}}))
    for piece in (
        "- Machine: not recorded",
        "- Training: not recorded",
        "Sources and hours: not recorded",
        "- licences of the utterances: not recorded",
    ):
        assert piece in text


def test_a_description_holds_whole_sections_and_says_where_the_rest_is(recorded: Recorded) -> None:
    text = card(recorded)
    assert len(text) > DESCRIPTION_CHARS
    short = description(text)
    assert len(short) <= DESCRIPTION_CHARS
    assert short.startswith("# blsp\n") and "## Figures" in short and "## Limits" in short
    assert short.endswith(f"The whole card: `{FILE}`, an artifact of the run and of the model.\n")
    sections = text.partition("\n---\n\n")[2].replace("\n## ", "\n\0## ").split("\0")
    kept = short.rpartition("\nThe whole card")[0].replace("\n## ", "\n\0## ").split("\0")
    assert set(kept) < set(sections)


@pytest.fixture
def store(trained: Trained) -> Iterator[Store]:
    with session() as opened:
        yield opened


@pytest.mark.usefixtures("unasked")
def test_a_version_has_its_card_as_description_and_with_run_and_model(
    trained: Trained, store: Store, tmp_path: Path
) -> None:
    shutil.copy(REPORTS / "corpus.json", "reports/corpus.json")
    promote(trained.params)
    name = trained.params.promote.model_name
    version = store.client.get_model_version(name, 1)
    of_run = Path(store.client.download_artifacts(version.run_id, FILE, str(tmp_path))).read_text()
    model = store.client.get_logged_model(version.tags[MODEL_TAG])
    assert (Path(model.artifact_location.removeprefix("file://")) / FILE).read_text() == of_run
    assert version.description == description(of_run)
    assert trained.digest("data/corpus") in of_run
    assert "0.080 [0.070, 0.090]" in of_run
    promote(trained.params)
    again = Path(store.client.download_artifacts(version.run_id, FILE, str(tmp_path))).read_text()
    assert again == of_run
