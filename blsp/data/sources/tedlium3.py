"""TED-LIUM 3: English talks, SPH audio of a whole talk each and STM segments, in the `legacy` distribution.

    TEDLIUM_release-3/legacy/{train,dev,test}/sph/AimeeMullins_2009P.sph
    TEDLIUM_release-3/legacy/{train,dev,test}/stm/AimeeMullins_2009P.stm

Layout: the corpus's README and lhotse.recipes.tedlium, which is not used because it reads every audio header
and holds all segments before it gives the first, and leaves out ignored ones without a count.
What is done to the text: lhotse's normalize_text_tedlium, and egs/tedlium/s5_r3/local/prepare_data.sh of Kaldi.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from blsp.data.records import SPLITS, Row, Unusable, Utterance
from blsp.data.sources import reading

LICENCE = "CC-BY-NC-ND-3.0"
IGNORED = "ignore_time_segment_in_scoring"
_TAG = re.compile(r"[{\[][A-Z]+[}\]]")  # {NOISE}, {BREATH}: the words themselves are in lower case
_VARIANT_OR_NAME = re.compile(r"\([0-9]\)|\([^ ]*\)$")  # either(2); (AimeeMullins_2009P-17.82-28.81) at the end
_SPLIT = re.compile(r"(?<=\w) (?='\w)|(?<=(?<!\w)') (?=\w)")  # you 're, and ' 60s


def read(place: Path) -> Iterator[Row]:
    """The segments of train, dev and test (the official ones of `legacy`), talk by talk in order of their names.

    `place` is TEDLIUM_release-3. "you 're" becomes "you're", "' 60s" becomes "'60s", and tags such as {NOISE}
    become [NOISE]. [NOISE] and <unk>, a word the aligner did not know, are left to the normaliser, which takes
    them away and drops a segment that has nothing else. Reasons: ignored_in_scoring, missing_field, wrong_type,
    bad_segment, bad_id, bad_path, not_utf8. Raises BlspError where one of the three has no STM file.
    """
    for split in SPLITS:
        folder = place / "legacy" / split
        transcripts = sorted((folder / "stm").glob("*.stm"), key=lambda path: path.name)
        if not transcripts:
            raise reading.not_found(
                "tedlium3",
                place,
                f"legacy/{split}/stm/*.stm",
                "name the folder TEDLIUM_release-3 that the corpus unpacks to",
            )
        for path in transcripts:
            segments = ((number, line) for number, line in reading.lines(path) if not line.startswith(b";;"))
            yield from reading.from_lines(path.name, segments, functools.partial(_utterance, folder / "sph", split))


def _utterance(audio: Path, split: str, line: bytes) -> Iterator[Row]:
    # talk channel speaker start end <condition,...,gender> words
    fields = reading.decoded(line).split()
    if len(fields) < 6:
        raise Unusable("missing_field", f"expected talk, channel, speaker, start, end, label and words, found {fields}")
    talk, _, speaker, start, end, _, *words = fields
    text = " ".join(words)
    if text == IGNORED:
        raise Unusable("ignored_in_scoring", f"{start} to {end} s of {talk} are not transcribed")
    start_s, end_s = reading.seconds(start, "start"), reading.seconds(end, "end")
    yield Utterance(
        id=reading.segment_id(talk, start_s, end_s),
        audio=reading.inside(audio, f"{talk}.sph"),
        text=_TAG.sub("[NOISE]", _SPLIT.sub("", _VARIANT_OR_NAME.sub("", text))).strip(),
        speaker=speaker,
        language="en",
        split=split,
        start_s=start_s,
        end_s=end_s,
        licence=LICENCE,
        source="tedlium3",
    )
