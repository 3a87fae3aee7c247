"""Where shards are worked on: in this process, in several, on a Ray cluster. What comes out is the same."""

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


def run_each(
    function: Callable[[Task], Result], tasks: Iterable[Task], execution: "Execution", gpus: int = 0
) -> Iterator[Result]:
    """The function's result for each task, in the tasks' order. Tasks are drawn as they are wanted, few ahead.

    A task may be run more than once (a machine died, or seemed to); its result is taken once. What the function
    loads and keeps (functools.cache) stays in its process from task to task. `gpus` are what a task needs on a
    cluster that has any; without a cluster the processes share the GPUs of this machine.
    Raises what the function raises, and BlspError where processes die of what is not the function's doing.
    """
    if execution.executor == "ray":
        from blsp.cluster import connected, run_on_cluster

        with connected(str(execution.ray_address)) as ray:
            yield from run_on_cluster(ray, function, tasks, gpus)
    elif execution.processes == 1:
        yield from map(function, tasks)
    else:
        yield from _in_processes(function, tasks, execution.processes)


def _in_processes(function: Callable[[Task], Result], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    # Spawned, not forked: a forked process has its parent's locks, but none of the threads that would open them.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                ahead.append(pool.submit(function, task))
                if len(ahead) > 2 * processes:
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
