"""The report page: one file that shows random rows and plays them, and runs nothing of what they say."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile

from blsp.continuation.page import DROPPED_A_REASON, PAGE, SAMPLES, write_page
from blsp.data.drops import write_drops
from tests.contracts import packed

EVIL = '<script>alert(1)</script> & "more"'
SILENT = {"html", "head", "meta", "title", "style", "body", "audio", "article", "table", "thead", "tbody", "tr", "th"}
SILENT |= {"td", "h1", "h2", "h3", "p", "div", "span", "b", "i", "ul", "li", "dl", "dt", "dd"}


class Page(HTMLParser):
    """What a browser would find: elements, addresses, and the text of table rows and articles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.addresses, self.blocks = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag in ("tr", "article"):
            self.blocks.append("")

    def handle_data(self, data):
        if self.blocks:
            self.blocks[-1] += data


def report(**dropped):
    """As the stage writes it, of what `packed.pack` packs."""
    counts = {"rows": 24, "rows_not_asked": 3, "tokens": 72, "finish_reason": {"stop": 23, "length": 1}}
    instructions = {"continuation": ["Continue.", "Go <on>."], "repetition": ["Repeat the following text."]}
    return {
        "llm": {"name": "owner/llm", "revision": None, "sha256": "0123abcd"},
        "engine": "transformers",
        "behaviours": {
            name: {"share": 0.5, "instructions": words, **counts, "dropped": dropped.get(name, {})}
            for name, words in instructions.items()
        },
    }


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Rows of a packed corpus in the working directory, each with a duration of its own."""
    monkeypatch.chdir(tmp_path)
    rows = packed.good_rows()
    for number, row in enumerate(rows):
        row.duration_s = 0.5 + 0.05 * number
        row.text = f"{row.text} {EVIL}"
        for behaviour, written in row.written.items():
            instruction = f"The instruction of {behaviour}."
            row.written[behaviour] = {"id": row.id, "instruction": instruction, **written, "transcript": row.text}
    rows[0].written["continuation"]["finish_reason"] = "length"
    rows[1].speaker = None
    packed.pack(rows)
    return rows


def again(rows, **options):
    """Packs the corpus anew."""
    shutil.rmtree("data")
    packed.pack(rows, **options)


def read():
    text = Path(PAGE).read_text(encoding="utf-8")
    return text, Page(text)


def articles(page):
    return [block for block in page.blocks if "The LLM wrote" in block]


def test_each_behaviour_shows_random_rows_with_all_that_is_known_of_them(rows):
    write_page(report())
    _, page = read()
    shown = articles(page)
    assert len(shown) == SAMPLES
    known = {row.id: row for row in rows}
    ids = [re.match(r"\s*(\S+)", article)[1] for article in shown]
    assert len({id_.split("-")[0] for id_ in ids}) > 1, "of all splits"
    for number, (id_, article) in enumerate(zip(ids, shown, strict=True)):
        row, behaviour = known[id_], packed.BEHAVIOURS[number // (SAMPLES // 2)]
        written = row.written[behaviour]
        assert f"{row.split} · {f'speaker {row.speaker}' if row.speaker else 'speaker unknown'} ·" in article
        for expected in (
            row.text,
            written["text"],
            written["instruction"],
            "3 tokens",
            f"({written['finish_reason']})",
        ):
            assert expected in article


def test_each_player_holds_its_own_utterance(rows):
    write_page(report())
    _, page = read()
    duration_s = {row.id: row.duration_s for row in rows}
    players = [address for address in page.addresses if address.startswith("data:audio/mpeg;base64,")]
    assert len(players) == SAMPLES == len(page.addresses), "nothing else is fetched"
    for article, player in zip(articles(page), players, strict=True):
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(player.partition(",")[2])))
        assert len(samples) / rate_hz == pytest.approx(duration_s[re.match(r"\s*(\S+)", article)[1]], abs=0.01)
        assert 0.05 < samples.std() < 0.2, "the noise that was packed"


def test_what_anybody_said_is_shown_and_not_run(rows):
    write_page(report())
    text, page = read()
    assert page.elements <= SILENT
    assert all(EVIL in article for article in articles(page))
    assert "Content-Security-Policy\" content=\"default-src 'none'" in text
    assert "http://" not in text and "https://" not in text


def test_the_counts_are_those_of_the_report(rows):
    dropped = {"continuation": {"loop": 6, "refusal": 2}}
    write_page(report(**dropped))
    _, page = read()
    (line,) = (block for block in page.blocks if block.split()[:1] == ["continuation"])
    assert line.split()[:9] == ["continuation", "24", "72", "3.0", "1,", "4.17", "%", "3", "8"]
    assert "8 of 32, 25.00 %" in line and "loop: 6, 18.75 %" in line and "refusal: 2, 6.25 %" in line


def test_random_drops_of_each_reason_are_shown_with_their_transcripts(rows):
    drops = [
        {"id": row.id, "behaviour": "repetition", "reason": reason, "detail": f"{reason} of {row.id} <b>"}
        for row in rows
        for reason in ("not_a_copy", "empty")
    ]
    write_drops("data/continuations/dropped.jsonl.gz", drops)
    write_page(report(repetition={"not_a_copy": 24, "empty": 24}))
    _, page = read()
    for reason in ("not_a_copy", "empty"):
        shown = [block for block in page.blocks if f"{reason} of" in block]
        assert len(shown) == DROPPED_A_REASON
        for block in shown:
            row = next(row for row in rows if f"{reason} of {row.id} <b>" in block)
            assert row.text in block


def test_the_same_data_give_the_same_page_however_they_are_sharded(rows):
    write_page(report())
    first, _ = read()
    write_page(report())
    assert read()[0] == first
    again(rows, shard_size=100)
    write_page(report())
    assert read()[0] == first


def test_a_behaviour_without_rows_says_so(rows):
    for row in rows:
        row.written["continuation"] = None
    again(rows)
    nothing = report()
    nothing["behaviours"]["continuation"] |= {"rows": 0, "tokens": 0, "finish_reason": {"stop": 0, "length": 0}}
    write_page(nothing)
    _, page = read()
    assert len(articles(page)) == SAMPLES // 2
