"""The model card of a version: what is recorded of it, on one page, as Hugging Face's cards are laid out.

All of it comes from the version's run (params, tags, metrics, artifacts) and the corpus: the same run, the same card.
"""

import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blsp import markdown
from blsp.data.shards import CORPUS_DIR, iter_shards
from blsp.files import read_json
from blsp.languages import primary
from blsp.params import Params
from blsp.tracking.local import EVALUATION
from blsp.tracking.machine import MACHINE
from blsp.tracking.store import ADAPTER_TAG, COMMIT_TAG, DIRTY_TAG, MODEL_TAG, Store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

FILE = "model_card.md"
DESCRIPTION_CHARS = 5000  # a version's description is no longer in PostgreSQL
SPLITS = ("train", "dev", "test")
UNRECORDED = "not recorded"
SETTINGS = (
    "objective",
    "temperature",
    "teacher",
    "corpus_share",
    "adapter",
    "downsampling",
    "bottleneck",
    "encoding",
    "precision",
    "steps",
    "batch_size",
    "lr",
    "seed",
)  # of the section `train`


@dataclass(frozen=True)
class Recorded:
    """What the card is written from."""

    name: str
    run_id: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    digests: Mapping[str, str]
    evaluation: Mapping[str, Any]
    corpus: Mapping[str, Any] | None
    licences: Mapping[str, int]
    """{licence: rows of the corpus that are under it}."""


def log_card(opened: Store, run: "Run", version: "ModelVersion", params: Params) -> None:
    """Nothing; afterwards the card lies with the run and with the logged model, and describes the version."""
    text = card(_recorded(opened, run, params.promote.model_name))
    opened.client.log_text(run.info.run_id, text, FILE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_text(text, encoding="utf-8")
        opened.client.log_model_artifact(run.data.tags[MODEL_TAG], str(path))
    opened.client.update_model_version(version.name, version.version, description(text))


def card(known: Recorded) -> str:
    """The card as Markdown, with the YAML header that model hubs read."""
    return f"---\n{_header(known)}---\n\n" + "\n".join(_body(known)) + "\n"


def description(text: str) -> str:
    """The card without its header, as many whole sections as a registry's description has room for."""
    body = text.partition("\n---\n\n")[2]
    if len(body) <= DESCRIPTION_CHARS:
        return body
    rest = f"\nThe whole card: `{FILE}`, an artifact of the run and of the model.\n"
    kept = ""
    for section in body.replace("\n## ", "\n\0## ").split("\0"):
        if len(kept) + len(section) + len(rest) > DESCRIPTION_CHARS:
            continue
        kept += section
    return kept + rest


def row_licences(corpus_dir: str = CORPUS_DIR) -> dict[str, int]:
    """{licence: rows of the packed corpus under it}; empty where the corpus is not at hand."""
    if not Path(corpus_dir).is_dir():
        return {}
    return dict(
        Counter(
            str((row.get("custom") or {}).get("licence") or "unknown")
            for split in SPLITS
            for shard in iter_shards(split, corpus_dir)
            for row in shard.rows()
        )
    )


def _recorded(opened: Store, run: "Run", name: str) -> Recorded:
    run_id = run.info.run_id
    there = {item.path for item in opened.client.list_artifacts(run_id)}
    with tempfile.TemporaryDirectory() as folder:
        evaluation, corpus = (
            read_json(opened.client.download_artifacts(run_id, file, folder)) if file in there else None
            for file in (EVALUATION.name, "corpus.json")
        )
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return Recorded(
        name=name,
        run_id=run_id,
        params=run.data.params,
        tags=run.data.tags,
        metrics=run.data.metrics,
        digests={entry.dataset.name: entry.dataset.digest for entry in inputs},
        evaluation=evaluation or {},
        corpus=corpus,
        licences=row_licences(),
    )


def _header(known: Recorded) -> str:
    from ruamel.yaml import YAML

    pins = known.evaluation["backbones"].values()
    licences = {pin["licence"] for pin in pins}
    heard, _ = _languages(known)
    tasks = known.evaluation["tasks"]
    fields = {
        "license": licences.pop().lower() if len(licences) == 1 else "other",
        "library_name": "transformers",
        "pipeline_tag": "audio-text-to-text",
        "language": heard,
        "base_model": [pin["origin"] for pin in pins if pin["source"] == "hub"],
        "base_model_relation": "adapter",
        "datasets": sorted({source["name"] for source in (known.corpus or {}).get("sources", ())}),
        "metrics": list(dict.fromkeys(task["metric"] for task in tasks)),
        "tags": ["speech", "blsp", "behaviour-alignment"],
        "model-index": [
            {
                "name": known.name,
                "results": [
                    {
                        "task": {"type": "audio-text-to-text", "name": task["name"]},
                        "dataset": {"name": "test split", "type": "test", "revision": known.digests.get(CORPUS_DIR)},
                        "metrics": [{"type": task["metric"], "value": round(_speech(known, task)["value"], 6)}],
                    }
                    for task in tasks
                ],
            }
        ],
    }
    yaml, stream = YAML(), io.StringIO()
    yaml.default_flow_style = False
    yaml.dump({key: value for key, value in fields.items() if value}, stream)
    return stream.getvalue()


def _body(known: Recorded) -> Iterator[str]:
    evaluation = known.evaluation
    pins = evaluation["backbones"]
    yield f"# {known.name}\n"
    yield (
        f"A modality adapter of {_number(known.metrics.get('train.adapter_parameters'))} parameters between a frozen "
        f"speech encoder ({pins['speech']['origin']}) and a frozen chat LLM ({pins['llm']['origin']}): it hears "
        "speech, follows a written instruction about it, and answers in text. Trained by behaviour alignment, until "
        "the LLM behaves the same whether it hears speech or reads its transcript.\n"
    )
    yield from _figures(known)
    yield from _limits(known)
    yield from _use(known)
    yield from _cost(known)
    yield from _data(known)
    yield from _training(known)
    yield from _differences(known)


def _figures(known: Recorded) -> Iterator[str]:
    from blsp.evaluation.report import about_the_test, table

    evaluation = dict(known.evaluation)
    yield "## Figures\n"
    yield (
        f"On {about_the_test(evaluation)} `text` is the LLM reading the true transcript, the ceiling; `cascade` the "
        "speech model's transcript read by the LLM; `speech` this model.\n"
    )
    evaluation["systems"] = {k: v for k, v in evaluation["systems"].items() if k in ("text", "cascade", "speech")}
    yield table(evaluation) + "\n"


def _differences(known: Recorded) -> Iterator[str]:
    from blsp.evaluation.report import comparison_table

    differences = [one for one in known.evaluation["comparisons"] if one["than"] in ("cascade", "text")]
    if differences:
        yield "\n## Differences on the same utterances\n"
        yield "p: approximate randomisation, two-sided.\n"
        yield comparison_table(differences)


def _limits(known: Recorded) -> Iterator[str]:
    heard, unheard = _languages(known)
    yield "## Limits\n"
    yield f"- Training heard speech in: {', '.join(heard) or 'a language that nobody named'}."
    if unheard:
        yield (
            f"- Measured, but never heard in training: {', '.join(unheard)} (the second table). Expect answers that "
            "are wrong or in another language."
        )
    yield "- No figure here is of any other language, nor of other tasks than those named."
    yield (
        "- Measured on the test audio as it is: not under noise, on the telephone, at another tempo, nor with "
        "overlapping voices."
    )
    yield f"- Answers were cut at {known.params.get('evaluate.max_new_tokens', '?')} tokens, greedily decoded."
    yield "- What the LLM says of a text, right or wrong, it says of speech too: its errors and biases come along."
    yield "- It works with the pinned backbones alone, and refuses any others.\n"


def _use(known: Recorded) -> Iterator[str]:
    yield "## How to use\n"
    yield (
        f"```\nmlflow models serve -m models:/{known.name}@champion --env-manager local -p 5001\n"
        "curl -s localhost:5001/invocations -H 'Content-Type: application/json' -d \"{\n"
        '  \\"dataframe_split\\": {\\"columns\\": [\\"audio\\"], \\"data\\": [[\\"$(base64 -w0 clip.wav)\\"]]},\n'
        '  \\"params\\": {\\"instruction\\": \\"Repeat the following text.\\"}}"\n```\n'
    )
    asked = dict.fromkeys(one for given in known.evaluation.get("instructions", {}).values() for one in given)
    yield f"Instructions it was measured under: {' / '.join(asked)}\n"


def _cost(known: Recorded) -> Iterator[str]:
    machine = {key.removeprefix(MACHINE): value for key, value in known.tags.items() if key.startswith(MACHINE)}
    seconds, peak = known.metrics.get("train.train_s"), known.metrics.get("train.peak_memory_gib")
    yield "## Hardware and cost\n"
    if machine:
        yield f"- GPUs: {machine.get('gpus')}; CPU: {machine.get('cpu')}; memory: {machine.get('memory_gib')} GiB"
        yield f"- Processes: {machine.get('processes')}; {machine.get('software')}"
    else:
        yield f"- Machine: {UNRECORDED}; MLflow was out of reach of the training"
    yield "- Training: " + (UNRECORDED if seconds is None else f"{seconds:,.0f} s ({seconds / 3600:.2f} h)")
    if machine and seconds is not None:
        yield f"- Device time: {int(machine.get('processes', 1)) * seconds / 3600:.2f} h over all processes"
    yield "- Peak memory of the first process: " + (UNRECORDED if peak is None else f"{peak:.2f} GiB")
    yield ""


def _data(known: Recorded) -> Iterator[str]:
    yield "## Data\n"
    if known.corpus:
        rows = [[one["name"], f"{one['rows_kept']:,}", f"{one['rows_in']:,}"] for one in known.corpus["sources"]]
        yield markdown.table(["source", "rows kept", "rows read"], rows) + "\n"
        splits = known.corpus["splits"]
        rows = [
            [split, f"{splits[split]['hours']:.2f}", f"{splits[split]['rows']:,}", f"{splits[split]['speakers']:,}"]
            for split in SPLITS
            if split in splits
        ]
        yield markdown.table(["split", "hours", "utterances", "speakers"], rows) + "\n"
    else:
        yield f"Sources and hours: {UNRECORDED}\n"
    for licence, rows_under in sorted(known.licences.items()):
        yield f"- licence {licence}: {rows_under:,} utterances"
    if not known.licences:
        yield f"- licences of the utterances: {UNRECORDED}"
    for path, digest in sorted(known.digests.items()):
        yield f"- `{path}`: DVC digest `{digest}`"
    yield "\nThe targets are what the LLM itself wrote from the transcripts.\n"


def _training(known: Recorded) -> Iterator[str]:
    yield "## Backbones\n"
    pins = known.evaluation["backbones"]
    rows = [
        [part, pin["origin"], pin["revision"] or pin["source"], f"`{pin['sha256'][:16]}`", pin["licence"]]
        for part, pin in pins.items()
    ]
    yield markdown.table(["part", "from", "revision", "SHA-256", "licence"], rows) + "\n"
    yield "## Training\n"
    settings = [(key, known.params.get(f"train.{key}")) for key in SETTINGS]
    shares = {k.removeprefix("train.shares."): v for k, v in known.params.items() if k.startswith("train.shares.")}
    rows = [[key, value] for key, value in settings if value is not None]
    rows += [[f"share of {name}", value] for name, value in sorted(shares.items())]
    yield markdown.table(["setting", "value"], rows) + "\n"
    tags = known.tags
    dirty = ", with changes that no commit has" if tags.get(DIRTY_TAG) == "true" else ""
    yield f"- commit `{tags.get(COMMIT_TAG, UNRECORDED)}`{dirty}"
    yield f"- adapter, SHA-256 `{tags.get(ADAPTER_TAG, UNRECORDED)}`"
    yield f"- MLflow run `{known.run_id}`"


def _languages(known: Recorded) -> tuple[list[str], list[str]]:
    """The languages of the tasks that training heard, and of those that it did not."""
    named = {
        kind: {
            primary(language)
            for task in known.evaluation["tasks"]
            if task["heard"] is kind
            and (language := known.params.get(f"evaluate.tasks.{task['name']}.language")) not in (None, "null")
        }
        for kind in (True, False)
    }
    return sorted(filter(None, named[True])), sorted(filter(None, named[False] - named[True]))


def _speech(known: Recorded, task: Mapping[str, Any]) -> Mapping[str, float]:
    figure: Mapping[str, float] = known.evaluation["systems"]["speech"][task["name"]][task["metric"]]
    return figure


def _number(value: float | None) -> str:
    return UNRECORDED if value is None else f"{value:,.0f}"
