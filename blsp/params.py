"""params.yaml as frozen, typed records. Every section is one stage's (or flow's) whole configuration."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

from blsp.errors import BlspError

PARAMS_FILE = "params.yaml"

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Instruction = Annotated[str, Field(min_length=1)]
FieldName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


class ParamsError(BlspError):
    """params.yaml holds something the pipeline cannot run with; the message names each key and its remedy."""


class Record(BaseModel):
    """A frozen record that refuses unknown keys, wrong types and values out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
    ctc_weight: Share


class Miniature(Record):
    seed: int
    train_utterances: Count
    dev_utterances: Count
    test_utterances: Count
    llm: MiniatureLlm
    speech: MiniatureSpeech


class Backbones(Record):
    source: Literal["miniature", "hub", "local"]
    speech_name: str | None
    speech_revision: Revision | None
    speech_licence: str
    llm_name: str | None
    llm_revision: Revision | None
    llm_licence: str

    @model_validator(mode="after")
    def source_has_what_it_needs(self) -> Self:
        for part in ("speech", "llm"):
            name, revision = getattr(self, f"{part}_name"), getattr(self, f"{part}_revision")
            if self.source != "miniature" and not name:
                raise ValueError(f"source {self.source} needs {part}_name")
            if self.source == "hub" and not revision:
                raise ValueError(f"source hub needs {part}_revision, the 40-digit commit of {name}")
        return self


class Corpus(Record):
    source: Literal["miniature", "manifest"]
    manifest: str | None
    normalizer: Literal["whisper_english", "whisper_basic", "none"]
    sampling_rate_hz: Count
    min_duration_s: NonNegative
    max_duration_s: Positive
    min_chars_per_s: NonNegative
    max_chars_per_s: Positive
    dev_share: Share
    test_share: Share
    shard_size: Count

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.source == "manifest" and not self.manifest:
            raise ValueError("source manifest needs manifest, the path of a JSONL file")
        if self.min_duration_s >= self.max_duration_s:
            raise ValueError(
                f"min_duration_s {self.min_duration_s} is not below max_duration_s {self.max_duration_s}"
            )
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on")
        return self


class Continuations(Record):
    batch_size: Count
    max_new_tokens: Count
    max_prompt_tokens: Count
    behaviours: Annotated[dict[FieldName, Instruction], Field(min_length=1)]


class Validate(Record):
    max_duration_s: Positive
    max_chars_per_s: Positive
    min_chars_per_s: NonNegative
    max_length_share: Share
    max_copy_share: Share
    max_drop_share: Share


class Train(Record):
    objective: Literal["kd", "ce"]
    temperature: Positive
    shares: dict[FieldName, Share]
    bottleneck: Count
    conv_layers: Count
    steps: Count
    batch_size: Count
    lr: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: NonNegative
    clip_norm: Positive
    validate_every: Count
    seed: int

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> Self:
        total = sum(self.shares.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares sum to {total:g}; they must sum to 1")
        return self


class Evaluate(Record):
    batch_size: Count
    max_new_tokens: Count
    bootstrap_samples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: int
    tasks: dict[Literal["asr", "st", "slu", "qa"], Instruction]


class Gate(Record):
    """Bounds on one figure: absolute, against the cascade of the same run, and against the champion."""

    min: float | None = None
    max: float | None = None
    min_ratio_to_cascade: NonNegative | None = None
    max_excess_over_cascade: float | None = None
    max_drop: NonNegative | None = None
    max_rise: NonNegative | None = None


class Promote(Record):
    model_name: Annotated[str, Field(min_length=1)]
    gates: Annotated[dict[str, Gate], Field(min_length=1)]


class Params(Record):
    miniature: Miniature
    backbones: Backbones
    corpus: Corpus
    continuations: Continuations
    validate_: Annotated[Validate, Field(alias="validate")]
    train: Train
    evaluate: Evaluate
    promote: Promote

    @model_validator(mode="after")
    def shares_name_behaviours(self) -> Self:
        for name in self.train.shares:
            if name not in self.continuations.behaviours:
                raise ValueError(
                    f"train.shares.{name} names no behaviour of continuations.behaviours "
                    f"({', '.join(self.continuations.behaviours)})"
                )
        return self


def load_params(path: str | Path = PARAMS_FILE) -> Params:
    """The checked contents of a params file.

    Raises ParamsError with one line for each fault: the key's full path, what was found, and what would do.
    YAML 1.2 is read, as DVC reads it (so that `1e-3` is a number here and there).
    """
    path = Path(path)
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run blsp where params.yaml is") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: expected sections such as `train:`, found {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(fault) for fault in error.errors()]
        raise ParamsError(f"{path}: " + "\n".join(lines)) from None


def _explain(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]") or "the whole file"
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(fault["loc"][-1]), _keys_at(fault["loc"][:-1]), n=1, cutoff=0)
        hint = (
            f"; the nearest valid key is {'.'.join([*map(str, fault['loc'][:-1]), close[0]])}"
            if close
            else ""
        )
        return f"{key}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{key}: missing; add it"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}: {message}; found {fault['input']!r} ({type(fault['input']).__name__})"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    record: Any = Params
    for part in location:
        field = next((f for name, f in record.model_fields.items() if part in (name, f.alias)), None)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return [name for name in Gate.model_fields] if location[:2] == ("promote", "gates") else []
        record = annotation
    return [field.alias or name for name, field in record.model_fields.items()]
