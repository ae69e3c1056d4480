"""The figure of a run, and one line for whatever is wrong."""

from pathlib import Path
from unittest import mock

import pytest

from tests.scripts.command_line import MY_STUDY, call, finished, plot_toys, refused

pytestmark = pytest.mark.usefixtures("empty_directory")


def test_plot(finished_run):
    pytest.importorskip("matplotlib")
    path, contents = finished_run
    for name, magic in [("toys.png", b"\x89PNG"), ("toys.pdf", b"%PDF"), ("toys.svg", b"<?xml")]:
        code, out, err = call(plot_toys.main, path, "--out", name, "--toy", "3")
        assert (code, out, err) == (0, f"written: {name}\n", "")
        assert Path(name).read_bytes().startswith(magic) and Path(name).stat().st_size > 5000
    assert path.read_bytes() == contents


def test_plot_that_cannot_be_made(tmp_path, finished_run, monkeypatch):
    pytest.importorskip("matplotlib")
    path, _ = finished_run

    def told(*arguments):
        return refused(*arguments, main=plot_toys.main)

    assert told("missing.h5") == "missing.h5 does not exist: check the path"
    assert told(tmp_path) == f"{tmp_path} is a directory: name a file in it"
    Path("text.h5").write_text("1,2\n" * 1000)
    assert "text.h5 is not an HDF5 file" in told("text.h5")
    assert told(path, "--toy", "20") == f"{path} has the toys 0 to 19, not 20"
    assert told(path, "--toy", "-1") == f"{path} has the toys 0 to 19, not -1"
    assert "argument --toy: invalid int value: 'x'; --help" in told(path, "--toy", "x")
    assert "the following arguments are required: file" in told()
    told_of_missing = "missing, the directory of toys.png, does not exist: create it"
    assert told(path, "--out", "missing/toys.png") == told_of_missing
    assert told(path, "--out", path) == f"the output {path} is the input {path}: name another output"
    assert told(path, "--out", ".") == ". is a directory: name a file in it"
    assert call(plot_toys.main, path, "--out", "figure") == (0, "written: figure\n", "")
    assert Path("figure").read_bytes().startswith(b"\x89PNG")
    assert "Format 'docx' is not supported" in told(path, "--out", "toys.docx")
    assert told(path, "--model", "nosuch").startswith("no model named 'nosuch'")
    Path("my_study.py").write_text(MY_STUDY)
    assert "truth names 'ns', but the parameters are n, tau" in told(path, "--model", "my_study.py")
    finished("--model", "my_study.py", "--n", "2", "--validate", "0", "--device", "cpu")
    assert told("toys.h5") == "toys.h5 is of the model 'lifetime': pass its file with --model"
    assert told("toys.h5", "--model", "my_study.py").startswith("unbinned toys can be drawn for one observable with a")
    monkeypatch.setattr("toys.run_chart.plot_run", mock.Mock(side_effect=KeyboardInterrupt))
    assert call(plot_toys.main, path) == (130, "", "\nstopped: toys.png was not written\n")
    assert not list(tmp_path.glob("*.png"))
