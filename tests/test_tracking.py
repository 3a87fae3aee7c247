import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blsp import tracking
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.tracking import live, local, pages
from blsp.tracking.machine import machine_tags
from blsp.tracking.store import ADAPTER_TAG, KEY_TAG, MODEL_TAG, VARIANT_TAG, VARIANTS, Store, session
from blsp.training.places import PIPELINE, places_of
from tests.trained import Trained


@pytest.fixture
def store(trained: Trained) -> Iterator[Store]:
    with session() as opened:
        yield opened


def recorded(store: Store, run_id: str) -> dict[str, dict[int, float]]:
    """The curve as MLflow has it, after making sure that no point is there twice."""
    run = store.client.get_run(run_id)
    for key in run.data.metrics:
        steps = [point.step for point in store.client.get_metric_history(run_id, key)]
        assert len(steps) == len(set(steps)), f"{key} has steps twice"
    return store.curve(run, local.CURVE)


def expected(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    return {f"curve/{name}": {row["step"]: row[name] for row in rows if name in row} for name in ("loss", "dev_kl")}


def mirror(trained: Trained, rows: list[dict[str, Any]], *, finished: bool) -> int:
    """The child's exit status when a training says these rows and then ends well, or dies."""
    receiver, sender = os.pipe()
    opening = {"live": True, "params": trained.params.model_dump_json(by_alias=True), "places": vars(PIPELINE)}
    messages: list[dict[str, Any]] = [opening, *rows]
    messages += [{"finished": True}] * finished
    os.write(sender, "".join(json.dumps(message) + "\n" for message in messages).encode())
    os.close(sender)
    try:
        return live.serve(receiver)
    finally:
        os.close(receiver)


def runs(store: Store, trained: Trained) -> list[Any]:
    return store.runs_with(KEY_TAG, local.training_key(trained.params))


def test_sync_records_the_whole_run(trained: Trained, store: Store) -> None:
    run_id = tracking.sync(trained.params)
    assert run_id is not None
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.002"
    assert run.data.params["evaluate.tasks.asr.metric"] == "wer"
    assert {name.partition(".")[0] for name in run.data.params} == set(local.PARAM_SECTIONS)
    assert recorded(store, run_id) == expected(trained.rows(25))
    assert run.data.metrics["train.dev.kl"] == 0.25
    assert run.data.metrics["speech.asr.wer"] == 0.08
    assert run.data.metrics["speech.asr.wer.low"] == pytest.approx(0.07)
    assert run.data.metrics["alignment.top1_agreement"] == 0.95
    assert run.data.tags[ADAPTER_TAG] == sha256_of("models/adapter")
    assert run.data.tags["blsp.backbone.speech.sha256"] == "0" * 64
    assert run.inputs and run.outputs and run.outputs.model_outputs
    inputs = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert inputs == {path: trained.digest(path) for path in ("data/corpus", "data/continuations")}
    there = {item.path for item in store.client.list_artifacts(run_id)}
    assert {"evaluation.md", "validation.json", "data_docs", "figures", "train_log.jsonl"} <= there
    model = store.client.get_logged_model(run.data.tags[MODEL_TAG])
    assert model.status == "READY"
    assert {metric.key for metric in model.metrics or ()} >= {"speech.asr.wer", "train.loss"}
    assert not set(machine_tags()) & set(run.data.tags)  # nobody knows where that training ran
    assert "answers.parquet" in there


def test_sync_again_changes_nothing(trained: Trained, store: Store) -> None:
    first = tracking.sync(trained.params)
    assert first is not None
    before = store.client.get_run(first).to_dictionary()
    assert tracking.sync(trained.params) == first
    assert store.client.get_run(first).to_dictionary() == before
    assert len(runs(store, trained)) == 1


def test_an_interrupted_sync_is_made_whole(trained: Trained, store: Store) -> None:
    run_id = tracking.sync(trained.params)
    assert run_id is not None
    store.client.delete_tag(run_id, "blsp.mirror_sha256")  # it is written last
    assert tracking.sync(trained.params) == run_id
    assert recorded(store, run_id) == expected(trained.rows(25))
    run = store.client.get_run(run_id)
    assert run.inputs and run.outputs
    assert (len(run.inputs.dataset_inputs), len(run.outputs.model_outputs)) == (2, 1)


def test_what_training_says_is_seen_at_once_and_completed_at_the_end(trained: Trained, store: Store) -> None:
    assert mirror(trained, trained.rows(10), finished=False) == 0
    (run,) = runs(store, trained)
    assert run.info.status == "KILLED"
    assert recorded(store, run.info.run_id) == expected(trained.rows(10))
    # Resumed from step 5: five steps come again, the rest is new but for a gap that only the log knows.
    resumed = trained.rows(25)
    assert mirror(trained, resumed[5:12] + resumed[20:], finished=True) == 0
    (run,) = runs(store, trained)
    assert run.info.status == "FINISHED"
    assert recorded(store, run.info.run_id) == expected(trained.rows(25))
    assert {key: run.data.tags.get(key) for key in machine_tags()} == machine_tags()


def test_the_runs_page_is_announced_for_whoever_has_a_browser(
    trained: Trained, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="blsp")
    assert mirror(trained, [], finished=False) == 0
    assert [one for one in map(pages.run_page_in, caplog.messages) if one] == [], "a file has no pages"
    monkeypatch.setenv("BLSP_MLFLOW_PAGES", "https://mlflow.example/team/")
    assert mirror(trained, [], finished=True) == 0
    (run,) = runs(store, trained)
    address = f"https://mlflow.example/team/#/experiments/{store.experiment_id}/runs/{run.info.run_id}"
    assert [one for one in map(pages.run_page_in, caplog.messages) if one] == [address]


def test_an_address_is_shown_without_its_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://some:secret@mlflow.example:5000/")  # pragma: allowlist secret
    assert pages.pages() == "https://mlflow.example:5000"


def test_a_curve_of_other_code_is_not_mixed_in(trained: Trained, store: Store) -> None:
    mirror(trained, trained.rows(10, slope=3.0), finished=False)
    (abandoned,) = runs(store, trained)
    mirror(trained, trained.rows(25), finished=True)
    (run,) = runs(store, trained)
    assert run.info.run_id != abandoned.info.run_id
    assert recorded(store, run.info.run_id) == expected(trained.rows(25))


def test_the_same_adapter_trained_again_is_the_same_run(trained: Trained, store: Store) -> None:
    first = tracking.sync(trained.params)
    mirror(trained, trained.rows(25), finished=True)
    assert [run.info.run_id for run in runs(store, trained)] == [first]


def test_another_adapter_or_other_settings_are_another_run(trained: Trained, store: Store) -> None:
    first = tracking.sync(trained.params)
    evaluate = trained.params.evaluate.model_copy(update={"seed": 99})
    again = tracking.sync(trained.params.model_copy(update={"evaluate": evaluate}))
    assert again != first
    trained.write_training(steps=25, weights="other")
    trained.write_evaluation()
    assert tracking.sync(trained.params) not in (first, again)
    assert [store.client.get_run(str(run)).data.params["evaluate.seed"] for run in (first, again)] == [
        "1",
        "99",
    ]


def test_the_evaluation_of_the_last_adapter_is_not_this_ones(trained: Trained, store: Store) -> None:
    trained.write_training(steps=25, weights="new")
    run_id = tracking.sync(trained.params)
    assert run_id is not None
    assert "speech.asr.wer" not in store.client.get_run(run_id).data.metrics
    assert "evaluation.md" not in {item.path for item in store.client.list_artifacts(run_id)}
    trained.write_evaluation()
    assert tracking.sync(trained.params) == run_id
    assert store.client.get_run(run_id).data.metrics["speech.asr.wer"] == 0.08


def test_sync_says_what_is_missing(trained: Trained) -> None:
    Path("reports/train_log.jsonl").write_text('{"step": 1, "loss": 2}\n{"loss": ')
    with pytest.raises(BlspError, match=r"train_log\.jsonl, line 2"):
        tracking.sync(trained.params)
    Path("reports/train_log.jsonl").unlink()
    with pytest.raises(BlspError, match=r"reports/train_log\.jsonl: not there.*run `dvc repro train`"):
        tracking.sync(trained.params)


def test_the_commit_is_recorded_and_whether_the_code_was_exactly_that(trained: Trained) -> None:
    def git(*command: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        done = subprocess.run(["git", *identity, *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert "blsp.git_dirty" not in local.read_local(trained.params).tags  # no repository: nothing to say
    git("init")
    Path("params.yaml").write_text("train: 1")
    git("add", "dvc.lock", "params.yaml", "reports/train.json")
    git("commit", "-m", "first")
    tags = local.read_local(trained.params).tags
    assert (tags["mlflow.source.git.commit"], tags["blsp.git_dirty"]) == (git("rev-parse", "HEAD"), "false")
    assert tags["mlflow.source.name"] == "blsp", "without it MLflow's page of the run does not show the commit"
    Path("dvc.lock").write_text("stages: {}")
    Path("reports/train.json").write_text(Path("reports/train.json").read_text() + "\n")
    written = local.read_local(trained.params)
    assert written.tags["blsp.git_dirty"] == "false", "what a run writes itself is no change of the code"
    assert written.datasets == {}
    Path("params.yaml").write_text("train: 2")
    assert local.read_local(trained.params).tags["blsp.git_dirty"] == "true"


def test_a_broken_dvc_lock_is_named(trained: Trained) -> None:
    Path("dvc.lock").write_text("schema: '2.0'")
    with pytest.raises(BlspError, match=r"dvc\.lock: not as DVC writes it"):
        tracking.sync(trained.params)


def test_an_evaluation_must_say_which_adapter_it_judged(trained: Trained) -> None:
    report = json.loads(Path("reports/evaluation.json").read_text())
    del report["adapter_sha256"]
    Path("reports/evaluation.json").write_text(json.dumps(report))
    with pytest.raises(BlspError, match="has no adapter_sha256"):
        tracking.sync(trained.params)


def test_names_are_such_as_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for name in ("memory/peak(GiB)", "kl@T=2", "/a//b/", "speech.asr.wer", "größe"):
        _validate_metric_name(local.metric_name(name))
    assert local.metric_name("memory/peak(GiB)") == "memory/peak_GiB_"


def test_a_variant_is_a_run_of_its_own_among_variants(trained: Trained, store: Store) -> None:
    main_run = tracking.sync(trained.params)
    params = trained.params.variant("kd_repetition", seed=1)
    assert params.train == trained.params.train
    places = places_of("kd_repetition", 1)
    with pytest.raises(BlspError, match=r"run `blsp train --variant kd_repetition --seed 1`"):
        tracking.sync(params, places)
    Path(places.report).parent.mkdir(parents=True)
    shutil.copytree("models/adapter", places.adapter)  # the same bits
    shutil.copy("reports/train.json", places.report)
    shutil.copy("reports/train_log.jsonl", places.log)
    run_id = tracking.sync(params, places)
    assert run_id is not None and run_id != main_run
    assert tracking.sync(params, places) == run_id
    assert tracking.sync(trained.params) == main_run
    with session(VARIANTS) as variants:
        found = variants.runs_with(VARIANT_TAG, "kd_repetition")
        (run,) = [run for run in found if run.data.tags[ADAPTER_TAG] == sha256_of("models/adapter")]
        assert run.info.run_id == run_id and run.info.run_name == "kd_repetition-1"
        assert run.data.params["variant"] == "kd_repetition" and run.data.params["train.seed"] == "1"
        assert recorded(variants, run_id) == expected(trained.rows(25))
        assert MODEL_TAG not in run.data.tags and "speech.asr.wer" not in run.data.metrics
        assert {item.path for item in store.client.list_artifacts(run_id)} == {
            "train.json",
            "train_log.jsonl",
        }
        twin = trained.params.variant("kd", seed=1).model_copy(update={"train": params.train})
        shutil.copytree(Path(places.report).parent, Path(places_of("kd", 1).report).parent)
        assert tracking.sync(twin, places_of("kd", 1)) != run_id


def test_two_that_begin_together_make_the_file_and_the_experiment_once(tmp_path: Path) -> None:
    code = "from blsp.tracking.store import session\nwith session('new') as store: print(store.experiment_id)"
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONWARNINGS": "ignore",
    }
    two = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in two] == ["1", "1"]


def test_turned_off_nothing_happens(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLSP_TRACKING", "off")
    monkeypatch.setattr(subprocess, "Popen", None)
    with tracking.open_tracker(trained.params) as tracker:
        tracker.log(1, {"loss": 1.0})
    with tracking.mirror_after(trained.params):
        pass
    assert tracking.sync(trained.params) is None
    monkeypatch.setenv("BLSP_TRACKING", "maybe")
    with pytest.raises(BlspError, match="BLSP_TRACKING=maybe: must be on or off"):
        tracking.open_tracker(trained.params)


def test_a_mirror_that_hangs_or_dies_costs_training_nothing(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "CLOSE_TIMEOUT_S", 0.2)
    for script in ("exec sleep 60", "exit 1"):
        child = tmp_path / "child"
        child.write_text(f"#!/bin/sh\n{script}\n")
        child.chmod(child.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(child))
        caplog.clear()
        started_s = time.monotonic()
        with caplog.at_level(logging.WARNING), tracking.open_tracker(trained.params) as tracker:
            for step in range(5000):  # more than the pipe holds
                tracker.log(step, {"loss": 1.0, "lr": 0.1})
        assert time.monotonic() - started_s < 5
        assert [record.message.count("blsp track") for record in caplog.records] == [1]


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import sys, blsp.registry, blsp.tracking; sys.exit(bool({'mlflow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
