"""From a number back to its run, commit and data: the rows name what really lies there and what MLflow really has."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from blsp import tracking
from blsp.files import write_text
from blsp.paper.provenance import dvc_md5, lines, provenance
from blsp.tracking.store import VARIANTS, session
from blsp.training.places import PIPELINE, places_of


@pytest.fixture
def compared(trained):
    """Two seeds of two variants and the pipeline's adapter, each measured; all but the last are in MLflow."""
    experiments = trained.params.experiments.model_copy(update={"seeds": [1, 2]})
    params = trained.params.model_copy(update={"experiments": experiments})
    for name in ("kd", "ce"):
        for seed in (1, 2):
            places = places_of(name, seed)
            shutil.copytree(PIPELINE.adapter, places.adapter)
            write_text(Path(places.adapter) / "seed.txt", f"{trained.id} {seed}")
            shutil.copy(PIPELINE.log, places.log)
            shutil.copy(PIPELINE.report, places.report)
            write_text(f"{places.measured}/answers.parquet", f"answers of {name} {seed}")
            if (name, seed) != ("ce", 2):
                tracking.sync(params.variant(name, seed), places)
    write_text("reports/answers.parquet", "answers of the baselines")
    write_text("reports/robustness.parquet", "answers under noise")
    tracking.sync(params)
    return params


def test_each_system_and_seed_has_its_run_commit_and_digests(compared, trained, caplog):
    found = provenance(compared, ["kd", "ce"])
    rows = {(row["system"], row["seed"]): row for row in found["systems"]}
    assert list(rows)[:3] == [("text", 1), ("cascade", 1), ("untrained", 1)]
    assert list(rows)[3:] == [("kd", 1), ("kd", 2), ("ce", 1), ("ce", 2), ("speech, worse audio", 1)]
    # ce from seed 1 has the very weights of kd from seed 1: its run is its own all the same.
    assert dvc_md5(places_of("ce", 1).adapter) == dvc_md5(places_of("kd", 1).adapter)
    with session(VARIANTS) as variants:
        for name, seed in (("kd", 1), ("kd", 2), ("ce", 1)):
            row = rows[name, seed]
            run = variants.client.get_run(row["run"]["run_id"])
            assert run.info.run_name == f"{name}-{seed}"
            assert row["adapter"] == {"path": f"models/variants/{name}-{seed}/adapter", "md5": row["adapter"]["md5"]}
            assert row["answers"]["path"] == f"models/variants/{name}-{seed}/measured"
    assert len({rows[key]["answers"]["md5"] for key in rows}) == 6  # baselines share theirs
    assert rows["text", 1]["adapter"] is None and rows["text", 1]["run"] == rows["speech, worse audio", 1]["run"]
    assert rows["text", 1]["answers"]["md5"] == dvc_md5("reports/answers.parquet")
    assert rows["ce", 2]["run"] is None
    assert "record it: `blsp track --variant ce --seed 2`" in caplog.text
    assert found["data"] == {path: trained.digest(path) for path in ("data/corpus", "data/continuations")}
    shown = "\n".join(lines(found))
    assert shown.count("not recorded") >= 1 and rows["kd", 2]["run"]["run_id"] in shown
    assert rows["kd", 2]["adapter"]["md5"][:12] in shown and trained.digest("data/corpus")[:12] in shown
    json.dumps(found)


def test_the_commit_is_the_runs_and_what_no_commit_has_is_marked(trained):
    write_text(".gitignore", "*\n")
    subprocess.run(["git", "init", "-q"], check=True)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "add", "-f", ".gitignore"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for name in ("answers", "robustness"):
        write_text(f"reports/{name}.parquet", name)
    write_text(".gitignore", "*\n\n")
    tracking.sync(trained.params)
    found = provenance(trained.params, [])
    assert {row["run"]["commit"] for row in found["systems"]} == {commit}
    assert f" {commit[:12]}+ " in "\n".join(lines(found))


def test_with_tracking_off_there_are_no_runs_and_no_warnings(compared, monkeypatch, caplog):
    monkeypatch.setenv("BLSP_TRACKING", "off")
    found = provenance(compared, ["kd"])
    assert all(row["run"] is None and row["answers"]["md5"] for row in found["systems"])
    assert not caplog.text


def test_digests_are_those_of_dvc(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("models/adapter/model.safetensors", "weights\r\n")
    write_text("models/adapter/deeper/ä.json", "{}")
    write_text("models/adapter/deeper.json", "{}")
    write_text("answers.parquet", "answers")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], check=True)
    subprocess.run([*dvc, "add", "-q", "models/adapter", "answers.parquet"], check=True)
    for name in ("models/adapter", "answers.parquet"):
        (out,) = YAML(typ="safe", pure=True).load(Path(f"{name}.dvc"))["outs"]
        assert dvc_md5(name) == out["md5"]
