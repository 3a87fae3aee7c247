"""What the adapter is trained with: the section `train`, and what `experiments` changes in it."""

from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from blsp.params.record import Count, FieldName, NonNegative, Positive, Record, Seed, Share

Seeds = Annotated[list[Seed], Field(min_length=1)]
BASELINES = ("text", "cascade", "untrained")  # systems that nothing is trained for


class Train(Record):
    objective: Literal["kd", "ce"]
    temperature: Positive
    shares: dict[FieldName, Share]
    corpus_share: Annotated[float, Field(gt=0, le=1)]
    adapter: Literal["conv", "word", "stack"]
    warm_start: Literal["ctc"] | None = None
    warm_start_steps: Count = 600
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
    seed: Seed

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> Self:
        total = sum(self.shares.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares sum to {total:g}; they must sum to 1")
        return self

    @model_validator(mode="after")
    def convolutions_halve(self) -> Self:
        smallest = {"conv": 2, "word": 4}.get(self.adapter, 1)
        if self.adapter != "stack" and (self.downsampling < smallest or self.downsampling.bit_count() != 1):
            raise ValueError(
                f"each convolution of the {self.adapter} adapter halves, so downsampling must be {smallest}, "
                f"{2 * smallest}, {4 * smallest}, ...; found {self.downsampling}; adapter: stack takes any"
            )
        return self

    @model_validator(mode="after")
    def segmenters_are_trained(self) -> Self:
        if self.adapter == "word" and self.warm_start is None:
            raise ValueError(
                "adapter word has a segmenter that only the warm start trains; set warm_start: ctc, or adapter: conv"
            )
        return self


class Experiments(Record):
    """Further trainings, by name: each is the whole of `train` with its own changes in it."""

    seeds: Seeds
    ablation_seeds: Seeds
    variants: dict[FieldName, Train]
    ablations: dict[FieldName, Train]
    compared: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    axes: dict[FieldName, dict[str, float]]

    @model_validator(mode="after")
    def each_has_a_name_of_its_own(self) -> Self:
        if twice := sorted(self.variants.keys() & self.ablations.keys()):
            raise ValueError(f"{', '.join(twice)} is a variant and an ablation; give one another name")
        for key in ("seeds", "ablation_seeds"):
            if len(set(seeds := getattr(self, key))) < len(seeds):
                raise ValueError(f"{key} {seeds} has one twice; once is enough")
        if unknown := set(self.ablation_seeds) - set(self.seeds):
            raise ValueError(
                f"ablation_seeds has {min(unknown)}, which seeds has not; points of variants are drawn beside"
            )
        return self

    @model_validator(mode="after")
    def what_is_compared_is_there(self) -> Self:
        known = [*BASELINES, *self.variants]
        for name in chain.from_iterable(self.compared):
            if name not in known:
                raise ValueError(f"compared has {name!r}, which is no system; there are {', '.join(known)}")
        return self

    @model_validator(mode="after")
    def points_are_trained(self) -> Self:
        for axis, points in self.axes.items():
            for name in points:
                if name not in self.trainings:
                    raise ValueError(f"axes.{axis} has {name!r}, which is neither a variant nor an ablation")
        return self

    @property
    def trainings(self) -> dict[str, Train]:
        """All of them, by name."""
        return {**self.variants, **self.ablations}


def with_changes(experiments: Any, train: Train | None) -> Any:
    """The section `experiments` as it is written, each training in it made whole by what it leaves as `train` has it.

    Where `train` itself is at fault (None), there is none: its faults would be told again with each.
    """
    if not isinstance(experiments, dict):
        return experiments
    groups = {key: value for key in ("variants", "ablations") if isinstance(value := experiments.get(key), dict)}
    if train is None:
        return {**experiments, **{key: {} for key in groups}, "compared": [], "axes": {}}

    def whole(changes: Any) -> Any:
        return {**train.model_dump(), **changes} if isinstance(changes, dict) else changes

    return {**experiments, **{key: {n: whole(c) for n, c in value.items()} for key, value in groups.items()}}
