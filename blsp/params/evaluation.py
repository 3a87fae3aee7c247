"""What the systems are judged on: the section `evaluate`."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blsp.params.record import SERVER_URL, Count, FieldName, Language, Positive, Record, Seed, shown
from blsp.params.wording import Wording


class Task(Wording):
    reference: Literal["transcript", "translation", "intent", "answer"] | None
    metric: Literal["wer", "cer", "bleu", "chrf", "accuracy", "contains", "perplexity"]
    drop: Annotated[str, Field(min_length=1)] | None
    language: Language | None
    source: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="after")
    def each_is_asked_once(self) -> Self:
        if twice := [one for one, times in Counter(self.instructions).items() if times > 1]:
            raise ValueError(f"instructions has {shown(twice[0])} twice; once is enough")
        return self

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


class Condition(Record):
    """One thing that is done to the test audio."""

    kind: Literal["white_noise", "speech_noise", "tempo", "telephone", "effect_voices"]
    snr_db: float | None = None
    tempo: Annotated[float, Field(ge=0.5, le=2)] | None = None

    @model_validator(mode="after")
    def kind_has_what_it_needs(self) -> Self:
        for key, kinds in (("snr_db", ("white_noise", "speech_noise")), ("tempo", ("tempo",))):
            value = getattr(self, key)
            if (self.kind in kinds) == (value is None):
                wanted = "must be given" if value is None else "must be left out"
                raise ValueError(f"where kind is {self.kind}, {key} {wanted}; found {shown(value)}")
        return self


class Evaluate(Record):
    batch_size: Count
    max_new_tokens: Count
    bootstrap_samples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    items: Count | None = None
    seed: Seed
    judge: Judge | None
    tasks: Annotated[dict[FieldName, Task], Field(min_length=1)]
    conditions: dict[FieldName, Condition]

    @model_validator(mode="after")
    def clean_is_clean(self) -> Self:
        if "clean" in self.conditions:
            raise ValueError("conditions.clean is the audio as it is, which is always measured; take another name")
        return self
