"""Damaged, foreign and impossible files, in bulk: the same numbers come out, or one sentence."""

import os
import re

import h5py
import numpy as np
import pytest

from toys.observed import InputError, read_observed


@pytest.fixture(scope="module")
def fuzzer(fuzz, tmp_path_factory):
    return fuzz.Fuzzer(tmp_path_factory.mktemp("fuzz"), seed=1)


def test_damaged_files(fuzz, capsys):
    """In a process of its own, where a crash or a hang is an outcome, too."""
    code = fuzz.main(["--seed", "1", "--n", "36"])
    told = capsys.readouterr().out
    assert code == 0, told
    n_read, n_refused = map(int, re.search(r"36 inputs: (\d+) read, (\d+) refused, 0 BAD", told).groups())
    assert n_read > 6 and n_refused > 16


def test_an_input_depends_on_seed_and_number_alone(fuzzer):
    first = fuzzer.input(17)
    content = first.path.read_bytes()
    fuzzer.input(18)
    again = fuzzer.input(17)
    assert again == first and again.path.read_bytes() == content


def test_the_fuzzer_finds_what_is_wrong(fuzz, fuzzer, tmp_path):
    """A reader that lets anything through, raises anything, or speaks of its inside."""
    path = tmp_path / "x"

    def raising(error):
        def read(path):
            raise error

        return read

    right = {"observed": np.arange(3.0)}
    for read in (
        lambda path: {"observed": np.array([0.0, 1.0, 2.5])},
        lambda path: {"observed": np.array([0.0, 1.0, np.nan])},
        lambda path: {"observed": np.arange(3)},
        lambda path: {},
        raising(KeyError("x")),
        raising(IndexError("list index out of range")),
        raising(ValueError("operands could not be broadcast together")),
        raising(InputError("two\nlines")),
        raising(MemoryError()),
        raising(UnicodeDecodeError("utf-8", b"", 0, 1, "wrong")),
    ):
        assert fuzz.judge(read, path, right).kind == "BAD"
    assert fuzz.judge(lambda path: dict(right), path, right).kind == "ok"
    assert fuzz.judge(raising(InputError("x.csv is empty")), path, right).kind == "sentence"


def refused(path, column=None):
    with pytest.raises(InputError) as raised:
        read_observed(path, column)
    return str(raised.value)


def test_what_is_no_file(tmp_path):
    fifo, device, loop = tmp_path / "fifo.csv", tmp_path / "device.npy", tmp_path / "loop.h5"
    os.mkfifo(fifo)
    device.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    assert refused(fifo).endswith("is a pipe or device, not a data file: copy the data to a file")
    assert refused(device).endswith("is a pipe or device, not a data file: copy the data to a file")
    assert refused(loop).endswith(": no such file")


@pytest.mark.parametrize("shape", ["(1000000000000000,)", "(9223372036854775807, 9)", "(-1,)", "(3,", "'a'", "(2.5,)"])
def test_a_header_allocates_nothing(tmp_path, shape):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(3.0))
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.encode() + bytes(24))
    assert "is no NumPy array file" in refused(path)


def test_a_dataset_allocates_nothing(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (10**15,), "f8", chunks=(64,))
    assert str(path) in refused(path)


@pytest.mark.parametrize(
    "text, told",
    [
        ("x\n1,5\n2,0\n", "line 2: has 2 cells, line 1 has 1: cells are separated by commas, and decimals"),
        ("1.5\n1,5\n", "line 2: has 2 cells"),
        ("1.5u\n2.5\n", "line 1: '1.5u' is neither a number nor the name of a column"),
        ("1_5\n2\n", "line 1: '1_5' is neither a number"),
        ("x\n1_5\n", "line 2: expected a number in column 'x', got '1_5'"),
        ('x\n1\n"2\n3\n', "is no comma-separated text in UTF-8"),
        ('"a\nb",x\n1,2\n', "has the columns 'a\\nb', x: choose one with --column"),
        (",".join(f"c{k}" for k in range(1000)) + "\n", "c18, c19, and 980 more: choose one"),
        ("x\n" + "9" * 100_000 + "e\n", "got '9999999999999999999999999999999999999999...'"),
    ],
)
def test_csv_that_could_be_misread(tmp_path, text, told):
    path = tmp_path / "x.csv"
    path.write_text(text)
    sentence = refused(path)
    assert told in sentence and "\n" not in sentence and len(sentence) < 600


def test_a_column_of_a_csv_without_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,2\n3,4\n")
    assert "has no header: its columns are called 1, 2, not 'mass'; choose one of these" in refused(path, "mass")
    np.testing.assert_array_equal(read_observed(path, "2"), [2.0, 4.0])
    path.write_text("x\n1,\n2,\n")  # an empty last cell is none
    np.testing.assert_array_equal(read_observed(path, "x"), [1.0, 2.0])
