"""What the adapter is trained with: the section `train`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blsp.params.record import Count, FieldName, NonNegative, Positive, Record, Share


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
