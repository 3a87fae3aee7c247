import html.parser
import json
from pathlib import Path

import pytest

from blsp.cli import main
from blsp.contracts import validate
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
}
RAW_PARAMS = COMMITTED | {
    "corpus": COMMITTED["corpus"] | {"sampling_rate_hz": RATE_HZ, "min_duration_s": 0.3},
    "continuations": COMMITTED["continuations"] | {"behaviours": {name: f"Do {name}." for name in BEHAVIOURS}},
    "validate": LIMITS,
    "train": COMMITTED["train"] | {"shares": {"continuation": 1.0}},
}
PARAMS = Params.model_validate(RAW_PARAMS)


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(rows, corpus=None, dropped_continuations=(), **limits):
    """The message of the refusal, "" where there is none, and reports/validation.json."""
    pack(rows, corpus, dropped_continuations)
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
    assert report["rows"] == {"preparation": 1, "corpus": 24, "continuations": 48}
    assert report["expectations"] == len(report["verdicts"]) >= 20
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["table", "rows"],
        ["preparation", "1"],
        ["corpus", "24"],
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
    "licences present": (["train-4"], "licence missing"),
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
    "transcripts up to date": (["same"] * 2 + ["dev-7"] * 2, "corpus_text 'another sentence now'"),
    "one row an utterance and behaviour": (["same"] * 4, "id 'same', split 'train', behaviour 'repetition'"),
}


def test_nothing_but_the_violations_is_refused(refusal):
    message, report = refusal
    assert set(failures(report)) == set(VIOLATIONS) and failures(report, "warning") == []
    assert not report["success"] and report["failed_critical"] == len(VIOLATIONS)
    first, *_, last = message.splitlines()
    assert first.startswith(f"{len(VIOLATIONS)} of {report['expectations']} expectations fail")
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


def test_a_corpus_without_a_test_split_is_refused():
    message, report = judged([row for row in good_rows() if row.split != "test"])
    assert failures(report) == ["something to train and to test on"]
    assert "found: no rows of test" in message


def test_rows_that_nobody_accounted_for_are_refused():
    report = {
        "rows_in": 48,
        "dropped": {"too_long": 7, "empty_text": 4},
        "dropped_rows": [{"id": "a", "reason": "too_long", "detail": "31 s"}],
    }
    message, verdict = judged(good_rows(), report)
    assert failures(verdict) == ["rows accounted for", "dropped rows listed", "few rows dropped"]
    assert "dropped 'empty_text: 4, too_long: 7', drop_share 0.2292" in message


def test_what_is_dropped_for_a_reason_and_shares_within_their_limits_pass():
    rows = good_rows()
    rows[5].written["repetition"] = None
    rows[6].written["repetition"]["finish_reason"] = "length"
    rows[5].written["continuation"]["text"] = rows[5].text.upper() + "."
    dropped = [{"id": rows[5].id, "behaviour": "repetition", "reason": "prompt_too_long", "detail": "200 tokens"}]
    # One of 23 is cut, one of 24 is a copy.
    message, report = judged(rows, None, dropped, max_length_share=1 / 23, max_copy_share=1 / 24)
    assert message == "" and report["success"]
    copies = next(verdict for verdict in report["verdicts"] if verdict["name"] == "continuation is no copy")
    assert copies["unexpected_count"] == 1 and copies["examples"][0]["id"] == rows[5].id


def test_a_behaviour_without_any_row_is_refused():
    rows, dropped = good_rows(), []
    for row in rows:
        row.written["repetition"] = None
        dropped.append({"id": row.id, "behaviour": "repetition", "reason": "prompt_too_long", "detail": "200 tokens"})
    message, report = judged(rows, None, dropped)
    assert failures(report) == ["every behaviour written"]
    assert "no rows of repetition" in message


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
        "tables-continuations",
    ]
    for address in index.addresses:
        page = _Page(docs / address)
        assert "script" not in page.tags | index.tags
        assert [(docs / address).parent.joinpath(back).resolve() for back in page.addresses] == [
            (docs / "index.html").resolve()
        ]
    assert "Remedy: Look at the rows: an LLM that copies" in page.text
    assert "<script>alert(1)</script>" in page.text
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
    rows[4].licence = None
    pack(rows)
    write_json("params.yaml", RAW_PARAMS)  # JSON is YAML too
    assert main(["validate"]) == 1
    assert capsys.readouterr().err.startswith("blsp validate: 1 of ")
