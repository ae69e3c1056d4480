"""The command line that joins shards: exit codes, and one line for whatever is wrong."""

import dataclasses
import os

import numpy as np
import pytest

from engine import LeastSquares
from tests.scripts.command_line import call, script
from toys import load, storage
from toys.options import Options
from toys.run import run
from toys.study import Study

OPTIONS = Options(n_toys=10, seed=3, backend="numba", device="cpu", validate=2, chunk=4)


def line(x, a, b):
    return a + b * x


class Noise:
    names = ("a", "b")

    def __call__(self, key, theta):
        raise AssertionError("`generate` is there")

    def generate(self, theta, *, n_toys, seed, first, backend):
        x = np.linspace(0.0, 1.0, 5)
        noise = [np.random.default_rng((seed, first + k)).normal(size=5) for k in range(n_toys)]
        return x, line(x, *theta) + np.array(noise), np.ones(5)


STUDY = Study(LeastSquares(line), Noise(), {"a": 1.0, "b": 2.0}, name="line")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("shards") / f"{i}.h5" for i in (1, 2)]
    for i, path in enumerate(paths, 1):
        run(STUDY, path, dataclasses.replace(OPTIONS, shard=(i, 2)))
    return paths


@pytest.fixture(autouse=True)
def main(monkeypatch):
    # a setting of this whole process
    monkeypatch.setattr("toys.xla_cache.use_compilation_cache", lambda: None)
    return script("merge_toys").main


def test_shards_become_one_file(main, shards, tmp_path):
    out = tmp_path / "toys.h5"
    code, said, err = call(main, out, *reversed(shards))
    assert (code, err) == (0, "")
    assert said == f"written: {out}, 10 toys of 2 files\nMIGRAD on 2 toys: 0 disagree\n"
    run(STUDY, tmp_path / "whole.h5", OPTIONS)
    np.testing.assert_array_equal(load(out).values, load(tmp_path / "whole.h5").values)
    before = out.read_bytes()
    code, said, err = call(main, out, *shards)
    assert (code, said) == (2, "")
    assert err == f"merge_toys.py: {out} exists: pass --overwrite to replace it, or name another output\n"
    assert out.read_bytes() == before
    assert call(main, out, *shards, "--overwrite")[0] == 0


def test_a_shard_on_which_migrad_disagrees(main, shards, tmp_path, monkeypatch):
    read = storage.read_validation
    monkeypatch.setattr(storage, "read_validation", lambda path: read(path) | {"agrees": np.array([False])})
    code, said, _ = call(main, tmp_path / "toys.h5", *shards)
    assert code == 1 and said.endswith("MIGRAD on 2 toys: 2 disagree\n")


def test_shards_with_failed_fits(main, shards, tmp_path, monkeypatch):
    blocks = storage.load_blocks

    def failed(path):
        for result, minos in blocks(path):
            yield dataclasses.replace(result, valid=np.zeros(len(result), bool)), minos

    monkeypatch.setattr(storage, "load_blocks", failed)
    code, said, _ = call(main, tmp_path / "toys.h5", *shards)
    assert code == 1 and said.endswith("10 of 10 fits failed\n")


def test_what_a_merge_that_was_killed_left_is_removed(main, shards, tmp_path):
    left = [tmp_path / f"toys.h5.tmp.{pid}" for pid in (99999999, os.getpid(), "text")]
    for file in left:
        file.write_bytes(b"some")
    assert call(main, tmp_path / "toys.h5", *shards)[0] == 0
    assert [file.exists() for file in left] == [False, False, True]  # its own number is used and taken away


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["toys.h5"], "the following arguments are required: SHARD; --help shows all arguments"),
        (["toys.h5", "none.h5"], "none.h5 does not exist: check the path"),
        (["toys.h5", "toys.h5"], "toys.h5 is one of the files to be merged: name another output"),
        ([".", "{0}"], ". is a directory: name a file in it"),
        (["nowhere/toys.h5", "{0}"], "nowhere, the directory of toys.h5, does not exist: create it"),
        (["toys.h5", "{1}"], "toys 0 to 3 are missing: run, or name, shard 1/2"),
    ],
)
def test_one_line_for_what_is_wrong(main, shards, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, said, err = call(main, *[argument.format(*shards) for argument in arguments])
    assert (code, said, err) == (2, "", f"merge_toys.py: {words}\n")
    assert list(tmp_path.iterdir()) == []
