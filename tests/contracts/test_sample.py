import numpy as np
import pyarrow as pa

from blsp.contracts.sample import Sample, keys_of


def drawn(names, size, batch):
    sample = Sample(size)
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        sample.add(keys_of(part), pa.table({"name": part}))
    return pa.concat_tables(sample.tables())["name"].to_pylist()


def test_the_same_rows_are_chosen_in_whatever_order_and_batches_they_come():
    names = [f"row {number}" for number in range(1000)]
    chosen = drawn(names, 100, 30)
    assert len(chosen) == 100 and chosen == sorted(chosen, key=names.index)
    shuffled = np.random.default_rng(1).permutation(names).tolist()
    assert set(drawn(shuffled, 100, 1)) == set(drawn(names, 100, 1000)) == set(chosen)
    # No part of the corpus is left out.
    assert {int(name.split()[1]) // 250 for name in chosen} == {0, 1, 2, 3}


def test_all_rows_are_there_where_there_are_no_more():
    assert drawn(["a", "b", "c"], 3, 2) == ["a", "b", "c"]
