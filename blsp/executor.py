"""Where shards are worked on: in this process, in several of this machine. What comes out is the same."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeVar

from blsp.errors import BlspError

if TYPE_CHECKING:
    from blsp.params import Execution

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_each(function: Callable[[Task], Result], tasks: Iterable[Task], execution: "Execution") -> Iterator[Result]:
    """The function's result for each task, in the tasks' order. Tasks are drawn as they are wanted, few ahead.

    Raises BlspError where a process died, which is not of the task's doing: run again.
    """
    if execution.processes == 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: a forked process has its parent's locks, but none of the threads that would open them.
    with ProcessPoolExecutor(execution.processes, mp_context=get_context("spawn")) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                ahead.append(pool.submit(function, task))
                if len(ahead) > 2 * execution.processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise BlspError(
                "a worker process was killed, most likely for want of memory; set execution.processes lower in "
                "params.yaml and run it again: what is finished is kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
