"""Batches ahead of the device: threads read audio and compute features while the steps before are computed."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import PartialState

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

    Threads make whole steps, and the plan alone says what is in one: which thread makes it changes nothing. Decoding
    audio and computing features, most of the work, let other threads run.
    """
    state = PartialState()

    def work(step: int) -> Work:
        choices = plan.batch(step)
        mine = plan.micro_batches(choices, settings.micro_batch_tokens, state.num_processes)[state.process_index]
        return Work(
            step=step,
            batches=[collator([example(choice) for choice in micro or choices[:1]]) for micro in mine],
            counts=[bool(micro) for micro in mine],
            targets=plan.target_count(choices),
            cost=sum(plan.cost(micro) for micro in mine),
            needed=sum(plan.work(micro) for micro in mine),
        )

    steps = range(first_step, settings.steps)
    if not settings.workers:
        yield from map(work, steps)
        return
    pool = ThreadPoolExecutor(settings.workers)
    ahead: deque[Future[Work]] = deque()
    try:
        for step in steps:
            ahead.append(pool.submit(work, step))
            if len(ahead) > settings.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
