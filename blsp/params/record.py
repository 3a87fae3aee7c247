"""What every section is made of: a strict record, and the kinds of value its keys may have."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from blsp.languages import is_known

COMMIT = "^[0-9a-f]{40}$"
SHA256 = "^[0-9a-f]{64}$"
PACKAGE_NAME = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
PACKAGE_VERSION = "^[A-Za-z0-9][A-Za-z0-9.!+_-]*$"
NAME = "^[a-z][a-z0-9_]*$"
MODEL_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
RAY_ADDRESS = "^(auto|(ray://)?[^:/@ ]+:[0-9]+)$"
S3_PREFIX = "^s3://[a-z0-9][a-z0-9.-]+(/[^/]+)+$"
SERVER_URL = "^https?://[^@/]+(/[^@]*)?/v1$"

AUDIO_TOKEN = "<|audio|>"  # as blsp.model.chat has it, which imports torch


def refuse_placeholder(text: str) -> str:
    """The text. Raises ValueError where it has the token in it that stands for speech."""
    if AUDIO_TOKEN in text:
        raise ValueError(f"{AUDIO_TOKEN} stands for speech and may not be in what is asked; found {shown(text)}")
    return text


def _known_language(name: str) -> str:
    if not is_known(name):
        raise ValueError(f"must be a language, such as de, de-CH or German; found {shown(name)}")
    return name


Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Revision = Annotated[str, Field(pattern=COMMIT)]
Sha256 = Annotated[str, Field(pattern=SHA256)]
Words = Annotated[str, Field(min_length=1), AfterValidator(refuse_placeholder)]
FieldName = Annotated[str, Field(pattern=NAME)]
Language = Annotated[str, AfterValidator(_known_language)]
AnswerLanguage = Annotated[str, AfterValidator(lambda name: name if name == "transcript" else _known_language(name))]


class Record(BaseModel):
    """A frozen record that refuses unknown keys, wrong types and values out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def refuse_empty_range(record: Record, lowest: str, highest: str) -> None:
    low, high = getattr(record, lowest), getattr(record, highest)
    if low >= high:
        raise ValueError(f"{lowest} {low:g} is not below {highest} {high:g}")


def shown(value: Any) -> str:
    """The value as params.yaml would have it: null, true, 'text'; a long one is cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
