"""What the packages show of themselves."""

import pydoc
import rlcompleter

import pytest

import engine
import toys


@pytest.mark.parametrize("package", [engine, toys], ids=["engine", "toys"])
def test_a_package_shows_its_names_and_no_modules(package):
    assert dir(package) == sorted(package.__all__)
    space = {}
    exec(f"from {package.__name__} import *", space)
    assert set(space) - {"__builtins__"} == set(package.__all__)
    completer, found = rlcompleter.Completer({"package": package}), []
    while (word := completer.complete("package.", len(found))) is not None:
        found.append(word)
    assert {word.rstrip("()").removeprefix("package.") for word in found} == set(package.__all__)
    told = pydoc.plain(pydoc.render_doc(package))
    assert package.__doc__.rstrip(".") in told and all(name in told for name in package.__all__)
    assert package.status.Status is engine.Status if package is engine else package.storage.load is toys.load
