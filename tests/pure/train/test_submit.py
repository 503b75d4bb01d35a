"""Submission files: what they ask for, whether they parse, and whether the script does its work."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from clusters import Slurm, wait_for

from offramp import chips
from offramp.errors import UnknownNameError, UsageError
from offramp.train import reading, submit
from offramp.train.job import Job

BASH = shutil.which("bash")
SUBMITTABLE = [name for name in chips.names() if name != "cpu"]
# What each process leaves, and how it answers a signal: like `offramp train`, with status 75.
STUB = """\
import json, os, signal, sys, time
from pathlib import Path
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OFFRAMP_CHIP",
         "TORCHINDUCTOR_COMPILE_THREADS")
def leave(kind, text):
    part = Path(f"part.{os.environ['RANK']}")
    part.write_text(text)
    part.rename(f"{kind}.{os.environ['RANK']}")
def stop(*_):
    leave("stopped", "USR1")
    os._exit(75)
signal.signal(signal.SIGUSR1, stop)
leave("started", json.dumps({n: os.environ.get(n) for n in names} | {"argv": sys.argv[1:]}))
parent, end = os.getppid(), time.monotonic() + 200
while os.getppid() == parent and time.monotonic() < end:
    time.sleep(0.02)
"""


def job_of(name: str, world: int = 1, **changes: Any) -> Job:
    """A job for `world` chips."""
    keys = {"chip.name": name, "layout.dp_shard": world, "train.batch": 8 * world}
    return reading.change(Job(), keys | {k.replace("__", "."): v for k, v in changes.items()})


def script(job: Job) -> str:
    return submit.files(job, "slurm")["train.sbatch"]


def directives(text: str) -> dict[str, str]:
    """The options that sbatch would read: lines before the first command."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[name] = value
        elif line and not line.startswith("#"):
            break
    return found


def documents(job: Job) -> tuple[Any, Any]:
    """The ConfigMap and the TrainJob, as a YAML parser reads them."""
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the files back")
    config, train = yaml.safe_load_all(submit.files(job, "kubernetes")["train.yaml"])
    return config, train


def pod(train: Any) -> Any:
    """The pod of the nodes, as the TrainJob patches it."""
    (patch,) = train["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("world", "per_node", "nodes", "processes"),
    [(1, 0, 1, 1), (3, 0, 1, 3), (8, 0, 1, 8), (16, 0, 2, 8), (12, 0, 2, 6), (16, 4, 4, 4)],
)
def test_the_chips_spread_evenly_over_few_nodes(
    world: int, per_node: int, nodes: int, processes: int
) -> None:
    job = job_of("nvidia-h100", world, chip__per_node=per_node)
    text = script(job)
    asked = directives(text)
    assert (asked["nodes"], asked["gpus-per-node"]) == (str(nodes), str(processes))
    assert asked["ntasks-per-node"] == "1"
    assert f"--nnodes={nodes} --nproc-per-node={processes} " in text
    trainer = documents(job)[1]["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (nodes, processes)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": processes}


def test_the_batch_script_asks_to_be_warned_and_to_queue_again() -> None:
    asked = directives(script(job_of("zhenwu-810e", 32)))
    assert asked["signal"] == "B:USR1@120"
    assert "requeue" in asked
    assert asked["open-mode"] == "append"
    assert (asked["nodes"], asked["gres"]) == ("2", "gpu:16")
    assert "partition" not in asked, "the site's own, and left to be filled in"


@pytest.mark.parametrize("name", SUBMITTABLE)
def test_every_chip_has_a_script_that_bash_reads(name: str) -> None:
    chip = chips.load(name)
    job = job_of(name, 2, chip__per_node=chip.chips_per_node or 2)
    text = script(job)
    assert BASH is not None
    done = subprocess.run([BASH, "-n"], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    for variable, fact in chip.cluster.environment.items():
        assert f"\nexport {variable}={fact.value}\n" in text


@pytest.mark.parametrize("name", SUBMITTABLE)
def test_every_chip_with_a_name_in_kubernetes_has_its_objects(name: str) -> None:
    chip = chips.load(name)
    job = job_of(name, 2, chip__per_node=chip.chips_per_node or 2)
    if not chip.cluster.resource:
        with pytest.raises(UsageError, match=r"not known; set chip\.resource"):
            submit.files(job, "kubernetes")
        job = reading.change(job, {"chip.resource": "site.example/chip"})
    config, train = documents(job)
    limits = train["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert limits == {chip.cluster.resource or "site.example/chip": 2}
    variables = {row["name"]: row["value"] for row in train["spec"]["trainer"].get("env", [])}
    assert variables == {key: fact.value for key, fact in chip.cluster.environment.items()}
    assert config["metadata"]["name"] == train["metadata"]["name"]


def test_the_objects_are_those_of_the_trainer() -> None:
    config, train = documents(job_of("zhenwu-810e", 32))
    assert (config["apiVersion"], config["kind"]) == ("v1", "ConfigMap")
    assert (train["apiVersion"], train["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert train["spec"]["runtimeRef"] == {"name": "torch-distributed"}
    assert set(train["spec"]) == {"runtimeRef", "trainer", "runtimePatches"}
    command = train["spec"]["trainer"]["command"]
    assert command[0] == "torchrun"
    assert command[-4:] == ["--module", "offramp", "train", "/etc/offramp/job.toml"]
    assert not any(word.startswith(("--nnodes", "--nproc", "--rdzv")) for word in command)
    volumes = {row["name"]: row for row in pod(train)["volumes"]}
    assert volumes["job"]["configMap"]["name"] == config["metadata"]["name"]
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory"}
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == submit.MISSING
    (container,) = pod(train)["containers"]
    assert container["name"] == "node"
    assert {row["name"] for row in container["volumeMounts"]} == set(volumes)


@pytest.mark.parametrize(
    ("out", "seen", "mount"),
    [
        ("", "/offramp/runs/qwen3-nano-zhenwu-810e", "/offramp"),
        ("runs/one", "/offramp/runs/one", "/offramp"),
        ("/offramp/one", "/offramp/one", "/offramp"),
        ("/data/runs/one", "/data/runs/one", "/data/runs"),
    ],
)
def test_the_run_folder_is_on_the_volume(out: str, seen: str, mount: str) -> None:
    config, train = documents(job_of("zhenwu-810e", out=out))
    assert tomllib.loads(config["data"]["job.toml"])["out"] == seen
    mounts = {row["name"]: row["mountPath"] for row in pod(train)["containers"][0]["volumeMounts"]}
    assert mounts["runs"] == mount


def test_the_job_arrives_whole(tmp_path: Path) -> None:
    job = job_of("nvidia-h100", 4, out='runs/a "b" \\ c: é\n', sample__prompts=["# x", "- y: \t"])
    config, _ = documents(job)
    for text, out in (
        (submit.files(job, "slurm")["job.toml"], job.out),
        (config["data"]["job.toml"], f"/offramp/{job.out}"),
    ):
        path = tmp_path / "job.toml"
        path.write_text(text, encoding="utf-8")
        assert reading.read(Job, path) == dataclasses.replace(job, out=out)


@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("runs/Qwen3_0.6B", "qwen3-0-6b"),
        ("runs/810e", "offramp-810e"),
        ("runs/" + "long-name/" * 2 + "x" * 80, "x" * 40),
    ],
)
def test_names_are_such_as_kubernetes_takes(out: str, name: str) -> None:
    assert documents(job_of("nvidia-h100", out=out))[1]["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("job", "kind", "says"),
    [
        (job_of("here"), "slurm", r"chip\.name is 'here', .*expected the name of its chip"),
        (job_of("cpu"), "kubernetes", r"chip\.name is 'cpu': .*expected the name of its chip"),
        (job_of("nvidia-h100"), "slum", "expected 'slurm' or 'kubernetes'; did you mean 'slurm'"),
        (job_of("ascend-910c"), "slurm", r"Ascend 910C a node holds .*; set chip\.per_node"),
        (job_of("nvidia-h100", 17), "slurm", "17 chips, which do not spread evenly over 3 nodes"),
        (job_of("biren-br100"), "kubernetes", r"BR100 is not known; set chip\.resource"),
        (job_of("nvidia-h100", out="/run"), "kubernetes", "expected a folder inside another"),
        (job_of("nvidia-h100", out="/offramp"), "kubernetes", "expected a folder inside another"),
        (job_of("nvidia-h100", out="../run"), "kubernetes", "expected a path without '..'"),
    ],
)
def test_what_a_cluster_could_not_run_is_refused(job: Job, kind: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        submit.files(job, kind)
    assert "\n" not in str(caught.value)


def test_an_unknown_chip_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="zhenwu-810e"):
        submit.files(job_of("zhenwu-810"), "slurm")


def test_the_job_file_may_name_what_the_chip_file_lacks() -> None:
    job = job_of("biren-br100", 4, chip__per_node=2, chip__resource="birentech.com/gpu")
    trainer = documents(job)[1]["spec"]["trainer"]
    assert trainer["resourcesPerNode"]["limits"] == {"birentech.com/gpu": 2}
    assert trainer["numNodes"] == 2


def test_no_torch_is_needed() -> None:
    code = "import sys, offramp.train.submit; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (3, False), (76, False)])
def test_only_a_stopped_run_queues_again(tmp_path: Path, status: int, requeued: bool) -> None:
    slurm = Slurm(tmp_path, nodes=1)
    (tmp_path / "train.sbatch").write_text(script(job_of("nvidia-h100")))
    slurm.program("torchrun", f"raise SystemExit({status})")
    process = slurm.start()
    process.communicate(timeout=60)
    assert process.returncode == status
    assert slurm.requeues() == ([f"requeue {slurm.job_id}"] if requeued else [])


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)], ids=["USR1", "TERM"]
)
def test_the_script_outlives_the_saving(
    tmp_path: Path, number: signal.Signals, requeued: bool
) -> None:
    """TERM is what a cancelled job gets, from Slurm and in every process: it must not come back."""
    slurm = Slurm(tmp_path, nodes=1)
    (tmp_path / "train.sbatch").write_text(script(job_of("nvidia-h100")))
    slurm.program(
        "torchrun",
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (time.sleep(0.3), sys.exit(1)))\n"
        "open('started', 'w').close()\n"
        "last = time.monotonic() + 60\n"
        "while not os.path.exists('end') and time.monotonic() < last: time.sleep(0.02)\n"
        "sys.exit(1)\n",
    )
    process = slurm.start()
    wait_for((tmp_path / "started").exists, process)
    process.send_signal(number)
    if number == signal.SIGTERM:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        (tmp_path / "end").touch()
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert slurm.requeues() == ([f"requeue {slurm.job_id}"] if requeued else [])


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("per_node", "whole_step"),
    [(1, False), (2, False), (2, True)],
    ids=["two nodes", "one node", "one node, every process signalled"],
)
def test_torchrun_starts_the_processes_and_hands_on_the_signal(
    tmp_path: Path, per_node: int, whole_step: bool
) -> None:
    slurm = Slurm(tmp_path, nodes=2 // per_node, whole_step=whole_step)
    slurm.torchrun()
    for name, text in submit.files(
        job_of("zhenwu-810e", 2, chip__per_node=per_node), "slurm"
    ).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "stub" / "offramp").mkdir(parents=True)
    (tmp_path / "stub" / "offramp" / "__init__.py").touch()
    (tmp_path / "stub" / "offramp" / "__main__.py").write_text(STUB)
    slurm.env["PYTHONPATH"] = str(tmp_path / "stub")
    process = slurm.start()
    wait_for(lambda: all((tmp_path / f"started.{rank}").exists() for rank in (0, 1)), process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"started.{rank}").read_text())
        assert (seen["RANK"], seen["WORLD_SIZE"]) == (str(rank), "2"), output
        assert seen["LOCAL_RANK"] == str(rank % per_node)
        assert seen["MASTER_ADDR"]
        assert seen["MASTER_PORT"].isdecimal()
        assert seen["OFFRAMP_CHIP"] is None, "the chip is a real one there"
        assert seen["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
        assert seen["argv"] == ["train", "job.toml"]
        assert (tmp_path / f"stopped.{rank}").read_text() == "USR1"
    assert process.returncode not in (0, 75), "torchrun's own status"
    assert slurm.requeues() == [f"requeue {slurm.job_id}"]


@pytest.mark.parametrize(
    ("kind", "name", "chip"),
    [("slurm", "train.sbatch", "zhenwu-810e"), ("kubernetes", "train.yaml", "nvidia-h100")],
)
def test_the_page_shows_what_is_written(tmp_path: Path, kind: str, name: str, chip: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "submit.md").read_text()
    path = tmp_path / "job.toml"
    path.write_text(page.split("```toml\n")[1].split("```")[0])
    job = reading.change(reading.read(Job, path), {"chip.name": chip})
    written = submit.files(job, kind)[name]
    shown = page.split(f"# ---- {name}\n")[1].split("```")[0]
    parts = [part.strip("\n") for part in shown.split("\n...\n")]
    assert len(parts) > 3
    place = 0
    for part in filter(None, parts):
        place = written.find(part, place)
        assert place >= 0, f"{name} does not have, in this order: {part}"
