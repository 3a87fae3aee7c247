"""Which English word each German word stands for, counted from sentences and their translations."""

from collections import defaultdict
from collections.abc import Sequence

ROUNDS = 8


def stands_for(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[list[str]]:
    """For each pair of a sentence and its translation, the word of the translation that each word stands for.

    The likeliest one under IBM model 1 (Brown et al. 1993): p(translated word | word), by expectation-maximisation
    over all pairs, from equal chances. Every word stands for some word, "der" and "uhr" too.
    """
    chances: dict[tuple[str, str], float] = defaultdict(lambda: 1.0)
    for _ in range(ROUNDS):
        counts: dict[tuple[str, str], float] = defaultdict(float)
        totals: dict[str, float] = defaultdict(float)
        for words, translation in pairs:
            for translated in translation:
                of_any = sum(chances[word, translated] for word in words)
                for word in words:
                    count = chances[word, translated] / of_any
                    counts[word, translated] += count
                    totals[word] += count
        chances = defaultdict(float, {pair: count / totals[pair[0]] for pair, count in counts.items()})
    return [
        [max(translation, key=lambda translated: chances[word, translated]) for word in words]
        for words, translation in pairs
    ]
