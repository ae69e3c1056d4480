"""The benchmark's peers minimise what the engine minimises, and how they end is judged right."""

import importlib
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import fit_batch
from engine.reference import IndependentCost

SCRIPTS = Path(__file__).absolute().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
cases, contest, hand, minuit_costs, peers, pool = (
    importlib.import_module(f"bench.{name}") for name in ("cases", "contest", "hand", "minuit_costs", "peers", "pool")
)

NAMES = ("peak-480", "histogram", "counting", "templates-50", "convolution", "line")
POINTS = 4


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return cases.make(request.param, seed=3, n_toys=3)


@pytest.fixture(scope="module")
def line():
    return cases.make("line", seed=4, n_toys=40)


def points(case):
    """Parameters around the truth: by up to 20 % (a mass by 2 MeV), or by up to half a sigma where they are 0."""
    factor = np.random.default_rng(5).uniform(-1.0, 1.0, (POINTS, len(case.theta)))
    share = np.where(np.array(case.cost.names) == "mass", 0.002, 0.2)
    return np.where(case.theta == 0.0, 0.5 * factor, case.theta * (1.0 + share * factor))


def differences(values):
    """What remains of values that are known up to a constant."""
    return np.asarray(values) - values[0]


@pytest.fixture(scope="module")
def expected(case):
    """Values and gradients of toy 1, by JAX's reverse differentiation of the plain likelihood."""
    cost = IndependentCost(case.cost, case.cost.rows(case.data))
    return [cost(1, theta) for theta in points(case)]


def agrees(found, expected):
    # sums of up to 1000 terms of order 10, each rounded by 1e-16
    np.testing.assert_allclose(differences(found), differences([e[0] for e in expected]), rtol=1e-9, atol=1e-9)


def test_hand_written_value_and_gradient(case, expected):
    nll, gradient, values = hand.nll_of(case), np.empty(len(case.theta)), []
    for theta, (_, slope) in zip(points(case), expected, strict=True):
        values.append(nll(case.toy(1), theta, gradient))
        np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-8 * np.abs(slope).max())
    agrees(values, expected)


def test_cost_functions_of_iminuit(case, expected):
    pytest.importorskip("numba_stats")
    if case.family not in peers.PEERS["numba-stats"].families:
        pytest.skip("numba-stats has no such density")
    cost = minuit_costs.cost_of(case, 1)
    scale = case.cost.errordef  # iminuit.cost doubles an NLL
    agrees([scale * cost(*theta) for theta in points(case)], expected)


def test_likelihoods_given_to_everwillow(case, expected):
    import jax

    with_everwillow = importlib.import_module("bench.with_everwillow")
    with jax.enable_x64(True):
        observed, nll = with_everwillow.observation(case)
        data = jax.tree.map(lambda array: array[0], observed(np.array([1])))
        # half a chi-square is given to it, whose minimum is the same
        values = [2 * case.cost.errordef * float(nll(jax.numpy.asarray(theta), data)) for theta in points(case)]
    agrees(values, expected)


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")  # pyhf's own
@pytest.mark.parametrize("name", ["counting", "templates-50"])
def test_model_of_pyhf(name):
    pyhf = pytest.importorskip("pyhf")
    with_pyhf = importlib.import_module("bench.with_pyhf")
    case = cases.make(name, seed=3, n_toys=2)
    pyhf.set_backend("numpy")
    model = pyhf.Workspace(with_pyhf.workspace(case.detail, case.toy(1))).model()
    names, nll, ignored = case.cost.names, hand.nll_of(case), np.empty(len(case.theta))
    theirs, ours = [], []
    for theta in points(case):
        named = dict(zip(names, theta, strict=True))
        at = [named[parameter] for parameter in model.config.par_names]
        theirs.append(-float(model.logpdf(at, [*case.toy(1), *model.config.auxdata])[0]))
        ours.append(nll(case.toy(1), theta, ignored))
    # pyhf interpolates the normalisation by a polynomial (code 4) or exactly; both agree to some 1e-6 of an event
    np.testing.assert_allclose(differences(theirs), differences(ours), rtol=1e-6, atol=1e-5)


def test_a_workspace_is_the_same_for_all_who_take_it():
    """everwillow gets the expectation of the engine, pyhf the workspace: both have the engine's likelihood."""
    import jax

    pyhf = pytest.importorskip("pyhf")
    with_everwillow = importlib.import_module("bench.with_everwillow")
    with_pyhf = importlib.import_module("bench.with_pyhf")
    case = cases.make("workspace", seed=3, n_toys=2)
    thetas = np.concatenate([case.theta[None], points(case)[:2]])
    held = [dict(zip(case.cost.names, theta, strict=True)) for theta in thetas]
    ours = [
        fit_batch(case.cost, case.some(2), case.start, fixed=fixed, backend="numba", retries=0).fval for fixed in held
    ]
    with jax.enable_x64(True):
        observed, nll = with_everwillow.observation(case)
        data = jax.tree.map(lambda array: array[0], observed(np.array([1])))
        theirs = [float(nll(jax.numpy.asarray(theta), data)) for theta in thetas]
    np.testing.assert_allclose(differences([fval[1] for fval in ours]), differences(theirs), rtol=1e-9, atol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        pyhf.set_backend("numpy")
        model = pyhf.Workspace(with_pyhf.workspace_of(case)).model()
    at = [[fixed[name] for name in model.config.par_names] for fixed in held]
    theirs = [-float(model.logpdf(theta, [*case.toy(0), *model.config.auxdata])[0]) for theta in at]
    np.testing.assert_allclose(differences([fval[0] for fval in ours]), differences(theirs), rtol=1e-9, atol=1e-8)


# XLA compiles the other likelihoods of everwillow for some seconds each; they are compared above
@pytest.mark.parametrize(
    ("peer", "name"),
    [("nextstat", "peak-480"), ("nextstat", "counting"), ("nextstat", "line"), ("everwillow", "line")],
)
def test_fits_of_many_toys_end_where_the_engine_does(peer, name, tmp_path):
    if peers.missing(peers.PEERS[peer]):
        pytest.skip(peers.missing(peers.PEERS[peer]))
    case = cases.make(name, seed=3, n_toys=3)
    result = fit_batch(case.cost, case.data, case.start, limits=case.limits, backend="numba")
    way = list(peers.PEERS[peer].ways(case))[-1]
    fit, _ = peers.PEERS[peer].prepare(case, way, result.errors[0], str(tmp_path))
    outcome = fit(range(3))
    assert outcome.valid.all()
    verdict = contest.judge(case, result, range(3), outcome.values)
    assert (verdict.edm < 1e-5).all()
    np.testing.assert_allclose((outcome.values - result.values) / result.errors, 0.0, atol=5e-3)


@pytest.mark.parametrize("name", ["hand", "numba-stats"])
def test_fits_of_minuit_end_where_the_engine_does(line, name):
    fit, _ = peers.PEERS[name].prepare(line, "", np.ones(2), "")
    result = fit_batch(line.cost, line.data, line.start, backend="numba")
    found = fit(range(40))
    assert found.valid.all() and found.evaluations > 1
    np.testing.assert_allclose((found.values - result.values) / result.errors, 0.0, atol=5e-3)


def test_distance_from_the_minimum_is_that_of_a_parabola(line):
    """A chi-square of a straight line: a point that is one error away along a profile has an EDM of one errordef."""
    result = fit_batch(line.cost, line.data, line.start, backend="numba")
    moved = result.values + result.covariance[:, 0] / result.errors[:, [0]]
    verdict = contest.judge(line, result, range(40), moved)
    np.testing.assert_allclose(verdict.edm, 1.0, rtol=1e-9)
    np.testing.assert_allclose(verdict.excess, 1.0, rtol=1e-9)
    np.testing.assert_allclose(verdict.distance, 1.0, rtol=1e-9)
    lost = moved.copy()
    lost[3] = np.nan
    assert np.isinf(contest.judge(line, result, range(40), lost).edm[3])


def contender(name, fit, n=40):
    made = contest.Contender(name, name, "one core", fit, 1, n, toys=range(n))
    made.seconds.append(made.timed(made.toys))
    return made


@pytest.mark.parametrize(("n_astray", "marked"), [(2, False), (3, True)])
def test_who_ends_away_from_the_minimum_is_marked_and_gives_no_ratio(line, n_astray, marked):
    result = fit_batch(line.cost, line.data, line.start, backend="numba")
    ours = contest.Outcome(np.array(result.values), result.valid, 2.0)
    values = ours.values.copy()
    values[:n_astray, 0] += result.errors[:n_astray, 0]
    doctored = ours._replace(values=values)
    own, peer = contest.rank(
        [contender("batchfit", lambda toys: ours), contender("peer", lambda toys: doctored)], line, result
    )
    assert own["away"] is False and own["batchfit_is_faster_by"] is None
    assert peer["ended_away"] == n_astray and peer["said_to_have_failed"] == 0
    assert peer["away"] is marked and (peer["batchfit_is_faster_by"] is None) is marked
    good = len(values) - n_astray
    assert peer["fits_per_second"] == pytest.approx(good / peer["median_seconds"])
    assert peer["worst_edm"] < 1e-6


def test_failures_that_are_said_are_not_counted_as_fits(line):
    result = fit_batch(line.cost, line.data, line.start, backend="numba")
    honest = contest.Outcome(np.full((40, 2), np.nan), np.zeros(40, dtype=bool), 2.0)
    (row,) = contest.rank([contender("peer", lambda toys: honest)], line, result)
    assert row["said_to_have_failed"] == 40 and row["fits_per_second"] == 0.0 and not row["away"]


def test_a_turn_is_as_long_as_it_is_asked_to_be(monkeypatch, line):
    clock = [0.0]
    monkeypatch.setattr(contest.time, "perf_counter", lambda: clock[0])

    def fit(toys):
        clock[0] += 0.5 * len(toys)

    made = contest.Contender("peer", "peer", "all cores", fit, 2, 40)
    contest.warm_up(made, 6.0)
    assert (made.first_seconds, made.warm_seconds, len(made.toys)) == (1.0, 0.5, 12)
    contest.take_turns([made], 3, lambda text: None)
    assert made.seconds == [6.0]  # longer than what is repeated
    quick = replace(made, toys=range(4), seconds=[])
    contest.take_turns([quick], 3, lambda text: None)
    assert quick.seconds == [2.0] * 3


def test_one_core_is_one_core():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system pins no threads")
    before = os.sched_getaffinity(0)
    with contest.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_all_cores_use_processes_of_their_own(line):
    with pool.team(1, 1, line, "hand", "") as team:
        together = pool.fit_together(team, [0, 1, 5])
    alone = pool.fit_share(team.task, [0, 1, 5])
    np.testing.assert_array_equal(together.values, alone.values)
    assert together.evaluations == pytest.approx(alone.evaluations)
