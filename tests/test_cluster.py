"""Tasks and a corpus on a real Ray cluster of several nodes, one of which is killed in the middle."""

import functools
import itertools
import os
import shutil
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import ray
import soundfile
from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from ray.cluster_utils import Cluster

import blsp
from blsp import cluster, files
from blsp.continuation import writer
from blsp.data import corpus, shards
from blsp.data.records import SPLITS, Utterance, Waveform
from blsp.errors import BlspError
from blsp.executor import run_each
from blsp.files import write_json
from blsp.params import load_params
from tests.continuation.asking import asking
from tests.contracts import packed
from tests.faults import dropped, dropped_midway, passed, truncated, unanswered
from tests.s3 import BUCKET, environment, internal_error, keys, of_object, slow_down
from tests.trained import PARAMS

RATE_HZ = 8_000


@pytest.fixture(scope="module")
def ray_cluster(s3_proxy, tmp_path_factory):
    """A node of one CPU, and two more that may die."""
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    with pytest.MonkeyPatch.context() as patch:
        # What workers find in their environment is what nodes were started with.
        for name, value in {**environment(s3_proxy), "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": soon, **small})
        # The workers have blsp, and know nothing of its tests.
        register_pickle_by_value(sys.modules[__name__])
        try:
            running.to_die = [running.add_node(num_cpus=1, **small) for _ in range(2)]
            yield running
        finally:
            unregister_pickle_by_value(sys.modules[__name__])
            running.shutdown()


@pytest.fixture
def execution(ray_cluster):
    on_ray = {"executor": "ray", "ray_address": ray_cluster.address}
    return load_params(PARAMS).execution.model_copy(update=on_ray)


def seen_by_worker(number):
    time.sleep(0.05 * (number % 3))
    return number, os.getcwd(), blsp.__file__, os.environ["RAY_USAGE_STATS_ENABLED"]


def fails(number):
    if number == 2:
        raise BlspError("row 2: found nothing")
    return number


def dies(number):
    os.kill(os.getpid(), 9)


def gpu_of_worker(number):
    time.sleep(0.2)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


class OnlyHere:
    def __reduce__(self):
        return __import__, ("nowhere",)


@pytest.fixture(scope="class")
def connection(ray_cluster):
    with cluster.connected(ray_cluster.address) as connection:
        yield connection


class TestTasks:
    def test_results_come_in_order_of_tasks_drawn_as_they_are_wanted(self, connection, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        drawn = itertools.count()
        results = cluster.run_on_cluster(connection, seen_by_worker, drawn)
        found = list(itertools.islice(results, 30))
        assert [number for number, *_ in found] == list(range(30))
        assert 30 < next(drawn) <= 30 + 1 + cluster.AHEAD * 3
        assert {folder for _, folder, *_ in found} == {str(tmp_path)}
        assert all("py_modules" in code for *_, code, _ in found), "the driver's own code, sent there"
        assert {usage for *_, usage in found} == {"0"}
        results.close()

    def test_errors_are_as_they_would_be_here(self, connection):
        results = cluster.run_on_cluster(connection, fails, range(9))
        assert (next(results), next(results)) == (0, 1)
        with pytest.raises(BlspError) as caught:
            next(results)
        assert type(caught.value) is BlspError and str(caught.value) == "row 2: found nothing"
        with pytest.raises(BlspError, match=r"cannot begin its task: .*No module named 'nowhere'; each node must have"):
            list(cluster.run_on_cluster(connection, fails, [OnlyHere()]))
        assert list(cluster.run_on_cluster(connection, fails, [])) == []

    def test_a_task_that_kills_its_workers_is_given_up(self, connection, monkeypatch):
        monkeypatch.setattr(cluster, "ATTEMPTS", 2)
        with pytest.raises(BlspError, match=r"2 workers of the cluster died at the same task, .* what is finished is"):
            list(cluster.run_on_cluster(connection, dies, [1]))

    def test_each_worker_has_one_gpu_for_life(self, ray_cluster, connection):
        """Also over a pause, in which Ray's own tasks would get another: what is loaded lies where it was."""
        node = ray_cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=80 * 2**20)
        try:
            results = cluster.run_on_cluster(connection, gpu_of_worker, range(24), gpus=1)
            found = [next(results) for _ in range(8)]
            time.sleep(2)
            found += list(results)
        finally:
            ray_cluster.remove_node(node)
        gpus = defaultdict(set)
        for worker, gpu in found:
            gpus[worker].add(gpu)
        assert sorted(gpus.values(), key=str) == [{"0"}, {"1"}]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nobody.invalid:6379"])
def test_an_unreachable_cluster_is_one_message_at_once(execution, address):
    missing = execution.model_copy(update={"ray_address": address})
    with pytest.raises(BlspError, match=f"execution.ray_address: no Ray cluster answers at {address} .*`ray start"):
        next(run_each(fails, [1], missing))


def test_the_environment_does_not_send_tasks_elsewhere(execution, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(BlspError, match="Ray would go to 127.0.0.1:1, which RAY_ADDRESS names"):
        next(run_each(fails, [1], execution))
    with pytest.raises(BlspError, match="no Ray cluster answers at 127.0.0.1:1"):
        next(run_each(fails, [1], execution.model_copy(update={"ray_address": "auto"})))


def test_without_ray_one_is_told_what_to_install(execution, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BlspError, match=r"pip install 'blsp\[cluster\]'"):
        next(run_each(fails, [1], execution))


def waveform(seed, log, delay_s):
    """Noise, late; which node makes it is noted before."""
    with log.open("a") as stream:
        stream.write(f"{seed} {ray.get_runtime_context().get_node_id() if delay_s else 'here'}\n")
    time.sleep(delay_s)
    return Waveform((0.1 * np.random.default_rng(seed).standard_normal(RATE_HZ)).astype(np.float32), RATE_HZ)


def utterances(log, delay_s):
    for seed in range(30):
        split = SPLITS[seed % 3]
        audio = Path(f"{seed}.wav") if seed < 3 else functools.partial(waveform, seed, log, delay_s)
        yield Utterance(id=f"u{seed}", audio=audio, text=f"words of {split}", split=split, source="here")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))  # other tests leave shards in theirs
    for seed in range(3):
        samples = 0.1 * np.random.default_rng(seed).standard_normal(RATE_HZ)
        soundfile.write(f"{seed}.wav", samples, RATE_HZ, subtype="FLOAT")
    return load_params(PARAMS).corpus.model_copy(update={"sampling_rate_hz": RATE_HZ, "shard_size": 3})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", [None, f"s3://{BUCKET}/staged"])
def test_a_corpus_is_packed_whole_though_a_node_dies(s3, ray_cluster, execution, settings, tmp_path, place):
    """And, where shards are staged in S3, though that throttles, fails and breaks off, in both directions."""
    log = tmp_path / "log"
    local = corpus.pack([lambda: utterances(log, 0)], settings, load_params(PARAMS).execution, "local")
    log.write_text("")
    node = ray_cluster.to_die.pop()

    def kill_at_work():
        while node.node_id not in log.read_text():
            time.sleep(0.05)
        time.sleep(0.2)
        ray_cluster.remove_node(node, allow_graceful=False)

    s3.proxy.aim = of_object
    s3.proxy.faults += 2 * [dropped_midway, slow_down, passed, truncated, dropped, passed, internal_error, unanswered]
    killer = threading.Thread(target=kill_at_work, daemon=True)
    killer.start()
    on_ray = execution.model_copy(update={"staging": place})
    report = corpus.pack([lambda: utterances(log, 0.4)], settings, on_ray, "cluster")
    killer.join(60)
    assert not killer.is_alive() and node not in ray_cluster.worker_nodes
    made = [line.split() for line in log.read_text().splitlines()]
    assert len({by for _, by in made}) > 1 and len(made) > len({seed for seed, _ in made}) == 27, "made again elsewhere"
    assert report == local and report["rows_kept"] == 30
    assert contents("cluster") == contents("local")
    ids = [cut.id for split in SPLITS for cut in shards.load_cuts(split, corpus_dir="cluster")]
    assert sorted(ids) == sorted(f"u{seed}" for seed in range(30))
    assert (s3.proxy.faults == []) == bool(place) and keys(s3) == []
    assert not list((files.scratch_folder() / "corpus").iterdir())


def test_the_llm_writes_the_same_on_a_cluster(execution, pins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))
    packed.pack(packed.good_rows())
    write_json("models/backbones/backbones.json", pins)
    params = asking(max_new_tokens=3)
    writer.run(params)
    here = contents("data/continuations")
    shutil.rmtree("scratch")
    writer.run(params.model_copy(update={"execution": execution.model_copy(update={"prompts_at_once": 3})}))
    assert contents("data/continuations") == here
