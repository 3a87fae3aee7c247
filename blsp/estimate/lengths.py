"""How long the mean utterance is: as the reports of the corpus and continuations stages say, or as is common."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blsp.files import read_json

CORPUS_REPORT = Path("reports/corpus.json")
CONTINUATIONS_REPORT = Path("reports/continuations.json")

LIBRISPEECH_AUDIO_S = 12.3  # the mean utterance of its 960 hours
TRANSCRIPT_TOKENS_PER_S = 3.6  # LibriSpeech's 33 words in 12.3 s, at 4 tokens for 3 words
RESPONSE_TOKENS = 50  # just under the 40 words that the continuation instruction asks for
PREFIX_TOKENS = 32  # instruction and what the chat template puts before it
CLOSING_TOKENS = 8  # what the chat template puts between speech and response


@dataclass(frozen=True)
class Lengths:
    """Of the mean utterance: its audio, tokens of the prompt before and after it, its transcript and its response."""

    audio_s: float
    prefix_tokens: int
    closing_tokens: int
    transcript_tokens: int
    response_tokens: int


@dataclass(frozen=True)
class MeanLengths(Lengths):
    """Those of the training corpus, and how many utterances it has: None where no corpus is there yet.

    `sources` says in words where each number comes from.
    """

    utterances: int | None
    sources: tuple[str, ...]


def mean_lengths(shares: Mapping[str, float]) -> MeanLengths:
    """The mean lengths for behaviours with these shares, from the reports in this folder where they exist."""
    utterances, audio_s = None, LIBRISPEECH_AUDIO_S
    audio_source = f"LibriSpeech's mean: there is no {CORPUS_REPORT}"
    if CORPUS_REPORT.is_file():
        train = read_json(CORPUS_REPORT)["splits"]["train"]
        utterances, audio_s = train["rows"], train["hours"] * 3600 / train["rows"]
        audio_source = str(CORPUS_REPORT)
    response, response_source = float(RESPONSE_TOKENS), f"assumed: there is no {CONTINUATIONS_REPORT} that has them"
    if CONTINUATIONS_REPORT.is_file():
        written = read_json(CONTINUATIONS_REPORT)["behaviours"]
        used = {name: share for name, share in shares.items() if share > 0}
        if all(written.get(name, {}).get("rows") for name in used):
            response = sum(share * written[name]["tokens"] / written[name]["rows"] for name, share in used.items())
            response_source = str(CONTINUATIONS_REPORT)
    transcript = max(round(audio_s * TRANSCRIPT_TOKENS_PER_S), 1)
    return MeanLengths(
        audio_s=audio_s,
        prefix_tokens=PREFIX_TOKENS,
        closing_tokens=CLOSING_TOKENS,
        transcript_tokens=transcript,
        response_tokens=max(round(response), 1),
        utterances=utterances,
        sources=(
            f"{audio_s:,.1f} s of audio an utterance ({audio_source})",
            f"{round(response):,} tokens a response ({response_source})",
            f"{transcript:,} tokens a transcript (assumed: {TRANSCRIPT_TOKENS_PER_S} a second)",
            f"{PREFIX_TOKENS} and {CLOSING_TOKENS} tokens of prompt before and after the speech (assumed)",
        ),
    )
