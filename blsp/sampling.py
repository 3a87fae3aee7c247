"""Random items that are always the same, whatever the order and wherever they come from."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import count
from typing import TypeVar

_Item = TypeVar("_Item")
_Group = TypeVar("_Group")


def draw_of(*names: str) -> int:
    """A number below 2^64, always the same for the same names, and as good as random."""
    return int.from_bytes(hashlib.sha256("\0".join(("sample", *names)).encode()).digest()[:8])


def sample(
    items: Iterable[_Item], size: int, group: Callable[[_Item], _Group], name: Callable[[_Item], tuple[str, ...]]
) -> dict[_Group, list[_Item]]:
    """Up to `size` random items of each group, always the same of items of the same names, whatever their order.

    No more than those are held at a time.
    """
    heaps: dict[_Group, list[tuple[int, int, _Item]]] = defaultdict(list)
    for number, item in zip(count(), items, strict=False):
        heap = heaps[group(item)]
        heapq.heappush(heap, (-draw_of(*name(item)), number, item))
        if len(heap) > size:
            heapq.heappop(heap)
    return {key: [item for *_, item in sorted(heap, reverse=True)] for key, heap in heaps.items()}
