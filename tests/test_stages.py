"""The whole graph on a very small miniature: real stages, real DVC, from nothing to the evaluation."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from blsp.cli import main
from blsp.evaluation.report import UNHEARD
from blsp.files import sha256_of
from flows import command
from tests.toy_run import git, publish_here
from tests.trained import PARAMS

ROOT = PARAMS.parent
STAGES = ("backbones", "corpus", "validate_corpus", "continuations", "validate", "train", "evaluate")


def environment():
    """As in an activated environment, without MLflow."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "BLSP_TRACKING": "off", "OMP_NUM_THREADS": "1"}


def dvc(*arguments, check=True):
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, check=check, env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A clone of the project with small settings, after its first `dvc repro`."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("blsp", "flows"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "data/source/README.md", ".dvcignore", ".gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    change(folder, small=True)
    before = Path.cwd()
    os.chdir(folder)
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q")
    result = dvc("repro", check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    yield folder
    os.chdir(before)


def change(folder, small=False, **train):
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((ROOT if small else folder) / "params.yaml")
    if small:
        params["miniature"] |= {"train_utterances": 60, "dev_utterances": 10, "test_utterances": 20}
        params["miniature"] |= {"german_train_utterances": 20, "german_test_utterances": 5}
        params["miniature"]["llm"] |= {"width": 64, "layers": 1, "steps": 150, "batch_size": 16}
        params["miniature"]["speech"] |= {"width": 32, "encoder_layers": 1, "steps": 3, "batch_size": 4}
        # An LLM of 150 steps rambles; the contracts on its style are for the real one.
        params["validate"] |= {"max_length_share": 1.0, "max_copy_share": 1.0, "max_answer_drop_share": 1.0}
        for behaviour in params["continuations"]["behaviours"].values():
            behaviour |= {"answer": "any", "language": None}
        params["continuations"] |= {"max_new_tokens": 24}
        params["continuations"]["quality"]["max_repeated_tokens"] = 24
        params["evaluate"] |= {"max_new_tokens": 8, "bootstrap_samples": 20}
        params["train"] |= {"steps": 6, "batch_size": 8, "validate_every": 3, "warmup_steps": 1}
    params["train"] |= train
    yaml.default_flow_style = False  # DVC cannot read a question in a list between brackets
    with (folder / "params.yaml").open("w") as stream:
        yaml.dump(params, stream)


def test_every_stage_leaves_its_files(workspace):
    report = json.loads((workspace / "reports/evaluation.json").read_text())
    assert set(report["systems"]) == {"text", "cascade", "speech", "untrained"}
    for tasks in report["systems"].values():
        figures = [tasks["asr"]["wer"], tasks["st"]["bleu"], tasks["slu"]["accuracy"], tasks["slu_de"]["accuracy"]]
        for figure in figures:
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] and figure["signature"]
    gap = report["alignment"]
    assert {"kl", "top1_agreement", "share", "continuation", "repetition"} <= set(gap)
    for behaviour in ("continuation", "repetition"):
        assert {"kl", "top1_agreement", "share", "other", "untrained"} <= set(gap[behaviour])
    assert gap["kl"] == gap["continuation"]["kl"] and gap["share"]["value"] <= 1
    assert report["test"]["speakers"] and not report["test"]["speakers_in_training"]
    assert sorted(path.name for path in (workspace / "models/adapter").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    corpus = json.loads((workspace / "reports/corpus.json").read_text())
    assert corpus["rows_in"] == corpus["rows_kept"] == 95 and not corpus["dropped"]
    written = json.loads((workspace / "reports/continuations.json").read_text())
    assert written["behaviours"]["continuation"]["rows"] == 95
    for name in (
        "data_docs/index.html",
        "figures/systems.png",
        "figures/gap.png",
        "figures/learning_curve.png",
        "train_curve.csv",
    ):
        assert (workspace / "reports" / name).stat().st_size > 100


def test_nothing_to_do_afterwards(workspace):
    assert "up to date" in dvc("status").stdout
    assert "wer" in dvc("metrics", "show").stdout


def test_the_same_params_give_the_same_adapter_bit_for_bit(workspace):
    first = sha256_of("models/adapter")
    dvc("repro", "--force", "--no-run-cache", "--single-item", "train")
    assert sha256_of("models/adapter") == first


def test_a_published_run_is_reproduced_bit_for_bit_in_a_fresh_clone(workspace, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BLSP_TRACKING", "off")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dvc("repro")  # another training, though of the same adapter, has left another log
    dvc("remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    git(workspace, "config", "user.name", "Some One")
    git(workspace, "config", "user.email", "some@one.example")
    git(workspace, "add", ".")
    git(workspace, "commit", "--quiet", "--message", "Code")
    run = publish_here()
    assert command.main(["reproduce", run.tag, "--into", str(tmp_path / "again")]) == 0, capfd.readouterr()
    found = json.loads((tmp_path / "again/reports/reproduction.json").read_text())
    assert found["reproduced"] and found["rerun"] == ["train", "evaluate"] and found["machine_differences"] == {}
    assert sha256_of(tmp_path / "again/models/adapter") == sha256_of("models/adapter")
    changed = {(one["file"], one["what"]) for one in found["differences"]}
    assert {file for file, what in changed if what != "digest"} == {"reports/train.json"}  # what it cost
    assert ("reports/train_log.jsonl", "digest") in changed  # as its times differ, it was run anew


def test_a_change_under_train_reruns_train_and_evaluate_alone(workspace):
    change(workspace, lr=0.001)
    ran = dvc("repro").stdout
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in ran] == ["train", "evaluate"]


def test_the_papers_page_has_every_system_seed_difference_and_picture(workspace, monkeypatch):
    monkeypatch.setenv("BLSP_TRACKING", "off")
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(workspace / "params.yaml")
    variants = {"kd_repetition": {}, "ce": {"objective": "ce"}}
    compared = [["kd_repetition", "ce"], ["kd_repetition", "cascade"]]
    params["experiments"] = {"seeds": [1, 2], "ablation_seeds": [2], "variants": variants, "compared": compared}
    params["experiments"] |= {"ablations": {"half": {"corpus_share": 0.5}}}
    params["experiments"] |= {"axes": {"corpus_share": {"half": 0.5, "kd_repetition": 1.0}}}
    params["evaluate"]["conditions"] = {"noise": {"kind": "white_noise", "snr_db": 0.0}, "phone": {"kind": "telephone"}}
    with Path("paper.yaml").open("w") as stream:
        yaml.dump(params, stream)

    def blsp(*arguments):
        assert main(["--params", "paper.yaml", *arguments]) == 0

    for name, seeds in {**dict.fromkeys(variants, "12"), "half": "2"}.items():
        for seed in seeds:
            blsp("train", "--variant", name, "--seed", seed)
            blsp("measure", "--variant", name, "--seed", seed)
    blsp("robustness")
    blsp("paper")
    found = json.loads(Path("reports/paper/paper.json").read_text())
    assert list(found["seeds"]) == sorted(variants)
    assert set(found["systems"]) == {"text", "cascade", "untrained", *variants}
    for name in variants:
        seeds, figure = found["seeds"][name]["asr"]["wer"], found["systems"][name]["asr"]["wer"]
        assert len(seeds) == 2 and figure["value"] == pytest.approx(sum(seeds) / 2) and figure["n"] == 20
        assert found["seeds"][name]["continuation"]["kl"] != found["seeds"][name]["asr"]["kl"]
    tested = {(one["system"], one["than"], one["task"], one["metric"]): one["p"] for one in found["comparisons"]}
    assert 0 < tested["kd_repetition", "ce", "asr", "kl"] <= 1
    assert ("kd_repetition", "cascade", "slu", "accuracy") in tested
    assert ("kd_repetition", "cascade", "asr", "kl") not in tested  # a cascade hears nothing
    for own in found["similarity"].values():
        assert set(own) == {"layers", "tasks", "lengths"}
        assert {"continuation", "asr", "st", "slu"} <= set(own["tasks"]) <= set(found["gaps"]["ce"])
        assert "qa_de" not in own["tasks"], "of two utterances there is no figure"
        assert all("content" in one for one in own["lengths"])
    conditions = {one["task"]: list(one["figures"]["speech"]) for one in found["conditions"]}
    assert conditions == {key: ["clean", "noise", "phone"] for key in ("asr", "st", "slu", "qa")}
    page = Path("reports/paper/paper.md").read_text()
    for name in re.findall(r"\]\((.+?)\)", page):
        assert (Path("reports/paper") / name).stat().st_size > 1000
    assert page.count(".png)") == 9 and "`objective: ce`" in page
    blsp("ablations")
    curves = json.loads(Path("reports/ablations/ablations.json").read_text())
    assert {name: len(own["asr"]["wer"]) for name, own in curves["seeds"].items()} == {"half": 1, "kd_repetition": 1}
    own, both = curves["systems"]["kd_repetition"], found["seeds"]["kd_repetition"]
    for task, metric in (("asr", "wer"), ("st", "bleu"), ("slu", "accuracy"), ("continuation", "kl")):
        assert own[task][metric]["value"] == pytest.approx(both[task][metric][1]), "that of seed 2"
    assert "Every point is the mean over the seeds 2," in Path("reports/ablations/ablations.md").read_text()
    table = Path("reports/ablations/ablations.md").read_text().partition("## corpus_share")[2]
    heard, unheard = table.split(UNHEARD)
    for part in (heard, unheard):
        assert [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("|")][2:] == ["0.5", "1"]
    assert Path("reports/ablations/corpus_share.png").stat().st_size > 1000


def test_training_killed_leaves_no_adapter_and_the_next_run_is_right(workspace):
    """kill -9 in the middle: no half-written adapter has the final name, and DVC takes it up again."""
    change(workspace, steps=2000, validate_every=1000)
    log = Path("reports/train_log.jsonl")
    log.unlink()  # of the run before
    running = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "train"],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 1) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert log.read_text().count("\n") > 1
    assert not Path("models/adapter").exists()
    change(workspace, steps=7, validate_every=3)
    dvc("repro")
    assert json.loads(Path("reports/train.json").read_text())["steps"] == 7
    assert Path("models/adapter/model.safetensors").is_file()
    assert "up to date" in dvc("status").stdout


def test_one_message_and_exit_1_for_what_a_user_can_mend(workspace):
    change(workspace, objektive="kd")
    command = [sys.executable, "-m", "blsp", "train"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "train.objektive" in result.stderr and "train.objective" in result.stderr
