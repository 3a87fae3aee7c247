import html.parser
import json
import shutil
from pathlib import Path

import pytest

from blsp.cli import main
from blsp.contracts import validate, validate_corpus
from blsp.errors import BlspError
from blsp.files import sha256_of, write_json, write_text
from blsp.params import Params, load_params
from tests.contracts.packed import BEHAVIOURS, RATE_HZ, answer, good_rows, pack

COMMITTED = load_params(Path(__file__).parents[2] / "params.yaml").model_dump(by_alias=True)
LIMITS = {
    "max_duration_s": 2.0,
    "max_chars_per_s": 35.0,
    "min_chars_per_s": 2.0,
    "max_length_share": 0.04,
    "max_copy_share": 0.0,
    "max_drop_share": 0.2,
    "max_answer_drop_share": 0.05,
    "sample_rows": 1000,
}
RAW_PARAMS = COMMITTED | {
    "corpus": COMMITTED["corpus"] | {"sampling_rate_hz": RATE_HZ, "min_duration_s": 0.3, "max_duration_s": 2.0},
    "continuations": COMMITTED["continuations"]
    | {
        "behaviours": {
            name: {"instructions": [f"Do {name}."], "share": 1.0, "answer": kind, "language": None}
            for name, kind in zip(BEHAVIOURS, ("new", "copy"), strict=True)
        }
    },
    "validate": LIMITS,
    "train": COMMITTED["train"] | {"shares": {"continuation": 1.0}},
}
PARAMS = Params.model_validate(RAW_PARAMS)


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(rows, packed=None, **limits):
    """The message of the refusal, "" where there is none, and reports/validation.json; `packed` is for `pack`."""
    pack(rows, **(packed or {}))
    params = PARAMS.model_copy(update={"validate_": PARAMS.validate_.model_copy(update=limits)})
    try:
        validate.run(params)
        message = ""
    except BlspError as error:
        message = str(error)
    return message, json.loads(Path("reports/validation.json").read_text())


def failures(report, severity="critical"):
    return [
        verdict["name"] for verdict in report["verdicts"] if not verdict["success"] and verdict["severity"] == severity
    ]


def test_a_good_corpus_passes(capfd):
    message, report = judged(good_rows())
    assert message == ""
    assert report["success"] and failures(report) == failures(report, "warning") == []
    assert report["rows"] == {"preparation": 2, "corpus": 24, "answers": 2, "continuations": 48}
    assert report["expectations"] == len(report["verdicts"]) >= 20
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["table", "rows"],
        ["preparation", "2"],
        ["corpus", "24"],
        ["answers", "2"],
        ["continuations", "48"],
    ]
    assert err == ""  # no progress bars, no advice


def spoil_everything(rows):
    """One violation of each kind, each in an utterance of its own."""
    by_id = {row.id: row for row in rows}
    by_id["train-0"].id = by_id["dev-1"].id = "same"
    by_id["train-2"].text = ""
    by_id["train-3"].duration_s = 2.5
    by_id["train-4"].licence = None
    by_id["train-5"].duration_s = 0.2
    by_id["train-6"].duration_s = 0.4
    by_id["train-7"].sampling_rate_hz = 8000
    by_id["train-1"].text = "Test turns the DOOR!"
    by_id["dev-0"].speaker = "test-voice-1"
    by_id["dev-2"].written["repetition"]["finish_reason"] = "length"
    by_id["dev-3"].written["continuation"]["finish_reason"] = "error"
    by_id["dev-4"].written["continuation"]["text"] = "Dev turns the HEATER."
    by_id["dev-5"].written["continuation"]["text"] = " \n"
    by_id["dev-6"].written["repetition"] = None
    for row in rows:
        for value in row.written.values():
            if value:
                value["transcript"] = row.text
    by_id["dev-7"].text = "another sentence now"


@pytest.fixture(scope="module")
def refusal(tmp_path_factory):
    """The message and the report on a corpus with every violation."""
    rows = good_rows()
    spoil_everything(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("spoiled"))
        return judged(rows)


VIOLATIONS = {
    # the expectation: the utterances that are shown, and something of what is shown of them
    "unique ids": (["same"] * 2, "id 'same', split 'dev'"),
    "transcripts not empty": (["train-2"], "text ''"),
    "durations in range": (["train-3", "train-5"], "duration_s 2.5"),
    "plausible speaking rates": (["train-2", "train-5", "train-6"], "chars_per_s 55"),
    "one sampling rate": (["train-7"], "sampling_rate_hz 8000"),
    "no sentence in two splits": (["train-1", "test-1"], "text 'Test turns the DOOR!', sentence_splits 'test, train'"),
    "no speaker in two splits": (["dev-0", "test-1", "test-3", "test-5", "test-7"], "speaker 'test-voice-1'"),
    "continuations complete": (["dev-6"], "missing_continuations 'repetition'"),
    "few of repetition cut": (["dev-2"], "finish_reason 'length'"),
    "few of continuation cut": (["dev-3"], "behaviour 'continuation'"),
    "finish reasons known": (["dev-3"], "finish_reason 'error'"),
    "continuation is no copy": (["dev-4"], "text 'Dev turns the HEATER.', is_copy True"),
    "continuations not empty": (["dev-5"], r"text ' \n'"),
    "transcripts up to date": (["dev-7"] * 2, "corpus_text 'another sentence now'"),
    "one row an utterance and behaviour": (["same"] * 4, "id 'same', split 'train', behaviour 'repetition'"),
}


def test_nothing_but_the_violations_is_refused(refusal):
    message, report = refusal
    # The row that lacks is not in the counts either.
    expected = {*VIOLATIONS, "utterances accounted for"}
    assert set(failures(report)) == expected and failures(report, "warning") == ["licences present"]
    assert not report["success"] and report["failed_critical"] == len(expected)
    first, *_, last = message.splitlines()
    assert first.startswith(f"{len(expected)} of {report['expectations']} expectations fail")
    assert last == "All verdicts: reports/data_docs/index.html, reports/validation.json"


@pytest.mark.parametrize("expectation", VIOLATIONS)
def test_each_violation_is_refused_with_its_rows_named(refusal, expectation):
    message, report = refusal
    ids, shown = VIOLATIONS[expectation]
    (verdict,) = (verdict for verdict in report["verdicts"] if verdict["name"] == expectation)
    assert [row["id"] for row in verdict["examples"]] == ids
    assert verdict["unexpected_count"] == len(ids)
    paragraph = message.partition(f", {expectation} (critical): ")[2].partition("  remedy: ")[0]
    assert verdict["description"] in paragraph
    assert shown in paragraph and all(f"id {id_!r}" in paragraph for id_ in ids)


def test_the_corpus_is_judged_before_anything_is_written_from_it(capsys):
    pack(good_rows())
    shutil.rmtree("data/continuations")
    Path("reports/continuations.json").unlink()
    validate_corpus.run(PARAMS)
    assert json.loads(Path(validate_corpus.REPORT).read_text()) == {"success": True}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["table", "preparation", "corpus"]
    assert not Path("reports/data_docs").exists()


def test_a_corpus_that_validate_would_refuse_is_refused_before():
    rows = good_rows()
    for row in rows:
        row.licence = None
    rows[0].speaker = rows[-1].speaker
    pack(rows)
    Path(validate_corpus.REPORT).write_text("of an earlier run")
    with pytest.raises(BlspError, match="1 of 1[0-9] expectations fail; nothing is written") as refusal:
        validate_corpus.run(PARAMS)
    assert "no speaker in two splits (critical)" in str(refusal.value)
    assert "licences present" not in str(refusal.value), "is no reason to stop"
    assert not Path(validate_corpus.REPORT).exists()


def test_digits_count_as_the_words_that_they_are():
    rows = good_rows()
    rows[0].text, rows[0].duration_s = "0351", 1.9
    rows[1].text, rows[1].duration_s = "oh", 1.9
    _, report = judged(rows)
    (rates,) = (verdict for verdict in report["verdicts"] if verdict["name"] == "plausible speaking rates")
    assert [row["id"] for row in rates["examples"]] == ["train-1"]


def test_a_corpus_without_a_test_split_is_refused():
    message, report = judged([row for row in good_rows() if row.split != "test"])
    assert failures(report) == ["something to train and to test on"]
    assert "found: no rows of test" in message


DROPPED = [{"id": str(number), "source": "mine", "reason": "too_long", "detail": "31 s"} for number in range(7)]


@pytest.mark.parametrize(
    ("corpus", "dropped", "expectations"),
    [
        ({"rows_in": 32}, DROPPED, ["rows accounted for"]),
        ({"rows_kept": 23, "rows_in": 30}, DROPPED, ["kept rows packed"]),
        ({}, [*DROPPED[1:], DROPPED[0] | {"reason": "silent"}], []),
        ({"dropped": {"too_long": 7}}, [*DROPPED[1:], DROPPED[0] | {"reason": "silent"}], ["dropped rows listed"]),
        ({"dropped": {"too_long": 7}}, [*DROPPED[1:], DROPPED[0] | {"source": "yours"}], ["dropped rows listed"]),
        ({"dropped": {"too_long": 7}, "rows_in": 31}, DROPPED[1:], ["dropped rows listed"]),
    ],
)
def test_counts_of_the_corpus_that_do_not_add_up_are_refused(corpus, dropped, expectations):
    message, report = judged(good_rows(), {"corpus": corpus, "dropped": dropped}, max_drop_share=0.25)
    assert failures(report) == expectations
    assert bool(message) == bool(expectations)


def test_one_source_may_not_hide_behind_another(monkeypatch):
    """The totals are right, and so is each sum; the rows of one source are missing, those of the other are too many."""
    pack(good_rows(), dropped=DROPPED)
    report = json.loads(Path("reports/corpus.json").read_text())
    halves = {"rows_in": 15, "rows_kept": 12, "dropped": {"too_long": 3}}, {"rows_in": 16, "rows_kept": 12}
    sources = [{"name": "manifest", "path": path} | half for path, half in zip(("mine", "b"), halves, strict=True)]
    sources[1]["dropped"] = {"too_long": 4}
    write_json("reports/corpus.json", report | {"sources": sources})
    with pytest.raises(BlspError) as refusal:
        validate.run(
            PARAMS.model_copy(update={"validate_": PARAMS.validate_.model_copy(update={"max_drop_share": 1.0})})
        )
    assert "dropped rows listed" in str(refusal.value) and "rows accounted for" not in str(refusal.value)
    assert "source 'mine', dropped 'too_long 3 (20.00%)', listed 'too_long 7 (46.67%)'" in str(refusal.value)


def test_too_many_dropped_rows_are_refused_with_their_reasons():
    message, report = judged(good_rows(), {"dropped": DROPPED})
    assert failures(report) == ["few rows dropped"]
    assert "found: of 31 dropped: too_long 7 (22.58%)" in message


def answers_dropped(rows, numbers, behaviour="repetition", reason="prompt_too_long"):
    """The list of these answers, which are taken from their rows."""
    for number in numbers:
        rows[number].written[behaviour] = None
    return [{"id": rows[n].id, "behaviour": behaviour, "reason": reason, "detail": "200 tokens"} for n in numbers]


def test_what_is_dropped_for_a_reason_and_shares_within_their_limits_pass():
    rows = good_rows()
    dropped = answers_dropped(rows, [5])
    rows[6].written["repetition"]["finish_reason"] = "length"
    rows[5].written["continuation"]["text"] = rows[5].text.upper() + "."
    # One of 23 is cut, one of 24 is a copy.
    message, report = judged(rows, {"dropped_answers": dropped}, max_length_share=1 / 23, max_copy_share=1 / 24)
    assert message == "" and report["success"]
    copies = next(verdict for verdict in report["verdicts"] if verdict["name"] == "continuation is no copy")
    assert copies["unexpected_count"] == 1 and copies["examples"][0]["id"] == rows[5].id


def test_a_behaviour_without_any_row_is_refused():
    rows = good_rows()
    message, report = judged(rows, {"dropped_answers": answers_dropped(rows, range(24))}, max_answer_drop_share=1.0)
    assert failures(report) == ["every behaviour written"]
    assert "behaviour 'repetition', rows_found 0" in message


def test_answers_dropped_too_often_for_one_reason_are_refused_with_all_shares():
    rows = good_rows()
    dropped = answers_dropped(rows, [1, 2], "continuation", "refusal")
    dropped += answers_dropped(rows, [3], "continuation", "loop") + answers_dropped(rows, [1], reason="not_a_copy")
    message, report = judged(rows, {"dropped_answers": dropped})
    assert failures(report) == ["few answers of continuation dropped"]
    found = {verdict["name"]: verdict["observed"] for verdict in report["verdicts"]}
    assert found["few answers of continuation dropped"] == "of 24 dropped: loop 1 (4.17%), refusal 2 (8.33%)"
    assert found["few answers of repetition dropped"] == "of 24 dropped: not_a_copy 1 (4.17%)"
    assert found["few answers of continuation dropped"] in message


@pytest.mark.parametrize(
    ("counts", "expectations"),
    [
        ({"rows": 22, "rows_not_asked": 1}, ["kept answers written"]),
        ({"rows_not_asked": 1}, ["utterances accounted for"]),
        ({"dropped": {"loop": 1}}, ["dropped answers listed"]),
        ({"dropped": {"refusal": 2}}, ["utterances accounted for", "dropped answers listed"]),
    ],
)
def test_counts_of_the_answers_that_do_not_add_up_are_refused(counts, expectations):
    rows = good_rows()
    dropped = answers_dropped(rows, [4], reason="refusal")
    _, report = judged(
        rows, {"dropped_answers": dropped, "behaviours": {"repetition": counts}}, max_answer_drop_share=1
    )
    assert failures(report) == expectations


def test_utterances_that_a_behaviour_with_a_share_was_not_asked_for_are_not_missing():
    rows = good_rows()
    dropped = answers_dropped(rows, [4], reason="refusal")
    answers_dropped(rows, range(6, 16))  # not asked
    counts = {"repetition": {"rows_not_asked": 10}}
    message, report = judged(rows, {"dropped_answers": dropped, "behaviours": counts}, max_answer_drop_share=0.1)
    assert message == "" and report["success"]
    # Of a behaviour that was asked of all, the same rows are missing.
    _, report = judged(rows, {"dropped_answers": dropped}, max_answer_drop_share=0.1)
    assert failures(report) == ["continuations complete", "utterances accounted for"]


def test_values_are_judged_on_a_sample_and_what_one_row_may_spoil_in_full():
    """Three of 24 utterances lack a licence: a sample of five need not see it. One id twice is always seen."""
    rows = good_rows()
    rows[3].id = rows[17].id
    rows[9].text = rows[20].text
    rows[11].written["continuation"]["transcript"] = "older"
    _, report = judged(rows, sample_rows=5)
    in_full = {
        "unique ids",
        "no sentence in two splits",
        "one row an utterance and behaviour",
        "transcripts up to date",
    }
    assert in_full <= set(failures(report))
    judged_on = {verdict["name"]: (verdict["rows_judged"], verdict["rows"]) for verdict in report["verdicts"]}
    assert all(judged_on[name] in ((24, 24), (48, 48)) for name in in_full)
    assert judged_on["licences present"] == (5, 24) and judged_on["continuations not empty"] == (5, 48)


def test_a_failure_in_a_sample_says_that_it_is_one():
    rows = good_rows()
    for row in rows:
        row.sampling_rate_hz = 8000
    message, report = judged(rows, sample_rows=5)
    assert failures(report) == ["one sampling rate"]
    assert "found: not as expected in 5 of 5 rows (100.00%); judged on a sample: 5 of 24 rows" in message


def test_a_warning_is_shown_and_stops_nothing(capsys):
    rows = [row for row in good_rows() if row.split != "dev"]
    rows[2].speaker = None
    message, report = judged(rows)
    assert message == "" and report["success"] and report["failed_warning"] == 2
    assert failures(report, "warning") == ["something to watch training on", "speakers known"]
    assert "speakers known (warning): " in capsys.readouterr().out


class _Page(html.parser.HTMLParser):
    """The addresses a page refers to, its tags, and its text."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.tags, self.text = [], set(), ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def test_the_data_docs_are_whole_without_a_network_and_the_same_for_the_same_data():
    rows = good_rows()
    rows[5].text = "<script>alert(1)</script>"
    rows[5].written = {behaviour: answer(rows[5].text, rows[5].text) for behaviour in BEHAVIOURS}
    judged(rows)
    docs = Path("reports/data_docs")
    index = _Page(docs / "index.html")
    assert "No: 1 critical expectation fails" in " ".join(index.text.split())
    assert [Path(address).stem for address in index.addresses] == [
        "tables-preparation",
        "tables-corpus",
        "tables-answers",
        "tables-continuations",
    ]
    for address in index.addresses:
        page = _Page(docs / address)
        assert "script" not in page.tags | index.tags
        assert [(docs / address).parent.joinpath(back).resolve() for back in page.addresses] == [
            (docs / "index.html").resolve()
        ]
    assert "What to do: Look at the rows: an LLM that copies" in page.text
    assert "<script>alert(1)</script>" in page.text
    # What identifies a row comes first, and what the texts quote is set apart.
    assert "idsplitbehaviourtranscripttextiscopytrain-5train" in "".join(page.text.split())
    assert "code" in page.tags and "`" not in page.text
    before = sha256_of("reports")
    with pytest.raises(BlspError):
        validate.run(PARAMS)
    assert sha256_of("reports") == before


def test_no_verdict_is_left_of_data_that_can_no_longer_be_read():
    pack(good_rows())
    write_json("reports/validation.json", {"success": True})
    write_text("reports/data_docs/index.html", "Yes: every critical expectation holds.")
    Path("data/continuations/test/repetition.000001.jsonl.gz").unlink()
    with pytest.raises(BlspError, match=r"repetition\.000001.*run `blsp continuations`"):
        validate.run(PARAMS)
    assert not Path("reports/validation.json").exists() and not Path("reports/data_docs").exists()


def test_a_continuation_without_its_transcript_names_file_and_row():
    rows = good_rows()
    del rows[0].written["continuation"]["transcript"]
    pack(rows)
    with pytest.raises(BlspError, match=r"continuation\.000000\.jsonl\.gz, row train-0: has no 'transcript'"):
        validate.run(PARAMS)


def test_the_command_prints_the_refusal_alone_and_fails(capsys):
    rows = good_rows()
    rows[4].speaker = rows[-1].speaker
    pack(rows)
    write_json("params.yaml", RAW_PARAMS)  # JSON is YAML too
    assert main(["validate"]) == 1
    assert capsys.readouterr().err.startswith("blsp validate: 1 of ")


@pytest.mark.parametrize(
    ("behaviours", "expected"),
    [
        ({}, "reports/continuations.json knows no behaviour 'continuation'"),
        ({"continuation": {"rows": 24, "dropped": {}}}, "json has no rows_not_asked of the behaviour 'continuation'"),
    ],
)
def test_a_report_of_other_continuations_is_refused(behaviours, expected):
    pack(good_rows())
    write_json("reports/continuations.json", {"behaviours": behaviours})
    with pytest.raises(BlspError, match=f"{expected} .*run `blsp continuations` again"):
        validate.run(PARAMS)
