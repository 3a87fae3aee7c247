"""params.yaml as frozen, typed records. Every section is one stage's (or flow's) whole configuration."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from blsp.errors import BlspError

PARAMS_FILE = "params.yaml"

COMMIT = "^[0-9a-f]{40}$"
NAME = "^[a-z][a-z0-9_]*$"
LANGUAGE = "^(transcript|[a-z]{2,3})$"
RAY_ADDRESS = "^(auto|(ray://)?[^:/@ ]+:[0-9]+)$"
S3_PREFIX = "^s3://[a-z0-9][a-z0-9.-]+(/[^/]+)+$"
SERVER_URL = "^https?://[^@/]+(/[^@]*)?/v1$"

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[str, Field(pattern=COMMIT)]
Instruction = Annotated[str, Field(min_length=1)]
FieldName = Annotated[str, Field(pattern=NAME)]


class ParamsError(BlspError):
    """params.yaml holds something the pipeline cannot run with; the message names each key and its remedy."""


class Record(BaseModel):
    """A frozen record that refuses unknown keys, wrong types and values out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _refuse_empty_range(record: Record, lowest: str, highest: str) -> None:
    low, high = getattr(record, lowest), getattr(record, highest)
    if low >= high:
        raise ValueError(f"{lowest} {low:g} is not below {highest} {high:g}")


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
                wanted = "owner/name on the hub" if self.source == "hub" else "a folder"
                raise ValueError(f"where source is {self.source}, {part}_name must be {wanted}; found {_shown(name)}")
            if self.source == "hub" and not revision:
                raise ValueError(
                    f"where source is hub, {part}_revision must be the 40-digit commit of {name}; found null"
                )
        return self


class Source(Record):
    name: Literal[
        "miniature",
        "manifest",
        "librispeech",
        "common_voice",
        "gigaspeech",
        "tedlium3",
        "covost2",
        "mustc",
        "slurp",
        "fluent_speech_commands",
        "snips",
        "lhotse",
        "huggingface",
    ]
    path: Annotated[str, Field(min_length=1)] | None
    audio_root: Annotated[str, Field(min_length=1)] | None = None
    splits: Literal["official", "speakers"] = "official"

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.name == "miniature") != (self.path is None):
            wanted = "must be null" if self.name == "miniature" else "must be where it lies"
            raise ValueError(f"path {wanted} for {self.name}; found {_shown(self.path)}")
        if self.audio_root and self.name not in ("manifest", "lhotse"):
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
        _refuse_empty_range(self, "min_duration_s", "max_duration_s")
        _refuse_empty_range(self, "min_chars_per_s", "max_chars_per_s")
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
                f"where executor is {self.executor}, ray_address {wanted}; found {_shown(self.ray_address)}"
            )
        return self


class Behaviour(Record):
    instructions: Annotated[list[Instruction], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, le=1)]
    answer: Literal["new", "copy", "any"]
    language: Annotated[str, Field(pattern=LANGUAGE)] | None


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
        _refuse_empty_range(self, "min_chars_per_s", "max_chars_per_s")
        return self


class Train(Record):
    objective: Literal["kd", "ce"]
    temperature: Positive
    shares: dict[FieldName, Share]
    adapter: Literal["conv", "stack"]
    downsampling: Count
    bottleneck: Count
    encoding: Literal["variable", "padded"]
    steps: Count
    batch_size: Count
    micro_batch_tokens: Count
    teacher: Literal["live", "stored"]
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    compile: bool
    shard_llm: bool
    workers: Annotated[int, Field(ge=0)]
    encoder_cache_gib: NonNegative
    checkpoint_every: Count
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

    @model_validator(mode="after")
    def convolutions_halve(self) -> Self:
        if self.adapter == "conv" and (self.downsampling < 2 or self.downsampling.bit_count() != 1):
            raise ValueError(
                f"each convolution of the conv adapter halves, so downsampling must be 2, 4, 8, ...; "
                f"found {self.downsampling}; adapter: stack takes any"
            )
        return self


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
                raise ValueError(f"where kind is {self.kind}, {key} {wanted}; found {_shown(value)}")
        return self


class Evaluate(Record):
    batch_size: Count
    max_new_tokens: Count
    bootstrap_samples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    seed: int
    tasks: dict[Literal["asr", "st", "slu", "qa"], Instruction]
    conditions: dict[FieldName, Condition]

    @model_validator(mode="after")
    def clean_is_clean(self) -> Self:
        if "clean" in self.conditions:
            raise ValueError("conditions.clean is the audio as it is, which is always measured; take another name")
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
    execution: Execution

    @model_validator(mode="after")
    def engine_has_what_it_needs(self) -> Self:
        engine = self.continuations.engine
        for key, value in (
            ("continuations.server_model", self.continuations.server_model),
            ("execution.server_url", self.execution.server_url),
        ):
            if (engine == "openai") == (value is None):
                wanted = "must be given" if value is None else "must be null"
                raise ValueError(f"where continuations.engine is {engine}, {key} {wanted}; found {_shown(value)}")
        return self

    @model_validator(mode="after")
    def shares_name_behaviours(self) -> Self:
        for name, share in self.train.shares.items():
            if name not in self.continuations.behaviours:
                raise ValueError(
                    f"train.shares.{name} is no behaviour that is written; continuations.behaviours has "
                    f"{', '.join(self.continuations.behaviours)}"
                )
            if share > (written := self.continuations.behaviours[name].share):
                raise ValueError(
                    f"train.shares.{name} is {share:g}, but it is written for {written:g} of the utterances "
                    f"(continuations.behaviours.{name}.share); raise the one or lower the other"
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
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ParamsError(f"{path}, line {line}: not YAML: {error.problem}") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamsError(f"{path}: cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: must hold sections such as `train:`; found {_shown(raw)}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors()]
        start = "\n  " if len(faults) > 1 else " "
        raise ParamsError(f"{path}:" + "".join(start + fault for fault in faults)) from None


def _explain(fault: Any) -> str:
    """One line about one of pydantic's faults, in the words of a params file."""
    kind, location, context = fault["type"], fault["loc"], fault.get("ctx", {})
    is_key = location[-1:] == ("[key]",)
    location = location[:-1] if is_key else location
    if kind == "extra_forbidden" or (is_key and kind == "literal_error"):
        return f"{_path(location)}: unknown key{_nearest(location)}"
    if kind == "missing":
        return f"{_path(location)}: missing; add it"
    if kind == "value_error":
        return f"{_path(location)}: {context['error']}" if location else str(context["error"])
    if kind == "string_pattern_mismatch":
        wanted = _PATTERNS[context["pattern"]]
    elif kind in _WANTED:
        wanted = _WANTED[kind].format_map(context)
    else:
        wanted = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{_path(location)}: must be {wanted}; found {_shown(fault['input'])}"


_PATTERNS = {
    COMMIT: "a commit in full, 40 digits of 0-9 and a-f (a branch or tag may move)",
    RAY_ADDRESS: "auto (the cluster of this machine), host:6379 or ray://host:10001",
    S3_PREFIX: "s3://bucket/prefix, without a slash at its end",
    SERVER_URL: "an address that ends in /v1, such as http://localhost:8000/v1, with no key in it",
    LANGUAGE: "`transcript`, or a language's code of two or three letters, such as de",
    NAME: "a name of small letters, digits and _ that begins with a letter",
}

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "string_too_short": "text that is not empty",
    "too_short": "a section with at least one key",
    "dict_type": "a section of `key: value` lines",
    "list_type": "a list of `- ` lines",
    "model_type": "a section of `key: value` lines",
}


def _path(location: tuple[Any, ...]) -> str:
    return ".".join(map(str, location))


def _shown(value: Any) -> str:
    # As params.yaml would have it: null, true, 'text'.
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _nearest(location: tuple[Any, ...]) -> str:
    close = difflib.get_close_matches(str(location[-1]), _keys_at(location[:-1]), n=1, cutoff=0)
    return f"; the nearest valid key is {_path((*location[:-1], close[0]))}" if close else ""


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys that the section at `location` may have; none where it may have any."""
    section: Any = Params
    for part in location:
        if get_origin(section) in (dict, list):
            section = get_args(section)[-1]
        else:
            fields = section.model_fields.items()
            section = next(field.annotation for name, field in fields if part in (name, field.alias))
    if get_origin(section) is dict:
        return list(get_args(get_args(section)[0]))
    return [field.alias or name for name, field in section.model_fields.items()]
