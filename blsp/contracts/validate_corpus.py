"""The stage `validate_corpus`: what `validate` expects of the corpus, judged before the LLM writes a word from it."""

from pathlib import Path

from blsp.contracts import counts, tables, validate
from blsp.contracts.tables import Table
from blsp.files import write_json
from blsp.params import Params

REPORT = "reports/corpus_verdict.json"


def run(params: Params) -> None:
    """Judge data/corpus, and write to reports/corpus_verdict.json that it passed.

    No more stands there: the LLM is not to write everything again because a limit or a remedy was reworded. Raises
    BlspError where a critical expectation fails: the message names each with example rows.
    """
    Path(REPORT).unlink(missing_ok=True)
    prepared = counts.read_report(validate.CORPUS_REPORT, "corpus")
    corpus, _ = tables.read_shards([], params.validate_.sample_rows)
    found = {"preparation": Table(counts.preparation(prepared, len(corpus.rows))), "corpus": corpus}
    verdicts = validate.judge(found, params)
    print(validate.summary(validate.report_of(found, verdicts), verdicts))
    validate.refuse_failed(verdicts, "nothing is written from this corpus.")
    write_json(REPORT, {"success": True})
