"""What the corpus and the continuations must be like, for Great Expectations to judge.

Every expectation has a name (in reports and messages), a sentence that says what is expected, the remedy, and
a severity: `critical` stops the pipeline, `warning` is shown. Values are judged on a sample of the rows; what one row
may spoil for all, such as an id used twice or a sentence in two splits, is judged in full.
"""

from typing import TYPE_CHECKING

from blsp.contracts import expected_counts, expected_rows
from blsp.params import Params

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

# What identifies a row where it is shown as an example.
SHOWN_COLUMNS = {
    "preparation": ["source"],
    "corpus": ["id", "split", "speaker", "text"],
    "answers": ["behaviour"],
    "continuations": ["id", "split", "behaviour"],
}
# What is shown of the tables that are counts themselves, and under which names.
COUNTS = {
    "preparation": {"source": "source", "rows_in": "rows", "rows_kept": "kept", "dropped": "dropped"},
    "answers": {
        "behaviour": "behaviour",
        "utterances": "utterances",
        "rows_not_asked": "not asked",
        "rows_in": "asked",
        "rows_kept": "kept",
        "dropped": "dropped",
    },
}


def expectations(params: Params, corpus_alone: bool = False) -> "dict[str, list[Expectation]]":
    """What is expected of each table that `blsp.contracts` makes, with the limits of `params`.

    `corpus_alone`: of the corpus, before anything is written from it.
    """
    if corpus_alone:
        return {"preparation": expected_counts.preparation(params), "corpus": expected_rows.corpus(params)[:-1]}
    return {
        "preparation": expected_counts.preparation(params),
        "corpus": expected_rows.corpus(params),
        "answers": expected_counts.answers(params),
        "continuations": expected_rows.continuations(params),
    }
