"""The smoke test: a registered version, loaded as a server would, says what the evaluated adapter said."""

import base64
import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blsp.data.shards import load_cuts
from blsp.errors import BlspError
from blsp.files import read_json, write_json
from blsp.params import Params
from blsp.tracking.local import ANSWERS

if TYPE_CHECKING:
    import pandas as pd

SERVED = Path(__file__).with_name("served.py")
QUESTIONS = 2
TIMEOUT_S = 1800.0  # a large LLM takes minutes to load


@dataclass(frozen=True)
class Question:
    """What is asked about one test utterance, and what the evaluation kept as the adapter's answer."""

    id: str
    instruction: str
    expected: str


@dataclass(frozen=True)
class SmokeTest:
    """Questions about one test utterance, and its recording (base64 of a WAV file)."""

    questions: tuple[Question, ...]
    audio: str
    max_new_tokens: int

    def fault(self, model_uri: str) -> str | None:
        """None where the model answers each question as expected; else what is wrong, in words."""
        settings = {"audio": self.audio, "max_new_tokens": self.max_new_tokens}
        asked = [{"instruction": one.instruction, **settings} for one in self.questions]
        with tempfile.TemporaryDirectory() as folder:
            request, reply = Path(folder) / "request.json", Path(folder) / "reply.json"
            write_json(request, {"model": model_uri, "questions": asked})
            command = [sys.executable, "-P", str(SERVED), str(request), str(reply)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return f"smoke test: it had not answered after {TIMEOUT_S:.0f} s"
            if done.returncode or not reply.is_file():
                last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
                return f"smoke test: it could not be loaded and asked (status {done.returncode}): {last.strip()}"
            answers = read_json(reply)["answers"]
        return next(filter(None, map(_fault, self.questions, answers)), None)


def prepare(params: Params) -> SmokeTest:
    """The smoke test of the present adapter. Raises BlspError where its answers or the utterance are not there."""
    from blsp.evaluation.answers import read_answers

    # A served model is asked in an instruction alone, without examples and in the default joint.
    plain = [
        name
        for name, task in params.evaluate.tasks.items()
        if all(instruction.strip() and task.prompt(instruction).style is None for instruction in task.instructions)
    ]
    if not plain:
        raise BlspError(
            "a smoke test asks a served model in an instruction alone, and every task of evaluate.tasks has examples, "
            "a joint, no template or an empty instruction; give evaluate.tasks one task without any of these"
        )
    table = read_answers(ANSWERS, "dvc repro evaluate")
    questions = choose(table[table["task"].isin(plain)])
    audio = base64.b64encode(_recording(questions[0].id)).decode()
    return SmokeTest(tuple(questions), audio, params.evaluate.max_new_tokens)


def choose(answers: "pd.DataFrame") -> list[Question]:
    """Questions about one test utterance, under two instructions where the evaluation asked two of any.

    Of all utterances the shortest of those on which the answers are the very ones that the LLM gave to the transcript:
    such an answer does not hang on the rounding by which one utterance alone differs from one in a batch, or one kind
    of device from another. Raises BlspError where the adapter answered nothing.
    """
    from blsp.evaluation.answers import CLEAN

    clean = answers[(answers["condition"] == CLEAN) & (answers["answer"].str.strip() != "")]
    key = ["id", "instruction"]
    texts = clean[clean["system"] == "text"].drop_duplicates(key)[[*key, "answer"]]
    spoken = clean[clean["system"] == "speech"].drop_duplicates(key)
    rows = spoken.merge(texts, on=key, how="left", suffixes=("", "_text"))
    rows["sure"] = rows["answer"] == rows["answer_text"]
    rows = rows.sort_values(["sure", "audio_s", "id"], ascending=[False, True, True], kind="stable")
    # The same answer to both would not show that the instruction is heard.
    rows = rows.drop_duplicates(["id", "answer"]).groupby("id", sort=False).head(QUESTIONS)
    if rows.empty:
        raise BlspError("reports/answers.parquet: the adapter answered no test utterance with a single word")
    of_item = rows.groupby("id").agg(asked=("sure", "size"), sure=("sure", "sum"), audio_s=("audio_s", "first"))
    best = of_item.reset_index().sort_values(["asked", "sure", "audio_s", "id"], ascending=[False, False, True, True])
    own = rows[rows["id"] == best["id"].iloc[0]]
    return [Question(row.id, row.instruction, row.answer) for row in own.itertuples()]


def _fault(question: Question, answer: Any) -> str | None:
    asked = f"asked {question.instruction!r} about {question.id}"
    if not isinstance(answer, str) or not answer.strip():
        return f"smoke test: {asked} it answered nothing"
    if answer != question.expected:
        return (
            f"smoke test: {asked} it answered {answer!r}, but reports/answers.parquet has {question.expected!r}; "
            "where that file is of another adapter, bring its own with `dvc checkout`"
        )
    return None


def _recording(id_: str) -> bytes:
    """A WAV file of the utterance, its samples in 32-bit floats: no bit of them is lost."""
    import soundfile

    cut = next((cut for cut in load_cuts("test") if cut.id == id_), None)
    if cut is None:
        raise BlspError(
            f"data/corpus has no test utterance {id_}, to which reports/answers.parquet has answers; run `dvc checkout`"
        )
    stream = io.BytesIO()
    soundfile.write(stream, cut.load_audio()[0], cut.sampling_rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()
