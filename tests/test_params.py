import copy
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from blsp.errors import BlspError
from blsp.params import ParamsError, load_params

PARAMS_FILE = Path(__file__).parents[1] / "params.yaml"
COMMITTED = YAML(typ="safe", pure=True).load(PARAMS_FILE.read_text())
JUDGE = {"server_url": "http://localhost:8000/v1", "model": "judge", "items": 50, "timeout_s": 60.0}
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret


def load(tmp_path, *changes):
    """The committed params, each change a key's path and its new value (`...` takes the key away)."""
    raw = copy.deepcopy(COMMITTED)
    for path, value in changes:
        *sections, key = path.split("/")
        section = raw
        for name in sections:
            section = section[int(name) if isinstance(section, list) else name]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps(raw))  # JSON is YAML too, and written in no time
    return load_params(file)


def complaint(tmp_path, *changes):
    """The message of the refusal, without the file's name, which it begins with."""
    with pytest.raises(ParamsError) as refusal:
        load(tmp_path, *changes)
    name, found, message = str(refusal.value).partition(f"{tmp_path}/params.yaml:")
    assert found
    assert name == ""
    return message.removeprefix(" ")


def test_the_committed_file_loads_and_is_frozen():
    params = load_params(PARAMS_FILE)
    assert params.train.shares == COMMITTED["train"]["shares"]
    assert params.validate_.max_copy_share == COMMITTED["validate"]["max_copy_share"]
    with pytest.raises(ValidationError, match="frozen"):
        params.train.steps = 1


def test_every_committed_value_is_explained():
    lines = [line for line in PARAMS_FILE.read_text().splitlines() if line.startswith("  ")]
    unexplained = [line for line in lines if "#" not in line and "gates" not in line]
    # Instructions and gates take the line to themselves, below an explained key.
    behaviours, tasks = COMMITTED["continuations"]["behaviours"], COMMITTED["evaluate"]["tasks"]
    allowed = {*behaviours, *tasks, *behaviours["repetition"], *tasks["qa"]}
    allowed |= {f"- {line}" for asked in (*behaviours.values(), *tasks.values()) for line in asked["instructions"]}
    allowed |= {*COMMITTED["train"]["shares"], *COMMITTED["promote"]["gates"]}
    assert [line for line in unexplained if line.partition(":")[0].strip() not in allowed] == []


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("trian", "train"),
        ("validate_", "validate"),
        ("train/temprature", "train.temperature"),
        ("miniature/llm/layer", "miniature.llm.layers"),
        ("miniature/speech/word_wieght", "miniature.speech.word_weight"),
        ("promote/gates/speech.st.bleu/max_dorp", "promote.gates.speech.st.bleu.max_drop"),
        ("evaluate/tasks/slu/metrics", "evaluate.tasks.slu.metric"),
        ("corpus/xyz", "corpus."),
        ("corpus/sources/0/pth", "corpus.sources.0.path"),
        ("experiments/variants/ce/objektive", "experiments.variants.ce.objective"),
        ("experiments/ablation", "experiments.ablations"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest(tmp_path, key, nearest):
    message = complaint(tmp_path, (key, "x"))
    assert message.startswith(f"{key.replace('/', '.')}: unknown key; the nearest valid key is {nearest}")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train/steps", "800", "train.steps: must be a whole number; found '800'"),
        ("train/steps", 800.0, "train.steps: must be a whole number; found 800.0"),
        ("train/steps", True, "train.steps: must be a whole number; found true"),
        ("train/steps", None, "train.steps: must be a whole number; found null"),
        ("train/lr", "fast", "train.lr: must be a number; found 'fast'"),
        ("backbones/llm_licence", 2, "backbones.llm_licence: must be text; found 2"),
        ("train", None, "train: must be a section of `key: value` lines; found null"),
        ("train/shares", [1], "train.shares: must be a section of `key: value` lines; found [1]"),
        ("train/objective", "mse", "train.objective: must be 'kd' or 'ce'; found 'mse'"),
        ("corpus/sources/0/case", "upper", "corpus.sources.0.case: must be 'as_written' or 'lower'; found 'upper'"),
        (
            "experiments/ablations/temperature_2/temperature",
            "4",
            "experiments.ablations.temperature_2.temperature: must be a number; found '4'",
        ),
        (
            "experiments/variants/kd",
            "kd",
            "experiments.variants.kd: must be a section of `key: value` lines; found 'kd'",
        ),
        ("experiments", None, "experiments: must be a section of `key: value` lines; found null"),
    ],
)
def test_a_wrong_type_is_refused(tmp_path, key, value, expected):
    assert complaint(tmp_path, (key, value)) == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train/steps", 0, "train.steps: must be greater than 0; found 0"),
        ("train/lr", -1.0, "train.lr: must be greater than 0; found -1.0"),
        ("train/corpus_share", 0.0, "train.corpus_share: must be greater than 0; found 0.0"),
        ("execution/experiments_at_once", 0, "execution.experiments_at_once: must be greater than 0; found 0"),
        ("train/warmup_steps", -1, "train.warmup_steps: must be at least 0; found -1"),
        ("validate/max_drop_share", 20, "validate.max_drop_share: must be at most 1; found 20"),
        ("evaluate/confidence", 1.0, "evaluate.confidence: must be less than 1; found 1.0"),
        ("evaluate/tasks/qa/drop", "", "evaluate.tasks.qa.drop: must be text that is not empty; found ''"),
        (
            "evaluate/tasks/qa/joint",
            "{instruction}",
            "evaluate.tasks.qa: joint must have {content} once, where the transcript goes; found '{instruction}'",
        ),
        (
            "continuations/behaviours/repetition/joint",
            "{content}",
            "continuations.behaviours.repetition: joint must have {instruction} once, where the instruction goes; "
            "found '{content}'",
        ),
        (
            "continuations/behaviours/repetition/template",
            "raw",
            "continuations.behaviours.repetition.template: must be 'chat' or 'none'; found 'raw'",
        ),
        (
            "continuations/behaviours/repetition/examples",
            [{"content": "play", "answer": ""}],
            "continuations.behaviours.repetition.examples.0.answer: must be text that is not empty; found ''",
        ),
        ("promote/gates", {}, "promote.gates: must be a section with at least one key; found {}"),
        ("promote/tolerated_falls/asr", -1, "promote.tolerated_falls.asr: must be at least 0; found -1"),
        (
            "promote/tolerated_falls/ast",
            0.1,
            "promote.tolerated_falls.ast is no task; evaluate.tasks has asr, st, slu, qa, continuation, asr_de, "
            "say_de, st_de, slu_de, qa_de",
        ),
        (
            "promote/model_name",
            "it's",
            "promote.model_name: must be a name of letters, digits and . _ - that begins with a letter or digit, "
            'at most 200 of them; found "it\'s"',
        ),
        (
            "continuations/behaviours/Go-on",
            {"instructions": ["Go on."], "share": 1.0, "answer": "any", "language": None},
            "continuations.behaviours.Go-on: must be a name of small letters, digits and _ that begins with a letter; "
            "found 'Go-on'",
        ),
        (
            "backbones/llm_revision",
            "main",
            "backbones.llm_revision: must be a commit in full, 40 digits of 0-9 and a-f (a branch or tag may move); "
            "found 'main'",
        ),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path, key, value, expected):
    assert complaint(tmp_path, (key, value)) == expected


@pytest.mark.parametrize("section", ["continuations/behaviours/repetition", "evaluate/tasks/qa"])
@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("instructions", ["Repeat.", "Repeat <|audio|> now."], "instructions.1"),
        ("examples", [{"content": "<|audio|>", "answer": "play"}], "examples.0.content"),
        ("examples", [{"content": "play", "answer": "<|audio|>"}], "examples.0.answer"),
        ("joint", "{instruction} <|audio|> {content}", "joint"),
    ],
)
def test_the_placeholder_of_speech_may_not_be_in_what_is_asked(tmp_path, section, key, value, place):
    message = complaint(tmp_path, (f"{section}/{key}", value))
    path = f"{section.replace('/', '.')}.{place}"
    assert message.startswith(f"{path}: <|audio|> stands for speech and may not be in what is asked; found ")
    assert "\n" not in message


@pytest.mark.parametrize("date", ["2025-13-01", "yesterday", "01.02.2025", ""])
def test_the_day_of_chat_templates_is_a_day(tmp_path, date):
    assert load(tmp_path, ("backbones/chat_template_date", "2024-02-29")).backbones.chat_template_date == "2024-02-29"
    assert complaint(tmp_path, ("backbones/chat_template_date", date)) == (
        f"backbones.chat_template_date: must be a day, year-month-day in quotes, such as '2025-01-01'; found {date!r}"
    )


def test_a_judge_is_whole_or_null(tmp_path):
    assert load(tmp_path).evaluate.judge is None
    assert load(tmp_path, ("evaluate/judge", JUDGE)).evaluate.judge.items == 50
    for change, expected in (
        ({"items": 0}, "evaluate.judge.items: must be greater than 0; found 0"),
        ({"model": ""}, "evaluate.judge.model: must be text that is not empty; found ''"),
        ({"item": 5}, "evaluate.judge.item: unknown key; the nearest valid key is evaluate.judge.items"),
        ({"server_url": "http://sk-key@host/v1"}, "evaluate.judge.server_url: must be an address that ends in /v1"),
    ):
        assert complaint(tmp_path, ("evaluate/judge", JUDGE | change)).startswith(expected)


SERVER = [
    ("continuations/engine", "openai"),
    ("execution/server_url", "https://llm.example.org:8000/v1"),
    ("continuations/server_model", "meta-llama/Llama-2-7b-chat-hf"),
]


def test_a_server_may_write_the_continuations(tmp_path):
    assert load(tmp_path, *SERVER).execution.server_url == "https://llm.example.org:8000/v1"


@pytest.mark.parametrize("change", ["http://key@host/v1", "http://host:8000", "host:8000/v1", "http://host/v1/", ""])
def test_a_server_without_a_full_address_or_with_a_key_in_it_is_refused(tmp_path, change):
    assert complaint(tmp_path, *SERVER, ("execution/server_url", change)) == (
        "execution.server_url: must be an address that ends in /v1, such as http://localhost:8000/v1, with no key "
        f"in it; found {change!r}"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (SERVER[:2], "where continuations.engine is openai, continuations.server_model must be given; found null"),
        (SERVER[::2], "where continuations.engine is openai, execution.server_url must be given; found null"),
        (
            SERVER[1:2],
            "where continuations.engine is transformers, execution.server_url must be null; found "
            "'https://llm.example.org:8000/v1'",
        ),
        (
            [*SERVER, ("continuations/top_logprobs", 20)],
            "continuations: top_logprobs must be 0 where engine is openai: servers give log-probabilities by the text "
            "of tokens, which several share; found 20",
        ),
    ],
)
def test_an_engine_without_what_it_needs_is_refused(tmp_path, changes, expected):
    assert complaint(tmp_path, *changes) == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "evaluate/tasks/asr/language",
            "xx",
            "evaluate.tasks.asr.language: must be a language, such as de, de-CH or German; found 'xx'",
        ),
        (
            "continuations/behaviours/continuation/language",
            "../x",
            "continuations.behaviours.continuation.language: must be a language, such as de, de-CH or German; found "
            "'../x'",
        ),
        (
            "corpus/min_chars_per_s",
            0.5,
            "validate.min_chars_per_s 2 is stricter than corpus.min_chars_per_s 0.5: rows that are packed would stop "
            "the run; set both to the value that you want",
        ),
        (
            "corpus/max_duration_s",
            40.0,
            "validate.max_duration_s 30 is stricter than corpus.max_duration_s 40: rows that are packed would stop the "
            "run; set both to the value that you want",
        ),
    ],
)
def test_languages_are_known_and_limits_agree(tmp_path, key, value, expected):
    assert complaint(tmp_path, (key, value)) == expected


@pytest.mark.parametrize("language", ["en", "en-GB", "de-CH", "en_us", "English", "eng", None])
def test_a_language_may_be_written_as_people_do(tmp_path, language):
    assert load(tmp_path, ("evaluate/tasks/asr/language", language)).evaluate.tasks["asr"].language == language


@pytest.mark.parametrize("key", ["train", "train/steps", "miniature/llm/heads", "validate"])
def test_a_missing_key_is_refused(tmp_path, key):
    assert complaint(tmp_path, (key, ...)) == f"{key.replace('/', '.')}: missing; add it"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [("train/shares", {"continuation": 0.9, "repetition": 0.2})],
            "train: shares sum to 1.1; they must sum to 1",
        ),
        (
            [
                ("train/shares", {"continuation": 0.5, "summary": 0.5}),
                (
                    "continuations/behaviours",
                    {"continuation": COMMITTED["continuations"]["behaviours"]["continuation"]},
                ),
            ],
            "train.shares.summary is no behaviour that is written; continuations.behaviours has continuation",
        ),
        (
            [("continuations/behaviours/repetition/share", 0.05)],
            "train.shares.repetition is 0.1, but it is written for 0.05 of the utterances "
            "(continuations.behaviours.repetition.share); raise the one or lower the other",
        ),
        (
            [("train/adapter", "conv"), ("train/downsampling", 6)],
            "train: each convolution of the conv adapter halves, so downsampling must be 2, 4, 8, ...; found 6; "
            "adapter: stack takes any",
        ),
        (
            [("miniature/llm/width", 128), ("miniature/llm/heads", 3)],
            "miniature.llm: width 128 is not divisible by heads 3",
        ),
        (
            [("miniature/speech/width", 160), ("miniature/speech/heads", 3)],
            "miniature.speech: width 160 is not divisible by heads 3",
        ),
        (
            [("corpus/sources/0/name", "manifest")],
            "corpus.sources.0: path must be where it lies for manifest; found null",
        ),
        (
            [("corpus/sources/0/path", "here")],
            "corpus.sources.0: path must be null for miniature; found 'here'",
        ),
        (
            [("corpus/min_duration_s", 30), ("corpus/max_duration_s", 30.0)],
            "corpus: min_duration_s 30 is not below max_duration_s 30",
        ),
        (
            [("corpus/min_chars_per_s", 50.0), ("corpus/max_chars_per_s", 35.0)],
            "corpus: min_chars_per_s 50 is not below max_chars_per_s 35",
        ),
        (
            [("validate/min_chars_per_s", 2.0), ("validate/max_chars_per_s", 1.5)],
            "validate: min_chars_per_s 2 is not below max_chars_per_s 1.5",
        ),
        (
            [("corpus/min_chars_per_s", 1.0)],
            "validate.min_chars_per_s 2 is stricter than corpus.min_chars_per_s 1: rows that are packed would stop the "
            "run; set both to the value that you want",
        ),
        (
            [("corpus/dev_share", 0.4), ("corpus/test_share", 0.6)],
            "corpus: dev_share 0.4 and test_share 0.6 leave nothing to train on; together they must be less than 1",
        ),
        (
            [("corpus/max_recogniser_wer", 0.5)],
            "corpus: recogniser and max_recogniser_wer are given together or not at all; recogniser is null",
        ),
        (
            [("corpus/recogniser", "models/whisper")],
            "corpus: recogniser and max_recogniser_wer are given together or not at all; max_recogniser_wer is null",
        ),
        (
            [("corpus/recogniser_revision", COMMIT)],
            "corpus: recogniser_revision is given, but recogniser is null; name the checkpoint on the hub",
        ),
        (
            [("corpus/sources/0/audio_root", "/clips")],
            "corpus.sources.0: audio_root must be null for miniature, whose audio lies where its path says",
        ),
        (
            [("backbones/source", "hub")],
            "backbones: where source is hub, speech_name must be owner/name on the hub; found null",
        ),
        (
            [("backbones/source", "hub"), ("backbones/speech_name", "openai/whisper-small")],
            "backbones: where source is hub, speech_revision must be the 40-digit commit of openai/whisper-small; "
            "found null",
        ),
        (
            [("backbones/source", "local"), ("backbones/speech_name", "models/whisper")],
            "backbones: where source is local, llm_name must be a folder, or a GGUF file; found null",
        ),
        (
            [("backbones/source", "package"), ("backbones/speech_name", "voice/data")],
            "backbones: where source is package, speech_wheels must list the wheels that voice/data is in, each with "
            "name, version and sha256; found null",
        ),
        (
            [
                ("backbones/source", "package"),
                ("backbones/speech_name", "../voice"),
                ("backbones/speech_wheels", [{"name": "voice", "version": "1.0", "sha256": "0" * 64}]),
            ],
            "backbones: where source is package, speech_name must be the path of a folder or a GGUF file inside the "
            "wheels; found '../voice'",
        ),
        (
            [("evaluate/conditions/slow", {"kind": "tempo"})],
            "evaluate.conditions.slow: where kind is tempo, tempo must be given; found null",
        ),
        (
            [("evaluate/conditions/slow", {"kind": "telephone", "snr_db": 5})],
            "evaluate.conditions.slow: where kind is telephone, snr_db must be left out; found 5.0",
        ),
        (
            [("evaluate/conditions/clean", {"kind": "telephone"})],
            "evaluate: conditions.clean is the audio as it is, which is always measured; take another name",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(tmp_path, changes, expected):
    assert complaint(tmp_path, *changes) == expected


def test_a_variant_is_train_with_its_changes(tmp_path):
    params = load(tmp_path, ("train/steps", 900), ("train/shares", {"repetition": 1.0}))
    assert params.experiments.variants["kd_repetition"] == params.train
    ce = params.variant("ce", seed=2)
    changes = {"objective": "ce", "shares": {"continuation": 1.0}, "seed": 2}
    assert ce.train == params.train.model_copy(update=changes)
    assert ce.model_copy(update={"train": params.train}) == params
    assert type(ce).model_validate_json(ce.model_dump_json(by_alias=True)) == ce, "as it is told to MLflow's process"


def test_what_no_variant_can_be_trained_with_is_refused(tmp_path):
    expected = "experiments.variants.kd: shares sum to 0.9; they must sum to 1"
    assert complaint(tmp_path, ("experiments/variants/kd/shares", {"continuation": 0.9})) == expected
    assert complaint(tmp_path, ("experiments/ablations/kd", {})).startswith("experiments: kd is a variant and an")
    assert complaint(tmp_path, ("experiments/seeds", [1, 1])).startswith("experiments: seeds [1, 1] has one twice")
    assert "ablation_seeds has 7, which seeds has not" in complaint(tmp_path, ("experiments/ablation_seeds", [1, 7]))
    assert complaint(tmp_path, ("train/lr", "fast")).count("\n") == 0, "a fault of train is told once"


def test_a_variant_that_is_not_there_or_learns_what_is_not_written_is_refused(tmp_path):
    with pytest.raises(BlspError, match=r"no variant and no ablation kdd; it has kd_repetition, kd, .*, corpus_1_8$"):
        load_params(PARAMS_FILE).variant("kdd", 1)
    params = load(tmp_path, ("continuations/behaviours/repetition/share", 0.5))
    assert params.variant("kd", 1)
    with pytest.raises(BlspError, match=r"asr_pretrained.shares.repetition is 1, but it is written for 0.5"):
        params.variant("asr_pretrained", 1)


def test_frames_are_stacked_in_any_number(tmp_path):
    assert load(tmp_path, ("train/adapter", "stack"), ("train/downsampling", 6)).train.downsampling == 6


def test_a_hub_checkpoint_with_its_commit_is_accepted(tmp_path):
    changes = [
        (f"backbones/{part}_{key}", value)
        for part in ("speech", "llm")
        for key, value in (("name", "owner/name"), ("revision", COMMIT))
    ]
    assert load(tmp_path, ("backbones/source", "hub"), *changes).backbones.llm_revision == COMMIT


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "voice>=1"}, "name: must be a package's name, without version or options; found 'voice>=1'"),
        ({"name": "-rfile"}, "name: must be a package's name, without version or options; found '-rfile'"),
        ({"version": "1.0 --pre"}, "version: must be one version, such as 1.0.0; found '1.0 --pre'"),
        ({"sha256": "0" * 63}, f"sha256: must be a SHA-256 in full, 64 digits of 0-9 and a-f; found '{'0' * 63}'"),
        ({"sha": "0"}, "sha: unknown key; the nearest valid key is backbones.llm_wheels.0.sha256"),
    ],
)
def test_a_wheel_that_is_not_pinned_in_full_is_refused(tmp_path, change, expected):
    wheel = {"name": "voice", "version": "1.0", "sha256": "0" * 64} | change
    assert complaint(tmp_path, ("backbones/llm_wheels", [wheel])) == f"backbones.llm_wheels.0.{expected}"


def test_all_faults_are_named_at_once(tmp_path):
    message = complaint(tmp_path, ("train/steps", 0), ("train/lrr", 1), ("evaluate/seed", ...))
    assert message.split("\n  ") == [
        "",
        "train.steps: must be greater than 0; found 0",
        "train.lrr: unknown key; the nearest valid key is train.lr",
        "evaluate.seed: missing; add it",
    ]


def load_with_lr(tmp_path, written):
    text, count = re.subn(r"(?ms)^(train:.*?^  lr: )\S+", rf"\g<1>{written}", PARAMS_FILE.read_text())
    assert count == 1
    (tmp_path / "params.yaml").write_text(text)
    return load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(("written", "lr"), [("1e-3", 0.001), ("2E-5", 0.00002), (".5", 0.5), ("1", 1)])
def test_numbers_may_be_written_as_people_write_them(tmp_path, written, lr):
    assert load_with_lr(tmp_path, written).train.lr == lr


@pytest.mark.parametrize("written", [".inf", ".nan"])
def test_what_is_no_finite_number_is_refused(tmp_path, written):
    with pytest.raises(ParamsError, match=r"train\.lr: must be a finite number; found "):
        load_with_lr(tmp_path, written)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ": must hold sections such as `train:`; found null"),
        (b"- train\n", ": must hold sections such as `train:`; found ['train']"),
        (b"train:\n  steps: [1\n", ", line 3: not YAML: "),
        (b"train: {}\ntrain: {}\n", ', line 2: not YAML: found duplicate key "train"'),
        (b"train:\n\tsteps: 1\n", r", line 2: not YAML: found character '\t'"),
        (b"\xff", ": cannot be read: 'utf-8' codec"),
    ],
)
def test_what_is_no_params_file_is_refused(tmp_path, content, expected):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError) as refusal:
        load_params(path)
    assert str(refusal.value).startswith(f"{path}{expected}")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParamsError, match=r"nowhere\.yaml: no such file; run blsp where params\.yaml is"):
        load_params(tmp_path / "nowhere.yaml")
    with pytest.raises(ParamsError, match="cannot be read"):
        load_params(tmp_path)


RAY = [("execution/executor", "ray"), ("execution/ray_address", "ray://head:10001")]


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.7:6379", "ray://head:10001"])
def test_shards_may_be_worked_on_by_a_cluster(tmp_path, address):
    changes = [*RAY, ("execution/ray_address", address), ("execution/staging", "s3://speech/staged/mine")]
    assert load(tmp_path, *changes).execution.ray_address == address


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (RAY[:1], "execution: where executor is ray, ray_address must be given; found null"),
        (RAY[1:], "execution: where executor is local, ray_address must be null; found 'ray://head:10001'"),
        (
            [("execution/ray_address", "head")],
            "execution.ray_address: must be auto (the cluster of this machine), host:6379 or ray://host:10001; "
            "found 'head'",
        ),
        ([("execution/executor", "dask")], "execution.executor: must be 'local' or 'ray'; found 'dask'"),
        *(
            (
                [("execution/staging", place)],
                "execution.staging: must be s3://bucket/prefix, without a slash at its end; found " + repr(place),
            )
            for place in ("/shared", "s3://speech", "s3://speech/", "s3://speech/staged/", "gs://speech/staged")
        ),
    ],
)
def test_a_cluster_without_address_and_a_place_that_is_none_are_refused(tmp_path, changes, expected):
    assert complaint(tmp_path, *changes) == expected


@pytest.mark.parametrize("key", ["train/seed", "evaluate/seed", "miniature/seed", "experiments/seeds/0"])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path, key, seed):
    changes = [(key, seed)] if not key.startswith("experiments") else [("experiments/seeds", [seed])]
    message = complaint(tmp_path, *changes, ("experiments/ablation_seeds", [1]))
    assert "at least 0" in message if seed < 0 else "less than 4.29497e+09" in message


def test_a_seed_of_the_command_line_is_checked_too(tmp_path):
    with pytest.raises(BlspError, match="--seed must be at least 0 .* found -1"):
        load(tmp_path).variant("ce", seed=-1)


def test_an_instruction_twice_in_a_task_is_refused(tmp_path):
    message = complaint(tmp_path, ("evaluate/tasks/slu/instructions", ["Name it.", "Say it.", "Name it."]))
    assert message == "evaluate.tasks.slu: instructions has 'Name it.' twice; once is enough"


def test_items_are_limited_only_where_asked_for(tmp_path):
    assert load(tmp_path).evaluate.items is None and load(tmp_path, ("evaluate/items", 5)).evaluate.items == 5
    assert load(tmp_path, ("evaluate/items", ...)).evaluate.items is None
    assert "evaluate.items: must be greater than 0" in complaint(tmp_path, ("evaluate/items", 0))
