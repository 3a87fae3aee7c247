"""The page of answers: the worst and random questions, each with its audio and every system's answer."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import soundfile

from blsp.evaluation import page
from blsp.evaluation.page import Piece, Systems, differences, write_page

EVIL = '<script>alert(1)</script> & "more"'
RATE_HZ = 16_000
ITEMS = 40
SYSTEMS = Systems(ours="speech", against="text")


class Page(HTMLParser):
    """What a browser would find: elements, addresses, and the text of articles by task and heading."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.addresses, self.articles = set(), [], {}
        self.headings, self.inside = {"h2": "", "h3": ""}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag in ("h2", "h3", "article"):
            self.inside = tag
        if tag == "article":
            self.articles.setdefault(tuple(self.headings.values()), []).append("")

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data):
        if self.inside in self.headings:
            self.headings[self.inside] = data
        elif self.inside:
            self.articles[tuple(self.headings.values())][-1] += data


def seconds_of(number):
    return 0.3 + 0.01 * number


def samples_of(id_, condition):
    rng = np.random.default_rng(int(id_[1:]))
    return rng.normal(0, 0.1, round(seconds_of(int(id_[1:])) * RATE_HZ)).astype(np.float32), RATE_HZ


@pytest.fixture
def graded():
    """Two tasks; speech is 0.01 x number behind text on the first 30 items of `asr`, and never behind on `slu`."""
    rows = []
    for number in range(ITEMS):
        for task in ("asr", "slu"):
            qualities = {"text": 1.0, "cascade": 0.5, "speech": 1.0}
            if task == "asr" and number < 30:
                qualities["speech"] -= 0.01 * number
            for system, quality in qualities.items():
                rows.append(
                    {
                        "system": system,
                        "seed": 1,
                        "condition": "clean",
                        "task": task,
                        "instruction": "Do it.",
                        "id": f"u{number:02}",
                        "language": "en",
                        "speaker": None if number % 2 else "anna",
                        "audio_s": seconds_of(number),
                        "transcript": f"transcript {number} {EVIL}",
                        "reference": f"reference {number}",
                        "answer": f"{system} says {number} {EVIL}",
                        "quality": quality,
                    }
                )
    return pd.DataFrame(rows)


def write(graded, path, **options):
    write_page(graded, SYSTEMS, samples_of, path, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def ids(articles):
    return [re.match(r"\s*(u\d\d)", article)[1] for article in articles]


WORST = "The worst: where speech falls behind text most"


def test_the_worst_come_first_and_random_ones_are_others(graded, tmp_path):
    text, found = write(graded, tmp_path / "page.html")
    worst, random = ids(found.articles["asr", WORST]), ids(found.articles["asr", "Random"])
    each = page.QUESTIONS // 2 // 2
    assert worst == [f"u{number:02}" for number in range(29, 29 - each, -1)]
    assert len(random) == each and not set(random) & set(worst) and random != sorted(random)
    assert ("slu", WORST) not in found.articles, "nothing was lost there"
    assert len(found.articles["slu", "Random"]) == each
    assert re.search(r"40 questions.*<b class=.lost.>29</b>, better on <b class=.won.>0</b>", text, re.DOTALL)


def test_an_article_says_all_that_is_known(graded, tmp_path):
    _, found = write(graded, tmp_path / "page.html")
    worst = found.articles["asr", WORST][0]
    assert f"transcript 29 {EVIL}" in worst and "reference 29" in worst and "Do it." in worst and "0.6 s" in worst
    assert re.search(r"cascade\s+0\.50\s+cascade says\s+reference\s+29", worst), "with what it lacks of the reference"
    assert re.search(r"speech\s+0\.71\s+speech says", worst)
    assert re.search(r"text\s+1\.00\s+text says 29[^a-z]", worst), "no fault is marked where the metric finds none"


def test_the_player_of_an_article_holds_its_own_item(graded, tmp_path):
    text, found = write(graded, tmp_path / "page.html")
    players = [address for address in found.addresses if not address.startswith("#")]
    shown = [id_ for articles in found.articles.values() for id_ in ids(articles)]
    assert len(players) == len(shown) and all(p.startswith("data:audio/mpeg;base64,") for p in players)
    for id_, player in zip(shown, players, strict=True):
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(player.partition(",")[2])))
        assert len(samples) / rate_hz == pytest.approx(seconds_of(int(id_[1:])), abs=0.009)
    assert not found.elements & {"script", "link", "img", "iframe"} and "http://" not in text and "https://" not in text


def test_the_same_answers_give_the_same_page_in_any_order(graded, tmp_path):
    first, _ = write(graded, tmp_path / "page.html", about="Run 1.")
    places = {name: place for place, name in enumerate(("asr", "slu", "text", "cascade", "speech"))}
    mixed = graded.sample(frac=1, random_state=1).sort_values(["task", "system"], key=lambda names: names.map(places))
    assert not mixed["id"].equals(graded["id"])
    assert write(mixed, tmp_path / "other.html", about="Run 1.")[0] == first
    assert "Run 1." in first


def test_seeds_that_say_the_same_share_a_line(graded, tmp_path):
    others = [graded[graded["system"] == "speech"].assign(seed=seed) for seed in (2, 3)]
    others[1]["answer"] = "something else"
    _, found = write(pd.concat([graded, *others], ignore_index=True), tmp_path / "page.html")
    article = found.articles["asr", WORST][0]
    assert re.search(r"speech\s+seeds 1, 2\s", article) and re.search(r"speech\s+seed 3\s", article)
    assert not re.search(r"text\s+seed", article)


def test_audio_that_would_not_fit_is_cut_and_said_so(graded, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LONGEST_S", 0.5)
    _, found = write(graded, tmp_path / "page.html")
    assert "its beginning" in found.articles["asr", WORST][0]
    player = next(address for address in found.addresses if address.startswith("data:"))
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(player.partition(",")[2])))
    assert len(samples) / rate_hz == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize(
    "answer, reference, pieces",
    [
        ("Turn on the Fan!", "turn on the fan", [("same", "Turn on the Fan!")]),
        (
            "turn on a fan",
            "turn on the fan",
            [("same", "turn on"), ("extra", "a"), ("missing", "the"), ("same", "fan")],
        ),
        ("please turn on", "turn on now", [("extra", "please"), ("same", "turn on"), ("missing", "now")]),
        ("", "turn on", [("missing", "turn on")]),
        ("", "", []),
        ("device_on", "device on", [("extra", "device_on"), ("missing", "device on")]),
    ],
)
def test_differences_are_words_that_the_reference_lacks_or_has(answer, reference, pieces):
    assert differences(answer, reference) == [Piece(*piece) for piece in pieces]
