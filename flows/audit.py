"""A registered model traced back: what MLflow says it was made of, and whether git and the files say the same."""

import argparse
import json
import logging
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from blsp import markdown
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.tracking.local import EVALUATION, figures
from blsp.tracking.store import ADAPTER_TAG, COMMIT_TAG, DIRTY_TAG, MIRROR_TAG, TrackingError, session, uri
from flows import published
from flows.comparison import leaves
from flows.git import asked
from flows.published import LOCK, PUBLISHED_TAG, Published
from flows.registered import Registered, registered

GATES_TAG = "blsp.gates"
BACKBONE = "blsp.backbone."
PINNED = ("name", "revision", "sha256", "licence")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: it holds, it does not, or it cannot be seen from here."""

    what: str
    outcome: Literal["ok", "failed", "unknown"]
    why: str


def facts(version: Registered) -> dict[str, Any]:
    """Where a version comes from, as MLflow has it."""
    backbones: dict[str, dict[str, str]] = {"speech": {}, "llm": {}}
    for tag, value in {**version.run_tags, **version.tags}.items():
        if tag.startswith(BACKBONE):
            part, _, key = tag.removeprefix(BACKBONE).partition(".")
            backbones.setdefault(part, {})[key] = value
    return {
        "model": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "run": version.run_id,
        "commit": version.tag(COMMIT_TAG),
        "commit_had_changes": version.tag(DIRTY_TAG) == "true",
        "published": version.tag(PUBLISHED_TAG),
        "adapter_sha256": version.tag(ADAPTER_TAG),
        "data": version.data,
        "backbones": backbones,
        "params": version.params,
        "figures": _headline(version.metrics),
        "gates": version.tag(GATES_TAG),
    }


def findings(version: Registered) -> list[Finding]:
    """All that can be verified here, in the repository of the working folder."""
    try:
        published.in_repository()
        tag = version.tag(PUBLISHED_TAG)
        run = published.read(f"refs/tags/{tag}") if tag else None
    except BlspError as error:
        return [_recorded(version), _adapter(version), Finding("repository", "unknown", str(error))]
    return [
        _recorded(version),
        _adapter(version),
        _commit(version, run),
        _publication(version, run),
        *(_as_published(version, run) if run else [_unpublished(version)]),
    ]


def _recorded(version: Registered) -> Finding:
    whole = MIRROR_TAG in version.run_tags
    why = f"run {version.run_id}" + ("" if whole else " was never completed: `blsp track`, where its files are, does")
    return Finding("run is whole", "ok" if whole else "failed", why)


def _adapter(version: Registered) -> Finding:
    """Whether the adapter that would be served is the one that was judged."""
    what, wanted = "logged adapter", version.tag(ADAPTER_TAG)
    if wanted is None or version.model_id is None:
        return Finding(what, "failed", "the run names no adapter, or has no logged model")
    try:
        with session() as opened, tempfile.TemporaryDirectory() as folder:
            import mlflow

            place = f"{opened.client.get_logged_model(version.model_id).artifact_location}/artifacts/adapter"
            found = sha256_of(mlflow.artifacts.download_artifacts(place, dst_path=folder, tracking_uri=uri()))
    except (TrackingError, FileNotFoundError) as error:
        return Finding(what, "unknown", f"cannot be read: {str(error).partition(chr(10))[0]}")
    if found != wanted:
        return Finding(what, "failed", f"its sha256 is {found}, but {wanted} was trained and judged")
    return Finding(what, "ok", f"sha256 {found}")


def _commit(version: Registered, run: Published | None) -> Finding:
    what, commit = "commit", version.tag(COMMIT_TAG)
    if commit is None:
        return Finding(what, "unknown", "the run names none: it was not trained in a git repository")
    if asked("cat-file", "-e", f"{commit}^{{commit}}") is None:
        if asked("rev-parse", "--is-shallow-repository") == "true":
            return Finding(what, "unknown", f"{commit} is not in this shallow clone: `git fetch --unshallow`")
        return Finding(what, "failed", f"{commit} is not in this repository; `git fetch --all` may bring it")
    if version.tag(DIRTY_TAG) != "true":
        return Finding(what, "ok", f"{commit} is here, and nothing was changed beside it")
    if run:
        why = f"there were changes that {commit[:12]} has not; {run.tag} has the code that {LOCK} names"
        return Finding(what, "ok", why)
    why = f"training ended at {commit} with changes that no commit had, and the run was never published"
    return Finding(what, "failed", why)


def _publication(version: Registered, run: Published | None) -> Finding:
    what, tag = "publication", version.tag(PUBLISHED_TAG)
    if tag is None:
        return Finding(what, "unknown", "the run was never published: `blsp publish`, where its files are, does")
    if run is None:
        return Finding(
            what, "failed", f"{tag} is not in this repository, or has no {published.RECORD}: `git fetch --tags`"
        )
    held, wanted = run.record.get("adapter_sha256"), version.tag(ADAPTER_TAG)
    if held != wanted:
        return Finding(what, "failed", f"{tag} holds the adapter {held}, the version {wanted}")
    return Finding(what, "ok", f"{tag}, commit {run.commit}")


def _as_published(version: Registered, run: Published) -> list[Finding]:
    """Whether what MLflow has is what the published commit has."""
    try:
        stages = run.lock()
        evaluation = json.loads(run.text(EVALUATION.as_posix()) or "")
        reported = figures(evaluation)
    except (BlspError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [Finding("published files", "failed", f"{run.tag}: {LOCK} or {EVALUATION} cannot be read ({error})")]
    digests = published.digests_of(stages)
    judged = evaluation.get("adapter_sha256")
    pins = {
        f"{part}.{key}": str(pin[key])
        for part, pin in (evaluation.get("backbones") or {}).items()
        for key in PINNED
        if pin.get(key) is not None
    }
    named = {
        tag.removeprefix(BACKBONE): value
        for tag, value in {**version.run_tags, **version.tags}.items()
        if tag.startswith(BACKBONE)
    }
    return [
        Finding(
            "judged adapter",
            "ok" if judged == version.tag(ADAPTER_TAG) else "failed",
            f"{EVALUATION} of {run.tag} judges {judged}",
        ),
        _same("data", version.data, {path: digests[path] for path in version.data if path in digests}, LOCK, run),
        _same("backbones", named, {key: pins[key] for key in named if key in pins}, EVALUATION.as_posix(), run),
        _params(version, stages, run),
        _figures(version, reported, run),
    ]


def _unpublished(version: Registered) -> Finding:
    """The data as the commit's own lock has it, which may be that of an earlier run."""
    what, commit = "data", version.tag(COMMIT_TAG)
    text = asked("show", f"{commit}:./{LOCK}") if commit else None
    if not version.data or text is None:
        return Finding(what, "unknown", f"the run names no data, or its commit has no {LOCK}")
    try:
        digests = published.digests_of(published.stages_of(text, f"{LOCK} of {commit}"))
    except BlspError as error:
        return Finding(what, "failed", str(error))
    if all(digests.get(path) == digest for path, digest in version.data.items()):
        return Finding(what, "ok", f"{LOCK} of {commit} names the same digests")
    return Finding(what, "unknown", f"{LOCK} of {commit} names other digests: it is committed after a run, or never")


def _same(what: str, ours: Mapping[str, str], theirs: Mapping[str, str], file: str, run: Published) -> Finding:
    if not ours:
        return Finding(what, "unknown", "MLflow names none")
    other = [
        f"{key} is {value}, there {theirs.get(key, 'absent')}"
        for key, value in ours.items()
        if theirs.get(key) != value
    ]
    if other:
        return Finding(what, "failed", f"not as in {file} of {run.tag}: {'; '.join(other)}")
    return Finding(what, "ok", f"{len(ours)} facts as in {file} of {run.tag}")


def _params(version: Registered, stages: Mapping[str, Any], run: Published) -> Finding:
    """Whether the settings that DVC ran the stages with are those that MLflow has."""
    ran = {
        name: value
        for stage in stages.values()
        for settings in stage.get("params", {}).values()
        for name, value in leaves(settings)
    }
    both = [name for name in ran if name in version.params]
    if not both:
        return Finding("params", "unknown", f"MLflow and {LOCK} of {run.tag} have none in common")
    other = [
        f"{name} is {version.params[name]}, there {ran[name]}"
        for name in both
        if not _alike(version.params[name], ran[name])
    ]
    if other:
        return Finding("params", "failed", f"not as in {LOCK} of {run.tag}: {'; '.join(other[:5])}")
    return Finding("params", "ok", f"{len(both)} as in {LOCK} of {run.tag}")


def _figures(version: Registered, reported: Mapping[str, float], run: Published) -> Finding:
    ours = version.metrics
    both = [name for name in reported if name in ours]
    other = [name for name in both if not math.isclose(reported[name], ours[name], rel_tol=1e-12, abs_tol=1e-15)]
    if other or not both:
        shown = "; ".join(f"{name} is {ours[name]}, there {reported[name]}" for name in other[:5])
        return Finding("figures", "failed", f"not as in {EVALUATION} of {run.tag}: {shown or 'none in common'}")
    return Finding("figures", "ok", f"{len(both)} as in {EVALUATION} of {run.tag}")


def _alike(text: str, value: Any) -> bool:
    """Whether MLflow's text of a value says the same as the value: 1 and 1.0 do."""
    if isinstance(value, str):
        return text == value[: len(text)] and bool(text or not value)
    try:
        return bool(json.loads(text) == value)
    except ValueError:
        return False


def _headline(metrics: Mapping[str, float]) -> dict[str, float]:
    values = (name for name in sorted(metrics) if not name.endswith((".low", ".high")))
    # Of the gap what is over all behaviours: of each, and of its floors, the report has more.
    return {
        name: metrics[name]
        for name in values
        if name.startswith("speech.") or (name.startswith("alignment.") and name.count(".") == 1)
    }


def page(found: Mapping[str, Any], checks: Sequence[Finding]) -> str:
    """Facts and findings, for a terminal."""
    changed = " (with changes that no commit had then)" if found["commit_had_changes"] else ""
    aliases = f" ({', '.join(found['aliases'])})" if found["aliases"] else ""
    lines = [
        f"{found['model']} version {found['version']}{aliases}",
        f"  run        {found['run']}",
        f"  commit     {found['commit'] or 'none'}{changed}",
        f"  published  {found['published'] or 'never'}",
        f"  adapter    sha256 {found['adapter_sha256']}",
        *(f"  data       {path} {digest}" for path, digest in found["data"].items()),
        *(
            f"  {part:<10} " + ", ".join(f"{key} {pin[key]}" for key in PINNED if key in pin)
            for part, pin in found["backbones"].items()
        ),
        f"  gates      {found['gates'] or 'not judged'}",
        "",
        "figures:",
        *(f"  {name} {value:.6g}" for name, value in found["figures"].items()),
        "",
        "params:",
        *(f"  {name} {value}" for name, value in sorted(found["params"].items())),
        "",
        markdown.table(("checked", "", "why"), [(one.what, one.outcome, one.why) for one in checks]),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where no check fails, 1 where one does or the version cannot be read."""
    parser = argparse.ArgumentParser(
        prog="blsp audit",
        description=(
            "Trace a registered model back: run, commit, publication, digests of the data, backbones, params, figures "
            "and gates, and check what can be checked in this repository: ok, failed, or unknown from here."
        ),
        epilog="Exit status 1 where a check fails. MLflow is found through MLFLOW_TRACKING_URI.",
    )
    parser.add_argument("model", metavar="MODEL", help="models:/blsp/3 or models:/blsp@champion")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        version = registered(options.model)
        checks = findings(version)
    except BlspError as error:
        print(f"blsp audit: {error}", file=sys.stderr)
        return 1
    found = facts(version)
    if options.json:
        print(json.dumps({**found, "checks": [asdict(one) for one in checks]}, indent=2, ensure_ascii=False))
    else:
        print(page(found, checks))
    return int(any(one.outcome == "failed" for one in checks))


if __name__ == "__main__":
    sys.exit(main())
