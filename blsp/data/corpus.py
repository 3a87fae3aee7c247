"""The stage `corpus`: from the sources to packed shards, and a report in which every row is accounted for.

The sources are read three times, their audio only the last: to give speakers their splits, to gather the held-out
sentences, to pack. What sounds like another row is known only then: the shards that hold such rows are packed again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blsp import files, languages
from blsp.data import fingerprints, planning, recogniser, shards, sources, splits
from blsp.data.account import Account
from blsp.data.drops import DROPPED
from blsp.data.packing import TALLY, Tally, pack_shard, shard_name
from blsp.data.records import SPLITS, Dropped
from blsp.data.sources.manifest import near
from blsp.errors import BlspError
from blsp.executor import run_each
from blsp.params import Corpus, Execution, Params
from blsp.staging import Contents, NotWhole, Staging, staging_of

REPORT = "reports/corpus.json"


def run(params: Params) -> None:
    """Nothing; afterwards data/corpus holds the shards and reports/corpus.json says what became of each row.

    A run that was killed keeps its finished shards: run again, it does the rest.
    Raises BlspError where nothing is left to train or to test on; both are then as they were.
    """
    readers = [partial(sources.rows, source, params.miniature) for source in params.corpus.sources]
    report = pack(readers, params.corpus, params.execution)
    files.write_json(REPORT, report)
    print(_summary(report))


def pack(
    sources: Sequence[planning.Source],
    settings: Corpus,
    execution: Execution,
    corpus_dir: str | Path = shards.CORPUS_DIR,
) -> dict[str, Any]:
    """The report, as in reports/corpus.json; `corpus_dir` then holds the kept rows by split, in the sources' order,
    and the list of those that were dropped.

    `sources` read what `settings.sources` names: each gives the same rows each time it is called.
    """
    staging = staging_of(execution).at("corpus", staging_key(settings))
    found = planning.survey(sources, settings)

    def pack_all(unwanted: dict[str, Dropped]) -> Account:
        account = Account(settings.sources, found.rows_in)
        planned = planning.plan(sources, settings, found, unwanted, account.drop)
        with tqdm(total=sum(found.rows_in), desc="corpus", unit=" rows", mininterval=0.5) as progress:
            for tally in run_each(partial(pack_shard, settings=settings, staging=staging), planned, execution):
                _check_staged(tally, staging)
                account.add(tally)
                progress.update(account.rows_seen - progress.n)
        return account

    account = pack_all({})
    if unwanted := _heard_before(account.prints):
        account.close()
        account = pack_all(unwanted)
    with files.replace_dir(corpus_dir) as folder:
        report = {
            "normalizer": settings.normalizer,
            "normalizers": found.normalizers(),
            **account.settle(folder / DROPPED),
        }
        for source, texts, without, ignored in zip(
            report["sources"], found.texts, found.rows_without, found.rows_with_ignored, strict=True
        ):
            source |= {"cleaned": dict(texts.cleaned), "all_in_capitals": texts.all_in_capitals}
            source |= {"without": dict(without), "ignored": dict(ignored)}
        report["cleaned"] = dict(sum((texts.cleaned for texts in found.texts), Counter()))
        _refuse_empty(report)
        for split in SPLITS:
            (folder / split).mkdir()
            for number, (packed, contents) in enumerate(account.shards[split]):
                _fetch(contents, staging.at(shard_name(split, packed)), folder / split, number)
    staging.clear()
    return report


def staging_key(settings: Corpus) -> str:
    """A digest of what decides, beside the rows, what a shard holds: settings, and the code of this package."""
    package = [*sorted(Path(__file__).parent.glob("*.py")), Path(languages.__file__)]
    code = [path.read_text(encoding="utf-8") for path in package]
    what = json.dumps([settings.model_dump(exclude={"sources"}), code, recogniser.digest(settings)], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:24]


def _check_staged(tally: Tally, staging: Staging) -> None:
    """Nothing. Raises BlspError where a worker put the shard elsewhere."""
    if staging.at(shard_name(tally.split, tally.number)).contents(TALLY) is None:
        raise BlspError(
            f"{staging}: a worker stored {shard_name(tally.split, tally.number)} there, but the run itself does not "
            f"find it; set execution.staging to a place in S3, or {files.SCRATCH_VARIABLE} to a folder that all share"
        )


def _fetch(contents: Mapping[str, Contents], staging: Staging, folder: Path, number: int) -> None:
    """Nothing; the shard, files of these contents, is in `folder` under its final number.

    Raises BlspError where a file is not what was stored: its shard is then done again by the next run.
    """
    for name, stored in contents.items():
        final = folder / name.replace("000000", f"{number:06d}")
        try:
            whole = staging.fetch(name, final) == stored
        except NotWhole:
            whole = False
        if not whole:
            staging.remove(TALLY)
            raise BlspError(
                f"{staging}/{name}: was cut, altered or removed since it was stored; run it again: its shard is done "
                "again, the others are kept"
            )


def _heard_before(prints: dict[str, fingerprints.Prints]) -> dict[str, Dropped]:
    """The rows, by id, whose audio is another row's: the very samples, or alike in a split that is held out further."""
    unwanted: dict[str, Dropped] = {}
    further = fingerprints.Prints()
    for split in splits.HELD_OUT_FIRST:
        for one, other in fingerprints.alike(prints[split], further):
            detail = f"sounds like {other}, which is held out further; {split} here"
            unwanted[one] = Dropped(one, "audio_in_other_split", detail)
        for one, other in fingerprints.repeated(prints[split]):
            unwanted.setdefault(one, Dropped(one, "duplicate_audio", f"the same recording as {other}"))
        further.join(prints[split])
    return unwanted


def _refuse_empty(report: dict[str, Any]) -> None:
    empty = [split for split in ("train", "test") if not report["splits"][split]["rows"]]
    if not empty:
        return
    names = ", ".join(source["path"] or source["name"] for source in report["sources"])
    lines = [
        f"corpus: of {report['rows_in']} rows of {names}, none is left for {' and '.join(empty)}.",
        "Name `split` in the rows, or give at least three speakers, or mend what was dropped"
        + (":" if report["dropped"] else " (nothing was)."),
    ]
    if empty == ["train"] and "sentence_in_other_split" in report["dropped"]:
        lines[1] = (
            "Its sentences are in dev or test too, and no such sentence is trained on: name in corpus.sources a corpus "
            "of other sentences beside it, and it serves to evaluate. What was dropped:"
        )
    for reason, count in sorted(report["dropped"].items()):
        first = report["examples"][reason][0]
        lines.append(f"  {reason}: {count}, first {first['id']}: {first['detail']}")
    raise BlspError("\n".join(lines))


def notes(source: str, without: Mapping[str, int], ignored: Mapping[str, int]) -> list[str]:
    """What is to be said of a source: rows that name no licence or language, and keys that mean nothing here."""
    lines = []
    if rows := without.get("licence"):
        lines.append(
            f"{source}: {rows:,} rows name no licence, which is recorded as unknown; add `licence` to them, or to the "
            "source in corpus.sources, if you know it"
        )
    if rows := without.get("language"):
        lines.append(
            f"{source}: {rows:,} rows name no language, so any language's normaliser is used, and answers are not "
            "checked for theirs; add `language` to them, or to the source in corpus.sources"
        )
    for key, rows in sorted(ignored.items()):
        lines.append(f"{source}: key {key!r} in {rows:,} rows is ignored; the nearest known key is {near(key)!r}")
    return lines


def _summary(report: dict[str, Any]) -> str:
    lines = [f"{'split':24}{'rows':>10}{'hours':>10}{'speakers':>10}"]
    for split, figures in report["splits"].items():
        lines.append(f"{split:24}{figures['rows']:>10,}{figures['hours']:>10.2f}{figures['speakers']:>10,}")
    lines.append(f"{'dropped':24}{report['rows_in'] - report['rows_kept']:>10,}   of {report['rows_in']:,}")
    lines += [f"  {reason:22}{count:>10,}" for reason, count in sorted(report["dropped"].items())]
    if len(report["sources"]) > 1:
        lines.append(f"{'source':24}{'rows':>10}{'dropped':>10}")
        for source in report["sources"]:
            dropped = sum(source["dropped"].values())
            lines.append(f"{source['path'] or source['name']:24}{source['rows_in']:>10,}{dropped:>10,}")
    lines += [f"cleaned: {what:15}{count:>10,}" for what, count in sorted(report["cleaned"].items())]
    for source in report["sources"]:
        if source["all_in_capitals"]:
            lines.append(
                f"{source['path'] or source['name']}: every transcript is in capitals, which LLMs seldom read; with "
                "`case: lower` in corpus.sources they become sentences"
            )
    for source in report["sources"]:
        lines += notes(source["path"] or source["name"], source["without"], source["ignored"])
    return "\n".join(lines)
