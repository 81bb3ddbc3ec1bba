"""Shards by one process or several: the same bits, whoever is slow, dead, late or started again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killing import child, wait
from PIL import Image
from small import backbone, pictures

from tangentune import TangentFeatures, TangentSums
from tangentune._files import claimed, read_tensors
from tangentune.errors import InputError, StoreError
from tangentune.estimators.site import SiteJob, check_site
from tangentune.pictures.files import find_files
from tangentune.pictures.ranks import Rank, leave, run_shards
from tangentune.solvers.sums import KIND

COUNT, SHARD = 60, 7


Bits = dict[str, bytes]


def bits(out: Path) -> Bits:
    """Every number of some sums; the file's header comes in any order."""
    return {name: t.numpy().tobytes() for name, t in read_tensors(out, KIND)[1].items()}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SiteJob:
    """Nine shards of pictures in class folders."""
    folder = tmp_path_factory.mktemp("site")
    for i, (picture, label) in enumerate(zip(*pictures(COUNT), strict=True)):
        (folder / f"class{label}").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(folder / f"class{label}" / f"{i}.png")
    features = TangentFeatures(backbone(), landmarks=None, width=40).fit()
    return SiteJob(features, find_files(folder), numbers=False, n_jobs=1, size=SHARD)


def tried(job: SiteJob, out: Path, rank: Rank, patience: float = 60, pause: float = 0.0) -> Callable[[], None]:
    """What one rank does; a slow one pauses before each shard."""

    def work() -> None:
        folder = job.folder(out)

        def make(number: int, file: Path) -> None:
            time.sleep(pause)
            job.make(number, file)

        files = run_shards(folder, len(job), make, rank, patience)
        if rank.leads:
            total = TangentSums.load(files[0])
            for file in files[1:]:
                total = total + TangentSums.load(file)
            total.save(out)
        leave(folder, rank, patience)

    return work


def started(job: SiteJob, out: Path, count: int, pauses: tuple[float, ...] = ()) -> list[int]:
    pauses = pauses or (0.0,) * count
    return [child(tried(job, out, Rank(i, count), pause=pauses[i])) for i in range(count)]


@pytest.fixture(scope="module")
def alone(job: SiteJob, tmp_path_factory: pytest.TempPathFactory) -> Bits:
    out = tmp_path_factory.mktemp("alone") / "site.sums"
    found = job.sums(job.folder(out), Rank())
    assert found is not None
    leave(job.folder(out), Rank())
    found.save(out)
    assert [path.name for path in out.parent.iterdir()] == ["site.sums"]
    assert (found.pictures, found.counts.tolist()) == (COUNT, [15] * 4)
    return bits(out)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_gives_the_same_bits(job: SiteJob, alone: Bits, tmp_path: Path, count: int) -> None:
    out = tmp_path / "site.sums"
    assert [wait(one) for one in started(job, out, count)] == [0] * count
    assert bits(out) == alone
    assert [path.name for path in tmp_path.iterdir()] == ["site.sums"]


def test_a_slow_rank_takes_fewer_shards(job: SiteJob, alone: Bits, tmp_path: Path) -> None:
    """At 1/7 of the other's speed it would take six times as long for half of the shards."""
    out, began = tmp_path / "site.sums", time.monotonic()
    assert [wait(one) for one in started(job, out, 2, (0.1, 0.7))] == [0, 0]
    assert time.monotonic() - began < 5.8 * 0.7  # 3 and a little, on a machine with nothing else to do
    assert bits(out) == alone


def test_a_killed_rank_costs_its_shard_only(job: SiteJob, alone: Bits, tmp_path: Path) -> None:
    """The other rank takes it over, and the rank that comes in its place finds nothing left to do."""
    out = tmp_path / "site.sums"
    slow = child(tried(job, out, Rank(1, 2), pause=30))
    folder = job.folder(out)
    until(lambda: any(folder.glob("*.by")))
    other = child(tried(job, out, Rank(0, 2)))
    until(lambda: len(list(folder.glob("0?????"))) == len(job) - 1)
    assert not out.exists()
    os.kill(slow, signal.SIGKILL)
    assert wait(slow) == -signal.SIGKILL
    until(out.exists)
    assert bits(out) == alone
    assert wait(child(tried(job, out, Rank(1, 2)))) == 0
    assert wait(other) == 0
    assert not folder.exists()


def test_killed_at_random_and_started_again(job: SiteJob, alone: Bits, tmp_path: Path) -> None:
    """Both, as torchrun does when one dies; what was done is not done again."""
    chance = random.Random(0)
    for attempt in range(5):
        out = tmp_path / f"{attempt}.sums"
        ranks = started(job, out, 2, (0.05, 0.05))
        time.sleep(chance.uniform(0.05, 0.3))
        for one in ranks:
            os.kill(one, signal.SIGKILL)
            wait(one)
        folder = job.folder(out)
        before = {path: path.stat().st_mtime_ns for path in folder.glob("0?????")}
        again = started(job, out, 2)
        assert [wait(one) for one in again] == [0, 0]
        assert bits(out) == alone
        assert len(before) < len(job)
    assert not list(tmp_path.glob(".*.parts"))


def test_what_is_there_is_not_made_again(job: SiteJob, tmp_path: Path) -> None:
    made = list[int]()
    run_shards(tmp_path, 5, lambda number, file: made.append(number) or file.touch(), Rank())
    (tmp_path / "000003").unlink()
    run_shards(tmp_path, 5, lambda number, file: made.append(number) or file.touch(), Rank(1, 2))
    assert made == [0, 1, 2, 3, 4, 3]


def test_who_holds_a_shard_is_named(tmp_path: Path) -> None:
    def hold() -> None:
        with claimed(tmp_path / "000001") as mine:
            assert mine
            (tmp_path / "000001.by").write_text("rank 3 on elsewhere")
            time.sleep(60)

    holder = child(hold)
    until((tmp_path / "000001.by").exists)
    with pytest.raises(StoreError, match="1 of 2 shards are still with rank 3 on elsewhere, and none was done for 0 s"):
        run_shards(tmp_path, 2, lambda number, file: file.touch(), Rank(0, 4), patience=0.3)
    os.kill(holder, signal.SIGKILL)
    wait(holder)
    assert len(run_shards(tmp_path, 2, lambda number, file: file.touch(), Rank(0, 4))) == 2


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    run_shards(folder, 1, lambda number, file: file.touch(), Rank(0, 3))
    leave(folder, Rank(2, 3))
    with pytest.warns(UserWarning, match="nothing was heard of rank 1; the result is whole without it"):
        leave(folder, Rank(0, 3), patience=0.2)
    assert not folder.exists()
    leave(folder, Rank(1, 3))  # too late: nothing is made anew


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.here() == Rank(0, 1, 1, 0)
    assert (Rank.here().jobs(None), Rank.here().device("cuda")) == (None, "cuda")
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    rank = Rank.here()
    assert (rank, rank.leads) == (Rank(5, 8, 4, 1), False)
    assert (rank.device("cuda"), rank.device("cpu"), rank.device("cuda:0"), rank.device(None)) == (
        "cuda:1", "cpu", "cuda:0", None,
    )  # fmt: skip
    assert (rank.jobs(3), rank.jobs(None)) == (3, max(1, (os.cpu_count() or 1) // 4))
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(InputError, match="RANK=8, WORLD_SIZE=8, .* is no rank of several processes"):
        Rank.here()


def test_other_pictures_are_another_job(job: SiteJob, tmp_path: Path) -> None:
    folder = job.folder(tmp_path / "a")
    Path(job.files.pictures[3]).touch()
    assert job.folder(tmp_path / "a") != folder
    assert job.folder(tmp_path / "b").name.startswith(".b.")


def test_few_pictures_are_refused(job: SiteJob, tmp_path: Path) -> None:
    found = job.sums(tmp_path / "parts", Rank())
    assert found is not None
    with pytest.raises(InputError, match="a.sums has 60 pictures, and minimum=61 asks for more"):
        check_site(found, 61, "a.sums")
    assert check_site(found, 60, "a.sums") == ""
    few = TangentSums.of(found.squares[:4], found.squares[:4, :2] * 0 + 1, "map", classes=("a", "b"))
    assert check_site(few, 1, "x") == "x: classes of very few pictures, whose sums tell much of each: a (4), b (4)"


def until(done: Callable[[], bool], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.01)
