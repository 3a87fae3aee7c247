"""What there is to mirror, read from the files that the stages wrote. No MLflow here."""

import dataclasses
import hashlib
import json
import math
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from blsp import files
from blsp.errors import BlspError
from blsp.params import Params
from blsp.tracking.store import COMMIT_TAG, DIRTY_TAG, SOURCE_TAG, VARIANT_TAG
from blsp.training.places import PIPELINE, Places

ADAPTER = Path(PIPELINE.adapter)
BACKBONES = Path("models/backbones/backbones.json")
EVALUATION = Path("reports/evaluation.json")
ANSWERS = "reports/answers.parquet"
DVC_LOCK = Path("dvc.lock")

PARAM_SECTIONS = ("miniature", "backbones", "corpus", "continuations", "train", "evaluate")
DATASETS = {"corpus": "data/corpus", "continuations": "data/continuations"}  # DVC stage -> its folder
# What the stages write themselves, of what git may hold: it says nothing of the code that ran.
NOT_CHANGES = (":(exclude,glob)**/dvc.lock", ":(exclude)reports")
DATA_ARTIFACTS = (
    "reports/corpus.json",
    "reports/continuations.json",
    "reports/validation.json",
    "reports/data_docs",
)
# The answers, for the next adapter to be compared with on the same items.
EVALUATION_ARTIFACTS = (EVALUATION.as_posix(), "reports/evaluation.md", "reports/figures", ANSWERS)

PARAM_CHARS = 6000  # MLflow keeps no more of one value
CURVE = "curve/"  # what begins the names of metrics that have a value a step


@dataclass(frozen=True)
class LocalRun:
    """Everything one run is made of, as the files have it now."""

    adapter_sha256: str
    training_key: str
    params: dict[str, str]
    """Flattened: `train.lr` -> "0.002"."""
    curve: dict[str, dict[int, float]]
    """{`curve/loss`: {step: value}}."""
    metrics: dict[str, float]
    """One value each: `train.*` from train.json, `speech.asr.wer` (and .low, .high) from evaluation.json."""
    datasets: dict[str, str]
    """{`data/corpus`: the digest DVC gave it}."""
    tags: dict[str, str]
    artifacts: dict[str, str]
    """{path: SHA-256} of files and folders to keep beside the run."""

    def fingerprint(self) -> str:
        """The SHA-256 of all of it, commit aside: two equal ones have nothing to tell each other."""
        parts = {k: v for k, v in dataclasses.asdict(self).items() if k != "tags"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_local(params: Params, places: Places = PIPELINE) -> LocalRun:
    """The adapter in these places and all that belongs to it. Raises BlspError where training has not left its files.

    An evaluation of some other adapter (the last one's, while this one waits for its own) is left out, and so is the
    one of the pipeline's adapter where these are a variant's places.
    """
    variant = places.variant
    for path in (places.adapter, places.log, places.report):
        if not Path(path).exists():
            remedy = f"blsp train {places.options}" if variant else "dvc repro train"
            raise BlspError(f"{path}: not there, so there is no run to record; run `{remedy}`")
    adapter_sha256 = files.sha256_of(places.adapter)
    evaluation = read_evaluation() if EVALUATION.exists() and not variant else None
    if evaluation and evaluation["adapter_sha256"] != adapter_sha256:
        evaluation = None
    datasets = dataset_digests()
    artifacts = [
        *("params.yaml", places.report, places.log),
        *(DATA_ARTIFACTS if not variant else ()),
        *(EVALUATION_ARTIFACTS if evaluation else ()),
    ]
    return LocalRun(
        adapter_sha256=adapter_sha256,
        training_key=training_key(params, places),
        params=flat_params(params) | ({"variant": variant} if variant else {}),
        curve=read_curve(Path(places.log)),
        metrics={
            **{metric_name(f"train.{k}"): v for k, v in _numbers(files.read_json(places.report))},
            **(figures(evaluation) if evaluation else {}),
        },
        datasets=datasets,
        tags=_commit_tags() | _backbone_tags() | ({VARIANT_TAG: variant} if variant else {}),
        artifacts={path: files.sha256_of(path) for path in artifacts if Path(path).exists()},
    )


def training_key(params: Params, places: Places = PIPELINE) -> str:
    """What names a training before its adapter exists: a hash of its settings, its backbones and its data.

    Two variants that come to the same settings are two trainings.
    """
    parts = {
        "train": params.train.model_dump(mode="json"),
        "backbones": _backbone_tags(),
        "data": dataset_digests(),
    } | ({"variant": places.variant} if places.variant else {})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def flat_params(params: Params) -> dict[str, str]:
    """{`section.key`: value as text} of the sections that shape a run; `promote` and `validate` do not."""
    sections = params.model_dump(mode="json", by_alias=True, include=set(PARAM_SECTIONS))
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in _leaves(sections)}
    return {k: v[:PARAM_CHARS] for k, v in texts.items()}


def read_evaluation() -> dict[str, Any]:
    """reports/evaluation.json. Raises BlspError where it is missing or names no adapter."""
    if not EVALUATION.exists():
        raise BlspError(f"{EVALUATION}: not there; run `dvc repro evaluate`")
    report = files.read_json(EVALUATION)
    for key in ("systems", "adapter_sha256"):
        if key not in report:
            raise BlspError(f"{EVALUATION}: has no {key}; write it anew with `dvc repro --force evaluate`")
    return dict(report)


def figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """{`speech.asr.wer`: value, `speech.asr.wer.low`: ..., `.high`: ...} of every figure in the report."""
    named = {**{k: v for k, v in evaluation.items() if k != "systems"}, **evaluation["systems"]}
    return dict(_figures(named))


def read_curve(log: Path) -> dict[str, dict[int, float]]:
    """{`curve/loss`: {step: value}} from a training log. Raises BlspError, naming a broken line."""
    curve: dict[str, dict[int, float]] = {}
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise BlspError(f"{log}, line {number}: not an object with a step: {line[:80]!r}") from error
        for name, value in curve_points(row).items():
            curve.setdefault(name, {})[step] = value
    return curve


def curve_points(row: Mapping[str, Any]) -> dict[str, float]:
    """{`curve/loss`: value} of a row's numbers; `step` is not one of them."""
    return {CURVE + metric_name(k): float(v) for k, v in row.items() if k != "step" and _is_number(v)}


def metric_name(name: str) -> str:
    """`name` as MLflow takes it: letters, digits and `/_-. :`, and no path that could be written shorter."""
    return re.sub(r"/+", "/", re.sub(r"[^\w/\-. :]", "_", name)).strip("/")


def dataset_digests() -> dict[str, str]:
    """{`data/corpus`: md5} as dvc.lock has it; empty without one (stages run by hand)."""
    if not DVC_LOCK.exists():
        return {}
    try:
        stages = YAML(typ="safe", pure=True).load(DVC_LOCK.read_text(encoding="utf-8"))["stages"]
    except (YAMLError, KeyError, TypeError) as error:
        raise BlspError(f"{DVC_LOCK}: not as DVC writes it ({error}); run `dvc repro`") from error
    outs = {out["path"]: out for stage in DATASETS for out in stages.get(stage, {}).get("outs", ())}
    return {path: outs[path]["md5"] for path in DATASETS.values() if path in outs}


def _commit_tags() -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CHANGES)
    return {COMMIT_TAG: commit, DIRTY_TAG: json.dumps(bool(changed)), SOURCE_TAG: "blsp"}


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _backbone_tags() -> dict[str, str]:
    if not BACKBONES.exists():
        return {}
    facts = files.read_json(BACKBONES)
    return {
        f"blsp.backbone.{part}.{key}": str(facts[part][key])
        for part in ("speech", "llm")
        for key in ("name", "revision", "sha256", "licence")
        if facts[part].get(key) is not None
    }


def _figures(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        name = metric_name(prefix + key)
        if not isinstance(value, Mapping):
            continue
        if _is_number(value.get("value")):
            yield name, float(value["value"])
            yield from ((f"{name}.{end}", float(value[end])) for end in ("low", "high") if _is_number(value.get(end)))
        else:
            yield from _figures(value, f"{name}.")


def _numbers(tree: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, float(value)) for name, value in _leaves(tree) if _is_number(value))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
