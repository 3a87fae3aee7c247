import html.parser
import json
from pathlib import Path

import pytest

from blsp.cli import main
from blsp.contracts import validate
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.params import load_params
from tests.contracts.packed import good_rows, pack

PARAMS_FILE = Path(__file__).parents[2] / "params.yaml"
PARAMS = load_params(PARAMS_FILE)


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def judged(rows, corpus=None, dropped_continuations=(), **limits):
    """The message of the refusal, "" where there is none, and reports/validation.json."""
    pack(rows, corpus or {}, list(dropped_continuations))
    params = PARAMS.model_copy(update={"validate_": PARAMS.validate_.model_copy(update=limits)})
    try:
        validate.run(params)
        message = ""
    except BlspError as error:
        message = str(error)
    return message, json.loads(Path("reports/validation.json").read_text())


def failures(report, severity="critical"):
    return [
        verdict["name"]
        for verdict in report["verdicts"]
        if not verdict["success"] and verdict["severity"] == severity
    ]


def test_a_good_corpus_passes(capfd):
    message, report = judged(good_rows())
    assert message == ""
    assert report["success"] and failures(report) == failures(report, "warning") == []
    assert report["rows"] == {"preparation": 1, "corpus": 18, "continuations": 36}
    assert report["expectations"] == len(report["verdicts"]) >= 20
    out, err = capfd.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["table", "rows"],
        ["preparation", "1"],
        ["corpus", "18"],
        ["continuations", "36"],
    ]
    assert err == ""  # no progress bars, no advice


def duplicate_id(rows):
    rows[1].id = rows[7].id = "same"


def empty_transcript(rows):
    rows[2].text = ""
    for row in rows[2].written.values():
        row["transcript"] = ""


def too_long(rows):
    rows[3].duration_s = 2.5


def too_short(rows):
    rows[3].duration_s = 0.2


def wrong_rate(rows):
    rows[3].sampling_rate_hz = 8000


def implausibly_fast(rows):
    rows[3].duration_s = 0.4


def sentence_leak(rows):
    rows[1].text = rows[13].text.upper() + "!"
    for row in rows[1].written.values():
        row["transcript"] = rows[1].text


def speaker_leak(rows):
    rows[6].speaker = rows[13].speaker


def no_licence(rows):
    rows[4].licence = None


def no_test_split(rows):
    del rows[12:]


def empty_continuation(rows):
    rows[5].written["continuation"]["text"] = " \n"


def copied_continuation(rows):
    rows[5].written["continuation"]["text"] = rows[5].text.upper() + "."


def cut_short(rows):
    rows[5].written["repetition"]["finish_reason"] = "length"


def unknown_finish(rows):
    rows[5].written["repetition"]["finish_reason"] = "error"


def stale_transcript(rows):
    rows[5].text = "another sentence now"


def missing_row(rows):
    rows[5].written["repetition"] = None


SPOILED = [
    # what is done to the corpus, the expectation that fails, those that fail with it, what is shown
    (
        duplicate_id,
        "unique ids",
        {"one row an utterance and behaviour", "transcripts up to date"},
        "id 'same'",
    ),
    (empty_transcript, "transcripts not empty", {"plausible speaking rates"}, "id 'train-2', split 'train'"),
    (too_long, "durations in range", set(), "id 'train-3', split 'train'"),
    (too_short, "durations in range", {"plausible speaking rates"}, "duration_s 0.2"),
    (wrong_rate, "one sampling rate", set(), "sampling_rate_hz 8000"),
    (implausibly_fast, "plausible speaking rates", set(), "chars_per_s 52.5"),
    (
        sentence_leak,
        "no sentence in two splits",
        set(),
        "text 'TEST TURNS THE DOOR!', sentence_splits 'test, train'",
    ),
    (speaker_leak, "no speaker in two splits", set(), "id 'dev-0', split 'dev', speaker 'test-voice-1'"),
    (no_licence, "licences present", set(), "id 'train-4'"),
    (no_test_split, "something to train and to test on", set(), "no rows of test"),
    (
        empty_continuation,
        "continuations not empty",
        set(),
        "id 'train-5', split 'train', behaviour 'continuation'",
    ),
    (copied_continuation, "continuation is no copy", set(), "text 'TRAIN TURNS THE CURTAIN.'"),
    (cut_short, "few of repetition cut", set(), "finish_reason 'length'"),
    (unknown_finish, "finish reasons known", {"few of repetition cut"}, "finish_reason 'error'"),
    (stale_transcript, "transcripts up to date", set(), "corpus_text 'another sentence now'"),
    (missing_row, "continuations complete", set(), "missing_continuations 'repetition'"),
]


@pytest.mark.parametrize(
    ("spoil", "expectation", "others", "shown"), SPOILED, ids=[case[0].__name__ for case in SPOILED]
)
def test_each_violation_is_refused_with_its_rows_named(spoil, expectation, others, shown):
    rows = good_rows()
    spoil(rows)
    message, report = judged(rows, max_duration_s=2.0)
    assert set(failures(report)) == {expectation} | others
    assert not report["success"] and report["failed_critical"] == 1 + len(others)
    assert f"{1 + len(others)} of {report['expectations']} expectations fail" in message
    assert f", {expectation} (critical): " in message
    assert shown in message
    assert "remedy: " in message and "reports/data_docs/index.html" in message


def test_rows_that_nobody_accounted_for_are_refused():
    report = {
        "rows_in": 40,
        "dropped": {"too_long": 7, "empty_text": 4},
        "dropped_rows": [{"id": "a", "reason": "too_long", "detail": "31 s"}],
    }
    message, verdict = judged(good_rows(), report)
    assert failures(verdict) == ["rows accounted for", "dropped rows listed", "few rows dropped"]
    assert "dropped 'empty_text: 4, too_long: 7', drop_share 0.275" in message


def test_what_is_dropped_for_a_reason_and_shares_within_their_limits_pass():
    rows = good_rows()
    missing_row(rows)
    rows[6].written["repetition"]["finish_reason"] = "length"
    copied_continuation(rows)
    dropped = [
        {"id": rows[5].id, "behaviour": "repetition", "reason": "prompt_too_long", "detail": "200 tokens"}
    ]
    # One of 17 is cut, one of 18 is a copy.
    message, report = judged(rows, None, dropped, max_length_share=1 / 17, max_copy_share=1 / 18)
    assert message == "" and report["success"]
    copies = next(verdict for verdict in report["verdicts"] if verdict["name"] == "continuation is no copy")
    assert copies["unexpected_count"] == 1 and copies["examples"][0]["id"] == rows[5].id


def test_a_behaviour_without_any_row_is_refused():
    rows, dropped = good_rows(), []
    for row in rows:
        row.written["repetition"] = None
        dropped.append(
            {"id": row.id, "behaviour": "repetition", "reason": "prompt_too_long", "detail": "200 tokens"}
        )
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
    copied_continuation(rows)
    rows[5].written["continuation"]["transcript"] = rows[5].text = "<script>alert(1)</script>"
    rows[5].written["continuation"]["text"] = rows[5].text
    rows[5].written["repetition"]["transcript"] = rows[5].text
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
    judged(good_rows())
    Path("data/continuations/test/repetition.000001.jsonl.gz").unlink()
    with pytest.raises(BlspError, match=r"repetition\.000001.*run `blsp continuations`"):
        validate.run(PARAMS)
    assert not Path("reports/validation.json").exists() and not Path("reports/data_docs").exists()


def test_a_continuation_without_its_transcript_names_file_and_row():
    rows = good_rows()
    del rows[0].written["continuation"]["transcript"]
    with pytest.raises(BlspError, match=r"continuation\.000000\.jsonl\.gz, row train-0: has no 'transcript'"):
        judged(rows)


def test_the_command_prints_the_refusal_alone_and_fails(capsys):
    rows = good_rows()
    no_licence(rows)
    judged(rows)
    capsys.readouterr()
    assert main(["--params", str(PARAMS_FILE), "validate"]) == 1
    assert capsys.readouterr().err.startswith("blsp validate: 1 of ")
