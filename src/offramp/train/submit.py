"""Files that submit a job to a cluster: a Slurm batch script, or objects for Kubernetes.

Slurm: sbatch(1) and srun(1) of Slurm 22.05. Kubernetes: Kubeflow Trainer 2.2, whose TrainJob is
described in kubeflow/trainer pkg/apis/trainer/v1alpha1/trainjob_types.go (v2.2.0); its torch
runtime hands torchrun the nodes, their ranks and the meeting point in PET_ variables.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from offramp import chips
from offramp.chips import Chip
from offramp.errors import UsageError, nearest
from offramp.train import reading
from offramp.train.job import Job

KINDS = ("slurm", "kubernetes")
SAVE_S = 600  # how long processes may take to save after a signal
WARNING_S = 120  # how long before its time limit a Slurm job is told
STOP_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
MOUNT = "/offramp"  # where a pod sees the volume, when the job's folder is a relative path
JOB_MOUNT = "/etc/offramp"
MISSING = "FILL_IN"  # not a valid name of an image or a claim, so that it cannot start by mistake
_NAME_LENGTH = 40  # the pods' names, which are made from it, have at most 63 letters


@dataclass(frozen=True)
class Spread:
    """How a job lies on nodes: `per_node` processes, one a chip, on each of `nodes`."""

    name: str
    chip: Chip
    nodes: int
    per_node: int


def files(job: Job, kind: str) -> dict[str, str]:
    """The files to submit `job` with, as file name -> text; see docs/submit.md.

    Raises UsageError where the job or the chip's file lacks something that the cluster must know.
    """
    if kind not in KINDS:
        expected = " or ".join(repr(name) for name in KINDS)
        raise UsageError(f"{kind!r} is no way to submit; expected {expected}{nearest(kind, KINDS)}")
    if not job.out:  # every start must find the same folder, or it would begin anew
        job = dataclasses.replace(job, out=f"runs/{_default_name(job)}")
    spread = _spread(job)
    if kind == "slurm":
        return {"job.toml": reading.write(job), "train.sbatch": _slurm(spread)}
    return {"train.yaml": _kubernetes(job, spread)}


def _spread(job: Job) -> Spread:
    """Divide the job's chips evenly over as few nodes as hold them. Raises UsageError."""
    if job.chip.name == "here":
        raise UsageError(
            "chip.name is 'here', which a cluster cannot look up; expected the name of its chip "
            "(`offramp chips` lists them)"
        )
    chip = chips.load(job.chip.name)
    if chip.presentation.device_type == "cpu":
        raise UsageError(
            f"chip.name is {job.chip.name!r}: submission files ask a cluster for accelerators; "
            "expected the name of its chip (`offramp chips` lists them)"
        )
    room = job.chip.per_node or chip.chips_per_node
    if not room:
        raise UsageError(
            f"how many {chip.title} a node holds is not known; set chip.per_node in the job"
        )
    world = job.layout.world
    nodes = -(-world // room)
    if world % nodes:
        raise UsageError(
            f"the layout is for {world} chips, which do not spread evenly over {nodes} nodes of "
            f"{room}; expected a multiple of {nodes}, or another chip.per_node"
        )
    return Spread(_name(PurePosixPath(job.out).name), chip, nodes, world // nodes)


def _default_name(job: Job) -> str:
    model = PurePosixPath(job.model.folder).name or job.model.preset
    return f"{model}-{PurePosixPath(job.chip.name).name.removesuffix('.toml')}"


def _name(text: str) -> str:
    """`text` as a name that Kubernetes takes: lower-case letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"offramp-{name}"
    return name[:_NAME_LENGTH].strip("-")


def _slurm(spread: Spread) -> str:
    chip, count = spread.chip, spread.per_node
    lines = [
        "#!/bin/bash",
        f"# {_size(spread)}.",
        "# Submit it from the folder that holds it and job.toml, which all nodes have to see:",
        "#   sbatch train.sbatch",
        f"#SBATCH --job-name={spread.name}",
        f"#SBATCH --nodes={spread.nodes}",
        "#SBATCH --ntasks-per-node=1",
        *_slurm_chips(chip, count),
        "#SBATCH --output=%x-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "# Seconds before the time limit at which the job saves and queues again; raise it where",
        "# saving takes longer.",
        f"#SBATCH --signal=B:USR1@{WARNING_S}",
        "#",
        "# FILL IN what your site asks for, and take one # away. Without --cpus-per-task Slurm may",
        "# give all processes of a node one core.",
        "##SBATCH --partition=PARTITION",
        "##SBATCH --account=ACCOUNT",
        "##SBATCH --time=24:00:00",
        "##SBATCH --cpus-per-task=CORES_OF_A_NODE",
        "",
        "# FILL IN srun's options for a container, if your site has one, such as",
        "#   options=(--container-image=IMAGE --container-mounts=/data:/data)",
        "# or enter the Python environment here:",
        "#   source /path/to/environment/bin/activate",
        "options=()",
        "",
        "# The chips are real here; this variable would put virtual ones in their place.",
        "unset OFFRAMP_CHIP",
        *(
            f"# {_one_line(fact.note)}\nexport {name}={shlex.quote(str(fact.value))}"
            for name, fact in chip.cluster.environment.items()
        ),
        "",
        _SLURM_BEFORE,
        'srun "${options[@]}" --ntasks-per-node=1 --cpu-bind=none '
        f"--wait={SAVE_S} \\\n"
        f"    torchrun --nnodes={spread.nodes} --nproc-per-node={count} --max-restarts=0 \\\n"
        '    --rdzv-backend=c10d --rdzv-endpoint="$first:$port" \\\n'
        '    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \\\n'
        f"    --signals-to-handle={STOP_SIGNALS} --shutdown-timeout={SAVE_S} \\\n"
        "    --module offramp train job.toml &",
        _SLURM_AFTER,
    ]
    return "\n".join(lines)


_SLURM_BEFORE = """\
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
# From Slurm 22.05 on, srun takes the cores of a task from its own variable only.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi

stopped=0
step=
save() {
    stopped=1
    if [ -n "$step" ]; then kill -USR1 "$step"; fi
}
# srun hands USR1 to torchrun, and torchrun to its processes: they save and end with status 75.
trap save USR1
# Slurm sends TERM to the processes itself; this script only has to outlive their saving.
trap : TERM
"""
_SLURM_AFTER = """\
step=$!

wait "$step"
status=$?
while [ "$status" -gt 128 ] && kill -0 "$step" 2>/dev/null; do  # a signal ended the wait only
    wait "$step"
    status=$?
done
# torchrun has a status of its own, so what counts is that this script was told to stop.
if [ "$status" -eq 75 ] || { [ "$stopped" -eq 1 ] && [ "$status" -ne 0 ]; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def _slurm_chips(chip: Chip, count: int) -> list[str]:
    """How to ask for the chips of a node."""
    if chip.cluster.gres == "gpu":
        return [f"#SBATCH --gpus-per-node={count}"]
    if chip.cluster.gres:
        return [f"#SBATCH --gres={chip.cluster.gres}:{count}"]
    return [
        "# FILL IN: each site names these chips in its gres.conf; 'gpu' is only the usual name.",
        f"#SBATCH --gres=gpu:{count}",
    ]


def _kubernetes(job: Job, spread: Spread) -> str:
    chip, count = spread.chip, spread.per_node
    resource, reason = _resource(job, chip)
    out, mount = _place(job.out)
    text = reading.write(dataclasses.replace(job, out=out)).rstrip("\n")
    command = [
        "torchrun",
        f"--signals-to-handle={STOP_SIGNALS}",
        f"--shutdown-timeout={SAVE_S}",
        *("--module", "offramp", "train", f"{JOB_MOUNT}/job.toml"),
    ]
    return "\n".join(
        [
            f"# {_size(spread)}.",
            "# Needs Kubeflow Trainer 2.2 or later, and its runtime torch-distributed:",
            "#   kubectl apply -f train.yaml",
            "# To go on after it has ended, delete the TrainJob and apply the file again.",
            "apiVersion: v1",
            "kind: ConfigMap",
            "metadata:",
            f"  name: {_quoted(spread.name)}",
            "data:",
            "  job.toml: |",
            *(f"    {line}" if line else "" for line in text.split("\n")),
            "---",
            "apiVersion: trainer.kubeflow.org/v1alpha1",
            "kind: TrainJob",
            "metadata:",
            f"  name: {_quoted(spread.name)}",
            "spec:",
            "  runtimeRef:",
            "    name: torch-distributed",
            "  trainer:",
            "    # FILL IN: an image with offramp and the PyTorch that the chip's maker gives out.",
            f"    image: {MISSING}",
            "    command:",
            *(f"      - {_quoted(word)}" for word in command),
            *_environment(chip),
            f"    numNodes: {spread.nodes}",
            f"    numProcPerNode: {count}",
            "    resourcesPerNode:",
            "      limits:",
            f"        # {reason}",
            f"        {_quoted(resource)}: {count}",
            _PATCHES.format(
                missing=MISSING, save_s=SAVE_S, name=_quoted(spread.name), job_mount=JOB_MOUNT
            ),
            "                              - name: runs",
            f"                                mountPath: {_quoted(mount)}",
            "",
        ]
    )


_PATCHES = """\
  runtimePatches:
    - manager: offramp
      trainingRuntimeSpec:
        template:
          spec:
            replicatedJobs:
              - name: node
                template:
                  spec:
                    template:
                      spec:
                        # Pods have 30 s to save when they are stopped. From Trainer 2.3 on, more:
                        # terminationGracePeriodSeconds: {save_s}
                        volumes:
                          - name: job
                            configMap:
                              name: {name}
                          - name: shared-memory
                            emptyDir:
                              medium: Memory
                          - name: runs
                            persistentVolumeClaim:
                              # FILL IN: a claim that every node can write (ReadWriteMany).
                              claimName: {missing}
                        containers:
                          - name: node
                            volumeMounts:
                              - name: job
                                mountPath: {job_mount}
                              - name: shared-memory
                                mountPath: /dev/shm"""


def _resource(job: Job, chip: Chip) -> tuple[str, str]:
    """The chip's name in Kubernetes, and where it comes from. Raises UsageError."""
    if job.chip.resource:
        return job.chip.resource, "chip.resource of the job"
    if not chip.cluster.resource:
        raise UsageError(
            f"by which resource name Kubernetes hands out {chip.title} is not known; set "
            "chip.resource in the job to the name that `kubectl describe node` shows"
        )
    fact = chip.cluster.facts["resource"]
    note = f"; {_one_line(fact.note)}" if fact.note else ""
    return chip.cluster.resource, f"{fact.tier}: {_one_line(fact.source)}{note}"


def _place(out: str) -> tuple[str, str]:
    """The run folder as a pod sees it, and the folder to mount the volume at."""
    path = PurePosixPath(MOUNT) / out
    if ".." in path.parts:
        raise UsageError(f"out is {out!r}; expected a path without '..' for a volume in a pod")
    mount = PurePosixPath(MOUNT) if path.is_relative_to(MOUNT) else path.parent
    if len(mount.parts) < 2 or path == mount:
        raise UsageError(
            f"out is {out!r}; expected a folder inside another, where a volume can be mounted, "
            f"such as '{MOUNT}/{path.name or 'run'}'"
        )
    return str(path), str(mount)


def _environment(chip: Chip) -> list[str]:
    """What the chip's training processes need set, as lines of the trainer."""
    lines = ["    env:"] if chip.cluster.environment else []
    for name, fact in chip.cluster.environment.items():
        lines += [
            f"      # {_one_line(fact.note)}",
            f"      - name: {_quoted(name)}",
            f"        value: {_quoted(str(fact.value))}",
        ]
    return lines


def _size(spread: Spread) -> str:
    nodes = "1 node" if spread.nodes == 1 else f"{spread.nodes} nodes"
    return f"offramp train on {nodes} with {spread.per_node} x {_one_line(spread.chip.title)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quoted(text: str) -> str:
    """`text` as a double-quoted YAML scalar."""
    letters = (
        f"\\{letter}" if letter in '"\\' else letter if letter.isprintable() else _code(letter)
        for letter in text
    )
    return f'"{"".join(letters)}"'


def _code(letter: str) -> str:
    return f"\\U{ord(letter):08X}"
