"""Data are data: nothing that is read executes, caches are private, nothing is pickled to or from disk."""

import ast
import os
import stat
from pathlib import Path

import h5py
import numpy as np
import pytest

from kernels.translate import _directory_of_this_process, cache_directory
from toys.observed import InputError, read_observed

ROOT = Path(__file__).absolute().parents[2]
SOURCES = [path for name in ("kernels", "engine", "toys", "scripts") for path in sorted((ROOT / name).rglob("*.py"))]

# what runs or rebuilds objects from text or bytes
FORBIDDEN = {"eval", "exec", "compile", "__import__", "exec_module", "import_module", "spec_from_file_location",
             "loads", "load", "load_module", "system", "popen", "run_path"}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "imp"}
# the user's own file, given with --model; kernels, in a private directory; and what reads no code in spite of its name
ALLOWED = {
    ("toys/finding.py", "exec_module"),
    ("toys/finding.py", "spec_from_file_location"),
    ("kernels/lowering.py", "compile"),
    ("kernels/lowering.py", "exec"),
    ("kernels/translate.py", "exec_module"),
    ("kernels/translate.py", "spec_from_file_location"),
}
HARMLESS = {"json.loads", "np.load", "storage.load", "parts.load", "final.load", "toys.load",
            "workers.compile", "function.compile", "platform.system", "plt.load", "builder.load",
            "self.builder.load"}  # fmt: skip


def calls(path):
    """(name as written, last name, line) of every call in a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            yield written, written.rpartition(".")[2], node.lineno


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_executes_what_it_reads(path):
    name = f"{path.parent.name}/{path.name}"
    assert not FORBIDDEN_MODULES & set(imported(path))
    for written, last, line in calls(path):
        if last not in FORBIDDEN or (name, last) in ALLOWED or written in HARMLESS:
            continue
        if name == "scripts/fuzz.py" and last == "import_module":  # one of our own scripts
            continue
        # a function of ours that is called load, and re.compile
        assert written in ("load", "re.compile"), f"{name}, line {line}: {written}"


def test_arrays_are_never_unpickled():
    """NumPy is never allowed to, whatever its default is."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
                ("np.load", "np.lib.format.read_array")
            ):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if "read_array_header" not in ast.unparse(node.func):
                    found.append(options.get("allow_pickle"))
    assert "False" in found and set(found) <= {"False", None}  # its default


class Danger:
    """Makes a directory when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_objects_in_files_do_not_run(tmp_path):
    place = tmp_path / "executed"
    for name, kind in (("a.npy", object), ("b.npy", [("x", object)])):
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.array([(Danger(place),)], dtype=kind), allow_pickle=True)
        with pytest.raises(InputError, match="Python objects"):
            read_observed(tmp_path / name)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        import pickle

        file["x"] = np.void(pickle.dumps(Danger(place)))
    with pytest.raises(InputError, match="no dataset of numbers"):
        read_observed(tmp_path / "c.h5")
    assert not place.exists()


CODE = "raise SystemExit('executed')\n"


@pytest.fixture
def study_file(tmp_path, monkeypatch, script):
    """A file of a run whose text attributes are code, or markup."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("toys.xla_cache.use_compilation_cache", lambda: None)
    (tmp_path / "counting.py").write_text(
        "import jax.numpy as jnp\nfrom engine import PoissonNLL\nfrom toys import PoissonCounts, Study\n"
        "cost = PoissonNLL(lambda mu: jnp.stack([mu]))\n"
        "study = Study(cost=cost, sampler=PoissonCounts.of(cost), truth={'mu': 9.0},\n"
        "              name='<script>alert(1)</script>')\n"
    )
    run = script("run_toys").main
    arguments = ["--n", "20", "--model", "counting.py", "--validate", "0", "--quiet", "--out", "toys.h5"]
    assert run([*arguments, "--backend", "numba", "--device", "cpu"]) == 0
    return tmp_path / "toys.h5"


def test_text_of_a_file_is_neither_run_nor_markup(study_file, script, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    import toys

    with h5py.File(study_file, "r+") as file:
        for name, value in file.attrs.items():
            if isinstance(value, bytes | np.bytes_) and name in ("source", "command_line", "created", "versions"):
                file.attrs[name] = np.bytes_(CODE + "<img src=x onerror=alert(1)>")
    try:
        assert len(toys.load(study_file)) == 20
    except toys.StorageError:
        return  # refused is as good
    code = script("plot_toys").main(["toys.h5", "--model", "counting.py", "--out", "a.png"])
    assert code in (0, 2)
    code = script("pull_study").main(["toys.h5", "--model", "counting.py", "--out", "report", "--quiet"])
    told = capsys.readouterr()
    assert code in (0, 1, 2) and "executed" not in told.err
    if code != 2:
        page = (study_file.parent / "report" / "report.html").read_text()
        assert "<script>" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    # the model of a file is a name: its text is never loaded, nor is a path that it holds
    (study_file.parent / "evil.py").write_text(f"open({str(study_file.parent / 'executed')!r}, 'w')\n")
    with h5py.File(study_file, "r+") as file:
        file.attrs["model"] = np.bytes_(b"evil.py")
    assert script("plot_toys").main(["toys.h5", "--out", "b.png"]) == 2
    assert "--model" in capsys.readouterr().err
    assert not (study_file.parent / "executed").exists()


# --- the cache ---------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    _directory_of_this_process.cache_clear()
    yield tmp_path / "cache"
    _directory_of_this_process.cache_clear()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_that_others_may_write_is_not_used(cache, mode):
    """Kernels are code: whoever may write them runs as the user."""
    cache.mkdir()
    cache.chmod(mode)
    with pytest.warns(UserWarning, match="chmod 700"):
        directory = cache_directory()
    assert directory != cache
    assert not stat.S_IMODE(directory.stat().st_mode) & 0o022 and directory.stat().st_uid == os.getuid()


def test_a_cache_of_somebody_else_is_not_used(cache, monkeypatch):
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    with pytest.warns(UserWarning, match="others may write"):
        assert cache_directory() != cache


def test_temporary_files_have_no_names_that_can_be_guessed():
    """In a directory that all may write, a known name can be taken before: only tempfile makes names there."""
    for path in SOURCES:
        text = path.read_text()
        assert "mktemp(" not in text, path
        assert '"/tmp' not in text and "gettempdir" not in text, path
