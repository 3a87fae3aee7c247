"""What the systems are judged on: the section `evaluate`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blsp.params.record import LANGUAGE_CODE, SERVER_URL, Count, FieldName, Instruction, Positive, Record, shown


class Task(Record):
    instructions: Annotated[list[Instruction], Field(min_length=1)]
    reference: Literal["transcript", "translation", "intent", "answer"] | None
    metric: Literal["wer", "bleu", "chrf", "accuracy", "perplexity"]
    drop: Annotated[str, Field(min_length=1)] | None
    language: Annotated[str, Field(pattern=LANGUAGE_CODE)] | None
    source: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="after")
    def perplexity_needs_no_reference(self) -> Self:
        if (self.reference is None) != (self.metric == "perplexity"):
            raise ValueError(
                f"metric {self.metric} with reference {shown(self.reference)}: perplexity is of answers that have no "
                "reference (null), every other metric needs one"
            )
        return self


class Judge(Record):
    server_url: Annotated[str, Field(pattern=SERVER_URL)]
    model: Annotated[str, Field(min_length=1)]
    items: Count
    timeout_s: Positive


class Evaluate(Record):
    batch_size: Count
    max_new_tokens: Count
    bootstrap_samples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: int
    judge: Judge | None
    tasks: Annotated[dict[FieldName, Task], Field(min_length=1)]
