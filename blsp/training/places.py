"""Where a training leaves what it made."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Places:
    """The adapter's folder, the files of the report, the log and the curve, and the folder of what `measure` finds.

    `variant` is the name under `experiments` in params.yaml of what is trained there from `seed`; both are None for
    the training of the pipeline itself.
    """

    adapter: str
    report: str
    log: str
    curve: str
    measured: str | None = None
    variant: str | None = None
    seed: int | None = None

    @property
    def options(self) -> str:
        """What says so to `blsp train` and `blsp track`."""
        return f"--variant {self.variant} --seed {self.seed}" if self.variant else ""


PIPELINE = Places("models/adapter", "reports/train.json", "reports/train_log.jsonl", "reports/train_curve.csv")


def places_of(variant: str, seed: int, group: str = "variants") -> Places:
    """Those of a variant trained from a seed: all in a folder of its own, within that of its group in `experiments`.

    A stage that reads a whole group depends on all that lies in its folder, and on no other group.
    """
    folder = f"models/{group}/{variant}-{seed}"
    return Places(
        adapter=f"{folder}/adapter",
        report=f"{folder}/train.json",
        log=f"{folder}/train_log.jsonl",
        curve=f"{folder}/train_curve.csv",
        measured=f"{folder}/measured",
        variant=variant,
        seed=seed,
    )
