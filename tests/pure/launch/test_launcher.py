"""Launchers are read: what each rank runs, how many there are, and what cannot be told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.chips.cluster import Cluster
from offramp.errors import OfframpError, UsageError
from offramp.launch.files import check_writable
from offramp.launch.launcher import Program
from offramp.launch.rehearse import plan

CHIP = "nvidia-h100"
OWN = (sys.executable, "-u")
WORDS = st.text("abcxyz019-_=./", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("command", "own", "nodes", "per_node"),
    [
        ("torchrun a.py --x 1", (*OWN, "a.py", "--x", "1"), None, None),
        ("torchrun --standalone --nproc_per_node=4 a.py", (*OWN, "a.py"), None, 4),
        ("/x/torchrun --nnodes 3 --nproc-per-node 8 a.py", (*OWN, "a.py"), 3, 8),
        ("torchrun --nnodes 1:4 --nproc-per-node gpu a.py", (*OWN, "a.py"), 4, 0),
        ("torchrun --nproc-per-node 2 -m pkg.a -m", (*OWN, "-m", "pkg.a", "-m"), None, 2),
        ("torchrun --no-python ./run.sh --nnodes 2", ("./run.sh", "--nnodes", "2"), None, None),
        ("python -m torch.distributed.run --nnodes 2 a.py", ("python", "a.py"), 2, None),
        ("python3 -um torch.distributed.run a.py", ("python3", "-u", "a.py"), None, None),
        ("python -m torch.distributed.launch --use-env a.py", ("python", "a.py"), None, None),
    ],
)
def test_torchrun_is_read(
    command: str, own: tuple[str, ...], nodes: int | None, per_node: int | None
) -> None:
    program = Program.of(command.split())
    assert (program.own, program.nodes, program.per_node) == (own, nodes, per_node)
    assert program.launcher == "torchrun"
    assert program.given == tuple(command.split())


@pytest.mark.parametrize(
    "command",
    ["python a.py torchrun", "python -m mod -m torch.distributed.run", "./go.sh", "python"],
)
def test_other_commands_stay_as_they_are(command: str) -> None:
    program = Program.of(command.split())
    assert program.own == program.given == tuple(command.split())
    assert not program.launcher
    assert program.command(Path("scratch")) == command.split()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "no command given"),
        ("deepspeed a.py", "deepspeed starts processes of its own; expected .*torchrun"),
        ("/env/bin/deepspeed a.py", "deepspeed starts"),
        ("python -m deepspeed.launcher.runner a.py", "deepspeed starts"),
        ("mpirun -np 4 python a.py", "mpirun starts"),
        ("python -m torch.distributed.launch a.py", "without --use-env is deprecated"),
        ("torchrun", "torchrun cannot read"),
        ("torchrun --bogus", "torchrun cannot read '--bogus'"),
        ("torchrun --nproc-per-node 0 a.py", "nproc-per-node 0: expected a positive number"),
        ("torchrun --nnodes x a.py", "nnodes x: expected a positive number"),
    ],
)
def test_what_cannot_be_told_is_refused_in_one_line(command: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Program.of(command.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "start", ["offramp train", "/x/bin/offramp train", "python -m offramp train"]
)
def test_offramp_train_gets_a_folder_of_its_own(start: str) -> None:
    for out in ([], ["--out", "runs/mine"], ["--out=runs/mine"]):
        program = Program.of([*start.split(), "job.toml", *out, "--steps", "3"])
        expected = [*start.split(), "job.toml", "--steps", "3", "--out", "scratch"]
        assert program.is_train
        assert program.command(Path("scratch")) == expected
    assert Program.of(["torchrun", "-m", "offramp", "train", "job.toml"]).is_train
    assert not Program.of(["python", "train.py", "offramp", "train"]).is_train


@given(st.integers(1, 64), st.integers(1, 8), st.data())
def test_ranks_know_their_place(nodes: int, local: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, nodes * local - 1))
    env = Program.of(["python", "a.py"]).env(rank, Cluster.of("kunlun-p800", nodes, local))
    place = {name: int(env[name]) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")}
    assert place["RANK"] == rank == place["GROUP_RANK"] * local + place["LOCAL_RANK"]
    assert place["LOCAL_RANK"] < local == int(env["LOCAL_WORLD_SIZE"])
    assert place["GROUP_RANK"] < nodes == int(env["GROUP_WORLD_SIZE"])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 999), st.integers(1, 16), st.lists(WORDS, max_size=4))
def test_a_scripts_own_arguments_are_not_the_launchers(
    nodes: int, local: int, words: list[str]
) -> None:
    launcher = ["torchrun", f"--nnodes={nodes}", "--nproc-per-node", str(local)]
    program = Program.of([*launcher, "a.py", *words])
    assert (program.nodes, program.per_node) == (nodes, local)
    assert program.own == (*OWN, "a.py", *words)


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, max_size=5))
def test_any_command_is_read_or_explained(words: list[str]) -> None:
    for command in (words, ["torchrun", *words], ["python", "-m", *words]):
        try:
            program = Program.of(command)
        except OfframpError:
            continue
        assert program.own


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "a.py"
    path.write_text("")
    return str(path)


@pytest.mark.parametrize(
    ("launcher", "options", "world", "local", "sets_ranks"),
    [
        ([], {}, 1, 1, False),
        ([], {"nodes": 3}, 24, 8, True),
        ([], {"per_node": 2}, 2, 2, True),
        ([], {"nodes": 2, "per_node": 4}, 8, 4, True),
        (["torchrun"], {}, 1, 1, True),
        (["torchrun"], {"nodes": 2}, 16, 8, True),
        (["torchrun", "--nproc-per-node=4"], {}, 4, 4, True),
        (["torchrun", "--nproc-per-node=gpu"], {}, 8, 8, True),
        (["torchrun", "--standalone", "--nproc-per-node=4"], {"nodes": 5}, 20, 4, True),
        (["torchrun", "--nnodes=2", "--nproc-per-node=8"], {"nodes": 2}, 16, 8, True),
        (["torchrun", "--nnodes=2"], {"per_node": 4}, 8, 4, True),
    ],
)
def test_the_world_is_the_launchers_or_the_flags(
    script: str,
    launcher: list[str],
    options: dict[str, int],
    world: int,
    local: int,
    *,
    sets_ranks: bool,
) -> None:
    start = launcher or [sys.executable]
    found = plan([*start, script], chip=CHIP, **options)
    assert (found.world, found.per_node, found.sets_ranks) == (world, local, sets_ranks)


@pytest.mark.parametrize(
    ("launcher", "options", "says"),
    [
        ("", {}, "--chip NAME or --cluster FILE"),
        ("", {"chip": CHIP, "cluster": "c.toml"}, "and not both"),
        ("", {"chip": "nvidia-h10"}, "unknown chip 'nvidia-h10'; did you mean 'nvidia-h100'"),
        ("", {"chip": f"{CHIP}:8"}, "how many is said by --nodes"),
        ("", {"chip": CHIP, "nodes": 0}, "0 is not a positive number of nodes"),
        ("", {"chip": CHIP, "nodes": -1}, "-1 is not a positive number of nodes"),
        ("", {"chip": CHIP, "per_node": 0}, "0 is not a positive number of chips"),
        ("", {"chip": CHIP, "per_node": 9}, f"a node of {CHIP} has at most 8"),
        ("torchrun --nproc-per-node 9", {"chip": CHIP}, "has at most 8"),
        ("torchrun --nnodes 4", {"chip": CHIP, "nodes": 2}, "starts 4 nodes, and --nodes says 2"),
        ("torchrun --nproc-per-node 8", {"chip": CHIP, "per_node": 4}, "8 processes a node"),
        ("", {"cluster": "none.toml"}, "none.toml: cannot be read"),
        ("", {"cluster": "c.toml", "nodes": 2}, "a cluster file has its nodes"),
        ("", {"chip": CHIP, "steps": 2}, "--steps 2: expected at least 3"),
        ("", {"chip": CHIP, "limit_s": 0.0}, "--limit 0"),
        ("", {"chip": CHIP, "limit_s": float("nan")}, "--limit nan"),
        ("", {"chip": CHIP, "kept": 1.5}, "--mask-keeps 1.5"),
        ("", {"chip": CHIP, "most_ranks": 0}, "--most-ranks 0"),
    ],
)
def test_misuse_is_refused_in_one_line(
    script: str, launcher: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        plan([*(launcher.split() or [sys.executable]), script], **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_cluster_file_has_the_world(script: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'title = "ours"\n[[nodes]]\nchip = "{CHIP}"\ncount = 2\nchips_per_node = 4\n')
    assert plan([sys.executable, script], cluster=str(path)).world == 8
    with pytest.raises(UsageError, match=r"starts 8 processes a node, and .*c.toml says 4"):
        plan(["torchrun", "--nproc-per-node", "8", script], cluster=str(path))
    path.write_text("title = [")
    with pytest.raises(UsageError, match="not TOML"):
        plan([sys.executable, script], cluster=str(path))


def test_results_that_cannot_be_written_are_refused_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.json")
    for path, says in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "a.json", "does not exist"),
    ):
        with pytest.raises(UsageError, match=says):
            check_writable(path)
