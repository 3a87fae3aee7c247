"""A published run made again: a clone at its tag, its data from the DVC remote, stages run anew, figures compared."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blsp import files
from blsp.errors import BlspError
from blsp.files import SCRATCH_VARIABLE, scratch_folder
from blsp.tracking.local import NOT_CHANGES
from flows import comparison, machine, published
from flows.comparison import Difference
from flows.git import TRANSFER_LIMIT_S, asked, git
from flows.published import LOCK, PUBLISHED_TAG, Published
from flows.registered import is_model, registered
from flows.stage_process import dvc

REPORT = Path("reports/reproduction.json")
RERUN = ("train", "evaluate")  # what a result is made by; data and backbones are pulled
ELSEWHERE = 0.02  # tolerance on a machine of another type; on one of the same type: none
SHOWN_EVERY_S = 30.0  # s between two lines of a stage's own output


@dataclass(frozen=True)
class Reproduction:
    """How a reproduction came out."""

    differences: list[Difference]
    compared: int  # values of metric files
    metrics: list[str]
    report: dict[str, Any]

    @property
    def holds(self) -> bool:
        return not any(one.counts for one in self.differences)

    def verdict(self) -> str:
        """One sentence."""
        among = f"{self.compared:,} values in {', '.join(self.metrics)}" if self.metrics else "no metric file"
        apart = [one for one in self.differences if one.counts]
        tolerance = self.report["tolerance"]
        if apart:
            limit = f" by more than the tolerance of {tolerance:g}" if tolerance else ""
            return f"{len(apart)} of {among} and the digests differ{limit}"
        digests = f"{len(self.report['digests'])} digests of data and models"
        if tolerance:
            return f"reproduced: {among} are within the tolerance of {tolerance:g}"
        return f"reproduced: {among} and {digests} are the same, bit for bit"


def resolve(run: str) -> Published:
    """The published run that a tag, a branch, or a registered model names. Raises BlspError where there is none."""
    if not is_model(run):
        return published.find(run)
    version = registered(run)
    tag = version.tag(PUBLISHED_TAG)
    if tag is None:
        raise BlspError(
            f"{version.title}: its run {version.run_id} was never published; `blsp publish`, where its files are, does"
        )
    return published.find(tag)


async def reproduce(found: Published, into: Path, rerun: Sequence[str], tolerance: float | None) -> Reproduction:
    """How the run came out in the folder `into`. Raises BlspError where it could not be made: a stage that it has not,
    a folder that is taken, data that the remote does not give, a stage that fails."""
    stages: list[dict[str, Any]] = found.record["stages"]
    anew = _chosen(stages, rerun)
    here, there = machine.facts(), found.record["machine"]
    unlike = machine.differences(there, here)
    if tolerance is None:
        tolerance = ELSEWHERE if unlike else 0.0
    print(f"{found.tag}: published on {machine.in_words(there)}", flush=True)
    print(f"  here: {machine.in_words(here) if unlike else 'a machine of the same type'}", flush=True)
    _clone(found, into)
    with contextlib.chdir(into):
        pulled = await _pull(found, stages, anew)
        took_s = {stage["name"]: await _run(stage["name"]) for stage in anew}
        differences, compared, digests = _compare(found, anew or stages, tolerance)
        result = Reproduction(
            differences,
            compared,
            [path for stage in anew or stages for path in stage["metrics"]],
            {
                "run": found.tag,
                "commit": found.commit,
                "rerun": list(took_s),
                "pulled": pulled,
                "took_s": took_s,
                "tolerance": tolerance,
                "machine": here,
                "machine_differences": unlike,
                "digests": digests,
                "differences": [asdict(one) for one in differences],
                "compared": compared,
            },
        )
        files.write_json(REPORT, {**result.report, "reproduced": result.holds, "verdict": result.verdict()})
    return result


def _chosen(stages: list[dict[str, Any]], rerun: Sequence[str]) -> list[dict[str, Any]]:
    """The stages to run anew, upstream first."""
    runnable = [stage for stage in stages if not stage["name"].endswith(".dvc")]
    if list(rerun) == ["all"]:
        return runnable
    wanted = [] if list(rerun) == ["none"] else list(rerun)
    names = [stage["name"] for stage in runnable]
    if unknown := [name for name in wanted if name not in names]:
        raise BlspError(f"--rerun {' '.join(unknown)}: the run has the stages {', '.join(names)}; or all, or none")
    return [stage for stage in runnable if stage["name"] in wanted]


def _clone(found: Published, into: Path) -> None:
    """Nothing; `into` is a clone at the run's commit: a new one, or that of a reproduction that was interrupted."""
    if into.exists():
        with contextlib.chdir(into):
            same = Path(".git").exists() and asked("rev-parse", "HEAD") == found.commit
            clean = same and not asked("status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CHANGES)
            if not clean or REPORT.exists():
                what = "has a finished reproduction" if same and REPORT.exists() else f"is no clone of {found.tag}"
                raise BlspError(f"{into}: is there and {what}; remove it, or name another folder with --into")
        print(f"going on in {into}", flush=True)
        return
    source = git("rev-parse", "--path-format=absolute", "--git-common-dir")
    with files.replace_dir(into) as folder:
        folder.rmdir()  # git wants to make it
        git("clone", "--quiet", "--no-checkout", source, str(folder), limit_s=TRANSFER_LIMIT_S)
        with contextlib.chdir(folder):
            git("fetch", "--quiet", "origin", found.ref)  # also what is on no branch of this repository's own
            git("checkout", "--quiet", "--detach", found.commit)
    print(f"cloned {found.tag} into {into}", flush=True)


async def _pull(found: Published, stages: list[dict[str, Any]], anew: list[dict[str, Any]]) -> list[str]:
    """What was pulled: what the stages read of others that are not run, or all where none is."""
    made = {path for stage in anew for path in stage["stored"]}
    kept = {path for stage in stages for path in stage["stored"]}
    names = {name for stage in anew for name in stage["upstream"] if name.endswith(".dvc")}
    read = {path for stage in anew for path in stage["inputs"]} & kept
    wanted = sorted(names | (read - made)) if anew else [stage["name"] for stage in stages]
    if not wanted:
        return []
    remote = found.record["remote"]["name"]
    # Otherwise DVC takes an object that was cut in the remote for the file whose name it has.
    Path(".dvc/config.local").write_text(f"['remote \"{remote}\"']\n    verify = true\n", encoding="utf-8")
    print(f"pulling {', '.join(wanted)} from {remote}", flush=True)
    ended = await dvc(["pull", "--remote", remote, *wanted], lambda line: print(f"  {line}", flush=True))
    if ended.how == "failed":
        raise BlspError(
            f"`dvc pull` from {remote} ({found.record['remote']['url']}) failed: {ended.reason}. Endpoint and "
            "credentials come from the environment (docs/scaling-out.md); the same command goes on"
        )
    return wanted


async def _run(name: str) -> float:
    """The seconds it took to run a stage anew."""
    began_s, shown_s = time.monotonic(), 0.0

    def say(line: str) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s >= SHOWN_EVERY_S:
            shown_s = time.monotonic()
            print(f"  {name} | {line}", flush=True)

    print(f"running {name}", flush=True)
    environment = {
        # The stages' code is the clone's.
        "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))),
        "BLSP_TRACKING": "off",  # the run is recorded already
        SCRATCH_VARIABLE: str(Path(".dvc/tmp/blsp").resolve()),  # nothing that an earlier training left
    }
    ended = await dvc(["repro", "--force", "--no-run-cache", "--single-item", name], say, environment)
    if ended.how == "failed":
        last = "\n  ".join(ended.tail)
        raise BlspError(f"stage {name} failed: {ended.reason}\n  {last}\nThe same command goes on.")
    return time.monotonic() - began_s


def _compare(
    found: Published, stages: list[dict[str, Any]], tolerance: float
) -> tuple[list[Difference], int, dict[str, str]]:
    """What differs of what these stages wrote, how many values were compared, and the digests as they are now."""
    metrics = [path for stage in stages for path in stage["metrics"]]
    differences: list[Difference] = []
    compared = 0
    for path in metrics:
        before, now = found.text(path), Path(path).read_text(encoding="utf-8") if Path(path).exists() else None
        try:
            if before is None or now is None:
                raise ValueError("not there")
            of_file, values = comparison.compare_metrics(path, before, now, tolerance)
        except ValueError as error:
            raise BlspError(f"{path}, published or now: cannot be compared ({error})") from error
        differences += of_file
        compared += values
    after = published.digests_of(published.stages_of(Path(LOCK).read_text(encoding="utf-8"), LOCK))
    # Pages have times in them; what a later stage reads is data or a model, and decides.
    read = {path for stage in found.record["stages"] for path in stage["inputs"]}
    data = {path for stage in stages for path in stage["stored"]} & read
    pages = {path for stage in stages for path in (*stage["stored"], *stage["committed"])} - {*metrics} - data
    before_digests = {path: digest for path, digest in found.digests().items() if path in data | pages}
    counting = frozenset(data) if not tolerance else frozenset()
    differences += comparison.compare_digests(before_digests, after, counting)
    return differences, compared, {path: after[path] for path in sorted(data) if path in after}


async def _stoppable(found: Published, into: Path, rerun: Sequence[str], tolerance: float | None) -> Reproduction:
    """What `reproduce` returns; SIGTERM cancels it, as SIGINT does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await reproduce(found, into, rerun, tolerance)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the run came out as published, 1 where it did not or could not be made, 130 where interrupted."""
    parser = argparse.ArgumentParser(
        prog="blsp reproduce",
        description=(
            "Make a published run again and say what differs: a fresh clone at its tag, `dvc pull` of what its stages "
            "read, `dvc repro --force` of the stages, then every number of their metric files and every digest of "
            "data and models beside the published one. All is in reports/reproduction.json of the clone."
        ),
        epilog=(
            "On a machine of the same type (processor, threads, GPUs, versions) everything must be the same, bit for "
            f"bit. On another one numbers may be {ELSEWHERE:g} apart, as |now - published| / max(1, |published|), and "
            "digests, words and p-values are only noted. What was interrupted goes on when it is started again."
        ),
    )
    parser.add_argument("run", metavar="RUN", help="tag, branch, models:/blsp/3 or models:/blsp@champion")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="new folder (default: in the scratch folder)")
    parser.add_argument(
        "--rerun",
        nargs="+",
        default=list(RERUN),
        metavar="STAGE",
        help=f"stages to run anew, or all, or none: only pull (default: {' '.join(RERUN)})",
    )
    parser.add_argument("--tolerance", type=_distance, metavar="DISTANCE", help="largest distance of a number")
    options = parser.parse_args(arguments)
    try:
        found = resolve(options.run)
        into = (options.into or scratch_folder() / "reproductions" / found.tag).resolve()
        result = asyncio.run(_stoppable(found, into, options.rerun, options.tolerance))
    except BlspError as error:
        print(f"blsp reproduce: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    for name, seconds in result.report["took_s"].items():
        print(f"{name}: {seconds:.0f} s")
    for fact, (one, other) in result.report["machine_differences"].items():
        print(f"{fact}: published {one}, here {other}")
    if result.differences:
        print(f"\n{comparison.table(result.differences)}\n")
    print(f"{found.tag}: {result.verdict()}")
    print(f"in {into}, {REPORT}")
    return 0 if result.holds else 1


def _distance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0 on; found {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
