"""What the systems are judged on: the section `evaluate`."""

from typing import Annotated, Literal

from pydantic import Field

from blsp.params.record import LANGUAGE_CODE, Count, FieldName, Instruction, Record


class Task(Record):
    instructions: Annotated[list[Instruction], Field(min_length=1)]
    reference: Literal["transcript", "translation", "intent", "answer"]
    metric: Literal["wer", "bleu", "chrf", "accuracy"]
    drop: Annotated[str, Field(min_length=1)] | None
    language: Annotated[str, Field(pattern=LANGUAGE_CODE)] | None
    source: Annotated[str, Field(min_length=1)] | None


class Evaluate(Record):
    batch_size: Count
    max_new_tokens: Count
    bootstrap_samples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: int
    tasks: Annotated[dict[FieldName, Task], Field(min_length=1)]
