"""The sections of params.yaml. Each is one stage's (or flow's) whole configuration."""

import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from blsp.errors import BlspError
from blsp.params.evaluation import Evaluate
from blsp.params.record import (
    MODEL_NAME,
    PACKAGE_NAME,
    PACKAGE_VERSION,
    RAY_ADDRESS,
    S3_PREFIX,
    SERVER_URL,
    AnswerLanguage,
    Count,
    FieldName,
    Language,
    NonNegative,
    Positive,
    Record,
    Revision,
    Seed,
    Sha256,
    Share,
    refuse_empty_range,
    shown,
)
from blsp.params.training import Experiments, Train, with_changes
from blsp.params.wording import Wording


class Transformer(Record):
    width: Count
    heads: Count

    @model_validator(mode="after")
    def heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class MiniatureLlm(Transformer):
    layers: Count
    steps: Count
    batch_size: Count
    lr: Positive


class MiniatureSpeech(Transformer):
    encoder_layers: Count
    decoder_layers: Count
    window_s: Count
    steps: Count
    batch_size: Count
    lr: Positive
    word_weight: Share


class Miniature(Record):
    seed: Seed
    train_utterances: Count
    dev_utterances: Count
    test_utterances: Count
    german_train_utterances: Count
    german_test_utterances: Count
    llm: MiniatureLlm
    speech: MiniatureSpeech


class Wheel(Record):
    """A package's wheel on the index that pip asks, pinned to its bytes."""

    name: Annotated[str, Field(pattern=PACKAGE_NAME)]
    version: Annotated[str, Field(pattern=PACKAGE_VERSION)]
    sha256: Sha256


class Backbones(Record):
    source: Literal["miniature", "hub", "local", "package"]
    speech_name: str | None
    speech_revision: Revision | None
    speech_sha256: Sha256 | None = None
    speech_wheels: list[Wheel] | None = None
    speech_licence: str
    llm_name: str | None
    llm_revision: Revision | None
    llm_sha256: Sha256 | None = None
    llm_wheels: list[Wheel] | None = None
    llm_licence: str
    chat_template_kwargs: dict[FieldName, bool | int | float | str] = Field(default_factory=dict)
    chat_template_date: str = "2025-01-01"

    @field_validator("chat_template_date")
    @classmethod
    def date_is_a_day(cls, date: str) -> str:
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise ValueError(f"must be a day, year-month-day in quotes, such as '2025-01-01'; found {date!r}") from None
        return date

    @model_validator(mode="after")
    def source_has_what_it_needs(self) -> Self:
        wanted = {
            "hub": "owner/name on the hub",
            "local": "a folder, or a GGUF file",
            "package": "the path of a folder or a GGUF file inside the wheels",
        }
        for part in ("speech", "llm"):
            name, revision = getattr(self, f"{part}_name"), getattr(self, f"{part}_revision")
            if self.source != "miniature" and not name:
                raise ValueError(
                    f"where source is {self.source}, {part}_name must be {wanted[self.source]}; found {shown(name)}"
                )
            if self.source == "hub" and not revision:
                raise ValueError(
                    f"where source is hub, {part}_revision must be the 40-digit commit of {name}; found null"
                )
            if self.source == "package" and not getattr(self, f"{part}_wheels"):
                raise ValueError(
                    f"where source is package, {part}_wheels must list the wheels that {name} is in, each with name, "
                    f"version and sha256; found {shown(getattr(self, f'{part}_wheels'))}"
                )
            if self.source == "package" and (name.startswith("/") or ".." in name.split("/")):
                raise ValueError(
                    f"where source is package, {part}_name must be {wanted['package']}; found {shown(name)}"
                )
        return self


class Source(Record):
    name: Literal[
        "miniature",
        "manifest",
        "spoken",
        "librispeech",
        "common_voice",
        "gigaspeech",
        "tedlium3",
        "covost2",
        "mustc",
        "slurp",
        "fluent_speech_commands",
        "snips",
        "kaldi",
        "lhotse",
        "huggingface",
    ]
    path: Annotated[str, Field(min_length=1)] | None
    audio_root: Annotated[str, Field(min_length=1)] | None = None
    splits: Literal["official", "official_test", "speakers"] = "official"
    language: Language | None = None
    licence: Annotated[str, Field(min_length=1)] | None = None
    case: Literal["as_written", "lower"] = "as_written"

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.name == "miniature") != (self.path is None):
            wanted = "must be null" if self.name == "miniature" else "must be where it lies"
            raise ValueError(f"path {wanted} for {self.name}; found {shown(self.path)}")
        if self.audio_root and self.name not in ("manifest", "kaldi", "lhotse"):
            raise ValueError(f"audio_root must be null for {self.name}, whose audio lies where its path says")
        return self


class Corpus(Record):
    sources: Annotated[list[Source], Field(min_length=1)]
    normalizer: Literal["whisper", "whisper_english", "whisper_basic", "none"]
    sampling_rate_hz: Count
    min_duration_s: NonNegative
    max_duration_s: Positive
    min_chars_per_s: NonNegative
    max_chars_per_s: Positive
    max_silent_share: Share
    max_clipped_share: Share
    max_rows_per_sentence: Count | None
    max_recogniser_wer: NonNegative | None
    recogniser: Annotated[str, Field(min_length=1)] | None
    recogniser_revision: Revision | None
    dev_share: Share
    test_share: Share
    shard_size: Count

    @model_validator(mode="after")
    def consistent(self) -> Self:
        refuse_empty_range(self, "min_duration_s", "max_duration_s")
        refuse_empty_range(self, "min_chars_per_s", "max_chars_per_s")
        if self.dev_share + self.test_share >= 1:
            raise ValueError(
                f"dev_share {self.dev_share:g} and test_share {self.test_share:g} leave nothing to train on; "
                "together they must be less than 1"
            )
        if (self.recogniser is None) != (self.max_recogniser_wer is None):
            missing = "max_recogniser_wer" if self.max_recogniser_wer is None else "recogniser"
            raise ValueError(f"recogniser and max_recogniser_wer are given together or not at all; {missing} is null")
        if self.recogniser_revision and not self.recogniser:
            raise ValueError("recogniser_revision is given, but recogniser is null; name the checkpoint on the hub")
        return self


class Execution(Record):
    executor: Literal["local", "ray"]
    processes: Count
    experiments_at_once: Count
    prompts_at_once: Count
    server_url: Annotated[str, Field(pattern=SERVER_URL)] | None
    timeout_s: Positive
    ray_address: Annotated[str, Field(pattern=RAY_ADDRESS)] | None
    staging: Annotated[str, Field(pattern=S3_PREFIX)] | None

    @model_validator(mode="after")
    def executor_has_what_it_needs(self) -> Self:
        if (self.executor == "ray") == (self.ray_address is None):
            wanted = "must be given" if self.ray_address is None else "must be null"
            raise ValueError(
                f"where executor is {self.executor}, ray_address {wanted}; found {shown(self.ray_address)}"
            )
        return self


class Behaviour(Wording):
    share: Annotated[float, Field(gt=0, le=1)]
    answer: Literal["new", "copy", "any"]
    language: AnswerLanguage | None


class AnswerQuality(Record):
    copy_distance: Share
    max_repeated_tokens: Count
    language_confidence: Share


class Continuations(Record):
    engine: Literal["transformers", "openai"]
    server_model: Annotated[str, Field(min_length=1)] | None
    max_new_tokens: Count
    max_prompt_tokens: Count
    top_logprobs: Annotated[int, Field(ge=0)]
    behaviours: Annotated[dict[FieldName, Behaviour], Field(min_length=1)]
    quality: AnswerQuality

    @model_validator(mode="after")
    def servers_give_no_distribution(self) -> Self:
        if self.engine == "openai" and self.top_logprobs:
            raise ValueError(
                f"top_logprobs must be 0 where engine is openai: servers give log-probabilities by the text of tokens, "
                f"which several share; found {self.top_logprobs}"
            )
        return self


class Validate(Record):
    max_duration_s: Positive
    max_chars_per_s: Positive
    min_chars_per_s: NonNegative
    max_length_share: Share
    max_copy_share: Share
    max_drop_share: Share
    max_answer_drop_share: Share
    sample_rows: Count

    @model_validator(mode="after")
    def consistent(self) -> Self:
        refuse_empty_range(self, "min_chars_per_s", "max_chars_per_s")
        return self


class Gate(Record):
    """Bounds on one figure: absolute, against the cascade of the same run, and against the champion."""

    min: float | None = None
    max: float | None = None
    min_ratio_to_cascade: NonNegative | None = None
    max_excess_over_cascade: float | None = None
    max_drop: NonNegative | None = None
    max_rise: NonNegative | None = None


class Promote(Record):
    model_name: Annotated[str, Field(pattern=MODEL_NAME)]
    gates: Annotated[dict[str, Gate], Field(min_length=1)]
    no_task_may_fall: bool
    tolerated_falls: dict[FieldName, NonNegative]


class Params(Record):
    miniature: Miniature
    backbones: Backbones
    corpus: Corpus
    continuations: Continuations
    validate_: Annotated[Validate, Field(alias="validate")]
    train: Train
    experiments: Experiments
    evaluate: Evaluate
    promote: Promote
    execution: Execution

    @field_validator("experiments", mode="before")
    @classmethod
    def experiments_change_train(cls, raw: Any, info: ValidationInfo) -> Any:
        return with_changes(raw, info.data.get("train"))

    @model_validator(mode="after")
    def engine_has_what_it_needs(self) -> Self:
        engine = self.continuations.engine
        for key, value in (
            ("continuations.server_model", self.continuations.server_model),
            ("execution.server_url", self.execution.server_url),
        ):
            if (engine == "openai") == (value is None):
                wanted = "must be given" if value is None else "must be null"
                raise ValueError(f"where continuations.engine is {engine}, {key} {wanted}; found {shown(value)}")
        return self

    @model_validator(mode="after")
    def what_is_packed_is_valid(self) -> Self:
        for key, wider in (("max_duration_s", max), ("max_chars_per_s", max), ("min_chars_per_s", min)):
            packed, judged = getattr(self.corpus, key), getattr(self.validate_, key)
            if wider(packed, judged) != judged:
                raise ValueError(
                    f"validate.{key} {judged:g} is stricter than corpus.{key} {packed:g}: rows that are packed would "
                    f"stop the run; set both to the value that you want"
                )
        return self

    @model_validator(mode="after")
    def only_tasks_fall(self) -> Self:
        for name in self.promote.tolerated_falls:
            if name not in self.evaluate.tasks:
                raise ValueError(
                    f"promote.tolerated_falls.{name} is no task; evaluate.tasks has {', '.join(self.evaluate.tasks)}"
                )
        return self

    @model_validator(mode="after")
    def train_learns_what_is_written(self) -> Self:
        self._refuse_unwritten(self.train, "train")
        return self

    def _refuse_unwritten(self, train: Train, where: str) -> None:
        for name, share in train.shares.items():
            if name not in self.continuations.behaviours:
                raise ValueError(
                    f"{where}.shares.{name} is no behaviour that is written; continuations.behaviours has "
                    f"{', '.join(self.continuations.behaviours)}"
                )
            if share > (written := self.continuations.behaviours[name].share):
                raise ValueError(
                    f"{where}.shares.{name} is {share:g}, but it is written for {written:g} of the utterances "
                    f"(continuations.behaviours.{name}.share); raise the one or lower the other"
                )

    def variant(self, name: str, seed: int) -> Self:
        """These params with the `train` of one of `experiments`, trained from this seed.

        Raises BlspError where there is none of that name, it learns what is not written, or the seed is none.
        """
        if not 0 <= seed < 2**32:
            raise BlspError(f"--seed must be at least 0 and less than {2**32}; found {seed}")
        trainings = self.experiments.trainings
        if name not in trainings:
            raise BlspError(f"experiments has no variant and no ablation {name}; it has {', '.join(trainings)}")
        try:
            self._refuse_unwritten(trainings[name], f"experiments: {name}")
        except ValueError as error:
            raise BlspError(str(error)) from None
        return self.model_copy(update={"train": trainings[name].model_copy(update={"seed": seed})})
