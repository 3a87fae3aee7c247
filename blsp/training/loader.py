"""Batches ahead of the device: worker processes read audio and make features while the step before is computed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset

from blsp.errors import BlspError
from blsp.training.examples import Batch, Collator, Example
from blsp.training.plan import Choice, Plan

if TYPE_CHECKING:
    from blsp.params import Train


@dataclass(frozen=True, eq=False)
class Work:
    """What this process does in one step: its micro-batches, of a global batch with so many targets.

    A batch that does not count is there because every process makes as many passes as the others. `cost` is what
    the batches take of train.micro_batch_tokens, `needed` what they would without padding.
    """

    step: int
    batches: list[Batch]
    counts: list[bool]
    targets: int
    cost: float
    needed: float


def batches_ahead(
    plan: Plan,
    example: Callable[[Choice], Example],
    collator: Collator,
    settings: "Train",
    first_step: int,
) -> Iterator[Work]:
    """The work of this process from `first_step` on, step by step.

    Every worker makes whole steps, and the plan alone says what is in one: which worker makes it changes nothing.
    Raises the BlspError that reading an utterance raised.
    """
    steps = _Steps(plan, example, collator, settings)
    loader: DataLoader[Work | BlspError] = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first_step, settings.steps),
        num_workers=settings.workers,
        generator=torch.Generator(),  # a loader draws a seed: not from the one that training's state is saved of
    )
    for work in loader:
        if isinstance(work, BlspError):
            raise work
        yield work


class _Steps(Dataset[Work | BlspError]):
    def __init__(self, plan: Plan, example: Callable[[Choice], Example], collator: Collator, settings: "Train") -> None:
        state = PartialState()
        self.rank, self.processes = state.process_index, state.num_processes
        self.plan, self.example, self.collator, self.settings = plan, example, collator, settings

    def __getitem__(self, step: int) -> Work | BlspError:
        choices = self.plan.batch(step)
        mine = self.plan.micro_batches(choices, self.settings.micro_batch_tokens, self.processes)[self.rank]
        try:
            batches = [self.collator([self.example(c) for c in micro or choices[:1]]) for micro in mine]
        except BlspError as error:
            return error  # raised in a worker, it would come with the worker's traceback in its message
        return Work(
            step=step,
            batches=batches,
            counts=[bool(micro) for micro in mine],
            targets=self.plan.target_count(choices),
            cost=sum(self.plan.cost(micro) for micro in mine),
            needed=sum(self.plan.cost([choice]) for micro in mine for choice in micro),
        )
