"""The stage `validate`: Great Expectations over the corpus and the continuations; a critical failure stops the run."""

import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blsp.contracts import pages, tables
from blsp.contracts.expectations import suites
from blsp.contracts.verdicts import EXAMPLES, Verdict, name_examples, verdicts_of
from blsp.errors import BlspError
from blsp.files import replace_dir, write_json
from blsp.params import Params

if TYPE_CHECKING:
    import pandas as pd

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
    report = _report(found, verdicts)
    write_json(REPORT, report)
    print(_summary(report, verdicts))
    failed = [verdict for verdict in verdicts if verdict.stops]
    if failed:
        raise BlspError(
            "\n".join(
                [f"{len(failed)} of {len(verdicts)} expectations fail; nothing is trained on this data."]
                + [line for verdict in failed for line in verdict.lines()]
                + [f"All verdicts: {DATA_DOCS}/index.html, {REPORT}"]
            )
        )


def read_tables(params: Params) -> "dict[str, pd.DataFrame]":
    """The tables to judge, by the names of their suites, from the folders and reports of the earlier stages."""
    behaviours = list(params.continuations.behaviours)
    corpus = tables.read_corpus()
    preparation = tables.preparation(tables.read_report(CORPUS_REPORT, "corpus"), corpus)
    written = tables.read_report(CONTINUATIONS_REPORT, "continuations")
    continuations = tables.read_continuations(corpus, behaviours)
    corpus["missing_continuations"] = tables.missing_continuations(corpus, continuations, behaviours, written)
    return {"preparation": preparation, "corpus": corpus, "continuations": continuations}


def judge(found: "dict[str, pd.DataFrame]", params: Params, docs_folder: str | Path) -> list[Verdict]:
    """One verdict an expectation, table by table; `docs_folder` then holds the Data Docs, index.html first."""
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        data_docs_sites={"data_docs": pages.site(str(Path(docs_folder).resolve()))},
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    source = context.data_sources.add_pandas("tables")
    # The time is in the pages' addresses: the same data is to give the same files.
    run_id = RunIdentifier(run_name="validate", run_time=datetime(1970, 1, 1, tzinfo=UTC))
    verdicts = []
    for name, suite in suites(params).items():
        batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all rows")
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batches, suite=context.suites.add(suite))
        )
        results = definition.run(
            batch_parameters={"dataframe": found[name]},
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
            run_id=run_id,
        )
        name_examples(results, found[name])
        verdicts += verdicts_of(results)
        for key in context.validation_results_store.list_keys():
            if key.expectation_suite_identifier.name == name:
                context.validation_results_store.set(key, results)
    context.build_data_docs()
    shutil.rmtree(Path(docs_folder) / "static", ignore_errors=True)  # 4 MB of fonts and pictures for its own pages
    return verdicts


def _report(found: "dict[str, pd.DataFrame]", verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "success": not any(verdict.stops for verdict in verdicts),
        "expectations": len(verdicts),
        "failed_critical": sum(verdict.stops for verdict in verdicts),
        "failed_warning": sum(not verdict.success and not verdict.stops for verdict in verdicts),
        "rows": {name: len(table) for name, table in found.items()},
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def _summary(report: dict[str, Any], verdicts: list[Verdict]) -> str:
    lines = [f"{'table':16}{'rows':>10}{'hold':>8}{'fail':>8}{'warn':>8}"]
    for table, rows in report["rows"].items():
        own = [verdict for verdict in verdicts if verdict.table == table]
        hold, fail = sum(v.success for v in own), sum(v.stops for v in own)
        lines.append(f"{table:16}{rows:>10,}{hold:>8}{fail:>8}{len(own) - hold - fail:>8}")
    for verdict in verdicts:
        if not verdict.success and not verdict.stops:
            lines += verdict.lines()
    return "\n".join(lines)
