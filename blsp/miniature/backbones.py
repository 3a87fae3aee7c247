"""Trains the miniature's two backbones side by side: one process each, one thread each."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from blsp.params import Miniature


def train_both(settings: Miniature, folder: Path) -> None:
    """Nothing; `folder` afterwards holds the checkpoints `llm` and `speech`.

    Models this small gain little from a second thread, so two processes on two cores finish sooner than one
    after the other; and one thread each gives the same weights on every run.
    """
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(_train_llm, settings, folder / "llm"),
            pool.submit(_train_speech, settings, folder / "speech"),
        ]
        for job in jobs:
            job.result()


def _train_llm(settings: Miniature, folder: Path) -> None:
    import torch

    from blsp.miniature.llm import train_llm

    torch.set_num_threads(1)
    train_llm(settings.llm, settings.seed, folder)


def _train_speech(settings: Miniature, folder: Path) -> None:
    import torch

    from blsp.miniature.speech_model import train_speech_model

    torch.set_num_threads(1)
    train_speech_model(settings, folder)
