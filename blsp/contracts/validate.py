"""The stage `validate`: Great Expectations over the corpus and the continuations; a critical failure stops the run."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blsp.contracts import counts, pages, tables
from blsp.contracts.expectations import COUNTS, expectations
from blsp.contracts.tables import Table
from blsp.contracts.verdicts import EXAMPLES, Verdict, complete, verdicts_of
from blsp.errors import BlspError
from blsp.files import replace_dir, write_json
from blsp.params import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from great_expectations.expectations.expectation import Expectation

REPORT = "reports/validation.json"
DATA_DOCS = "reports/data_docs"
CORPUS_REPORT = "reports/corpus.json"
CONTINUATIONS_REPORT = "reports/continuations.json"


def run(params: Params) -> None:
    """Nothing; afterwards reports/validation.json and reports/data_docs hold the verdict on the data that is there.

    Raises BlspError where a critical expectation fails: the message names each with example rows. The report
    and the pages are there then too, to be read, and say so.
    """
    # No verdict on older data is left should this run be killed, or find nothing to judge.
    Path(REPORT).unlink(missing_ok=True)
    shutil.rmtree(DATA_DOCS, ignore_errors=True)
    found = read_tables(params)
    with replace_dir(DATA_DOCS) as folder:
        verdicts = judge(found, params, folder)
    report = report_of(found, verdicts)
    write_json(REPORT, report)
    print(summary(report, verdicts))
    refuse_failed(verdicts, "nothing is trained on this data.", f"All verdicts: {DATA_DOCS}/index.html, {REPORT}")


def refuse_failed(verdicts: Sequence[Verdict], consequence: str, *closing: str) -> None:
    """Raise BlspError where a critical expectation fails: each of these, with example rows."""
    failed = [verdict for verdict in verdicts if verdict.stops]
    if failed:
        raise BlspError(
            "\n".join(
                [f"{len(failed)} of {len(verdicts)} expectations fail; {consequence}"]
                + [line for verdict in failed for line in verdict.lines()]
                + list(closing)
            )
        )


def read_tables(params: Params) -> dict[str, Table]:
    """The tables to judge, by the names of their suites, from the folders and reports of the earlier stages."""
    behaviours = list(params.continuations.behaviours)
    prepared = counts.read_report(CORPUS_REPORT, "corpus")
    written = counts.read_report(CONTINUATIONS_REPORT, "continuations")
    corpus, continuations = tables.read_shards(behaviours, params.validate_.sample_rows)
    reasons, dropped_ids = counts.read_dropped_answers()
    answers = counts.answers(written, corpus.rows, behaviours, reasons)
    # Where a behaviour has a share, whom it was asked of is not in the report: there the counts must do.
    of_all = answers.loc[answers["rows_not_asked"] == 0, "behaviour"]
    corpus.rows["missing_continuations"] = tables.missing_continuations(
        corpus.rows, {name: dropped_ids.get(name, []) for name in of_all}
    )
    return {
        "preparation": Table(counts.preparation(prepared, len(corpus.rows))),
        "corpus": corpus,
        "answers": Table(answers),
        "continuations": continuations,
    }


def judge(found: dict[str, Table], params: Params, docs_folder: str | Path | None = None) -> list[Verdict]:
    """One verdict an expectation on these tables; `docs_folder` then holds the Data Docs, index.html first."""
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        data_docs_sites={"data_docs": pages.site(str(Path(docs_folder).resolve()))} if docs_folder else {},
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    source = context.data_sources.add_pandas("tables")
    # The time is in the pages' addresses: the same data is to give the same files.
    run_id = RunIdentifier(run_name="validate", run_time=datetime(1970, 1, 1, tzinfo=UTC))
    verdicts = []
    for name, rules in expectations(params, corpus_alone="continuations" not in found).items():
        batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("rows")
        table, parts = found[name], []
        for rows, own in _parts(table, rules):
            results = batches.get_batch({"dataframe": rows}).validate(
                gx.ExpectationSuite(name=name, expectations=own),
                result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
            )
            complete(results, rows, of=len(table.rows))
            parts.append(results)
        # One page a table, in the order of its rules.
        whole, order = parts[0], [rule.meta["name"] for rule in rules]
        if name in COUNTS:
            whole.meta["counts"] = table.rows[list(COUNTS[name])].to_dict("records")
        whole.results = sorted(
            (result for part in parts for result in part.results),
            key=lambda result: order.index(result.expectation_config.meta["name"]),
        )
        suite = ExpectationSuiteIdentifier(name)
        context.validation_results_store.set(ValidationResultIdentifier(suite, run_id, f"tables-{name}"), whole)
        verdicts += verdicts_of(whole)
    if docs_folder:
        context.build_data_docs()
        shutil.rmtree(Path(docs_folder) / "static", ignore_errors=True)  # 4 MB of fonts and pictures for its own pages
    return verdicts


def _parts(table: Table, rules: "list[Expectation]") -> "Iterator[tuple[pd.DataFrame, list[Expectation]]]":
    """Rows, and the rules that are judged on them: in full, and on the sample."""
    for in_full, rows in ((True, table.rows), (False, table.sample)):
        own = [rule for rule in rules if rule.meta["in_full"] == in_full]
        if own:
            yield rows, own


def report_of(found: dict[str, Table], verdicts: list[Verdict]) -> dict[str, Any]:
    """What reports/validation.json says."""
    return {
        "success": not any(verdict.stops for verdict in verdicts),
        "expectations": len(verdicts),
        "failed_critical": sum(verdict.stops for verdict in verdicts),
        "failed_warning": sum(not verdict.success and not verdict.stops for verdict in verdicts),
        "rows": {name: len(table.rows) for name, table in found.items()},
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def summary(report: dict[str, Any], verdicts: list[Verdict]) -> str:
    """For the terminal: a line a table, and the warnings."""
    lines = [f"{'table':16}{'rows':>10}{'hold':>8}{'fail':>8}{'warn':>8}"]
    for table, rows in report["rows"].items():
        own = [verdict for verdict in verdicts if verdict.table == table]
        hold, fail = sum(v.success for v in own), sum(v.stops for v in own)
        lines.append(f"{table:16}{rows:>10,}{hold:>8}{fail:>8}{len(own) - hold - fail:>8}")
    for verdict in verdicts:
        if not verdict.success and not verdict.stops:
            lines += verdict.lines()
    return "\n".join(lines)
