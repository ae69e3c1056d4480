import jax.numpy as jnp
import numpy as np
import pytest

from engine import BinnedNLL, LeastSquares, NormalConstraint, PoissonConstraint, PoissonNLL, UnbinnedNLL, fit_batch
from engine import test_statistic as statistic_of
from toys import MultinomialCounts, PoissonCounts, Resampled, Simultaneous, Study, load_data
from toys.points import NormalPoints
from toys.pool import ToyPool
from toys.run import Options, run

COUNTS = PoissonNLL(lambda mu, b: jnp.stack([mu + b, 3.0 * b]))
COST = COUNTS + NormalConstraint("b", 10.0, 2.0)
TRUTH = {"mu": 4.0, "b": 10.0}
LIMITS = {"b": (0.1, None)}
DATA = (np.array([[15.0, 39.0]]), np.array([[11.0]]))
STUDY = Study(COST, Simultaneous(COST, (PoissonCounts.of(COUNTS), None)), TRUTH, limits=LIMITS, data=DATA)
FIXED = Study(COST, Simultaneous(COST, (PoissonCounts.of(COUNTS), "fixed")), TRUTH, limits=LIMITS, data=DATA)


def made(study=STUDY, poi="mu", **options):
    return ToyPool(study, poi, backend="numba", **options)


def profiled(mu):
    """b that minimises the likelihood of the data, by bisection of its derivative."""
    low, high = 5.0, 20.0
    for _ in range(80):
        b = 0.5 * (low + high)
        slope = 1.0 - 15.0 / (mu + b) + 3.0 - 39.0 / b + (b - 11.0) / 4.0
        low, high = (low, b) if slope > 0 else (b, high)
    return b


def thrown(pool, value, n_toys):
    return pool._thrown(pool.theta_at(value), value, 0, n_toys)


def test_nuisance_parameters():
    pool = made()
    for value in (0.0, 6.0):
        assert pool.theta_at(value) == pytest.approx({"mu": value, "b": profiled(value)}, abs=1e-7)
    assert made(nuisance="truth").theta_at(6.0) == {"mu": 6.0, "b": 10.0}
    assert "nuisance parameters profiled to the data" in pool.sentence
    assert "at the truth" in made(nuisance="truth").sentence
    counts, _ = thrown(pool, 6.0, 4000)
    b = profiled(6.0)
    assert np.abs((counts.mean(axis=0) - [6.0 + b, 3.0 * b]) / np.sqrt([6.0 + b, 3.0 * b])).max() < 4.0 / np.sqrt(4000)


def test_auxiliary_measurements():
    for study in (STUDY, FIXED):  # the pool decides, whatever the study does
        pool = made(study)
        measured = thrown(pool, 6.0, 4000)[1][:, 0]
        assert abs(measured.mean() - profiled(6.0)) < 4.0 * 2.0 / np.sqrt(4000)
        assert abs(measured.std() - 2.0) < 4.0 * 2.0 / np.sqrt(8000)
        assert pool.sentence.endswith("the measured value of 1 constraint redrawn for every toy.")
        pool = made(study, auxiliary="fixed")
        assert (thrown(pool, 6.0, 20)[1] == 11.0).all()
        assert pool.sentence.endswith("the measured value of 1 constraint the observed ones in every toy.")
        np.testing.assert_array_equal(thrown(pool, 6.0, 20)[0], thrown(made(), 6.0, 20)[0])
    of_cost = made(FIXED, data=DATA[0], auxiliary="fixed")
    assert (thrown(of_cost, 6.0, 20)[1] == 10.0).all()

    def own(key, theta):
        return jnp.array([14.0, 30.0]), None

    with pytest.raises(ValueError, match="the sampler draws no measured values for the constraint on b"):
        made(Study(COST, own, TRUTH, limits=LIMITS, data=DATA)).statistic(1.0, thrown_at=1.0, n_toys=2)


def test_toys_are_added_and_fits_shared(monkeypatch):
    import toys.pool

    free_fits, real = [], toys.pool.test_statistic

    def counted(cost, data, poi, value, **options):
        if options["free"] is None:
            free_fits.append(len(cost.rows(data)))
        return real(cost, data, poi, value, **options)

    monkeypatch.setattr(toys.pool, "test_statistic", counted)
    pool = made()
    first = pool.statistic(3.0, thrown_at=3.0, n_toys=50)
    more = pool.statistic(3.0, thrown_at=3.0, n_toys=120)
    other = pool.statistic(5.0, thrown_at=3.0, n_toys=100, test_stat="q")
    assert free_fits == [50, 70]
    np.testing.assert_array_equal(more.value[:50], first.value)
    assert len(pool.statistic(3.0, thrown_at=3.0, n_toys=20)) == 20 and len(other) == 100
    at_once = made()
    np.testing.assert_array_equal(at_once.statistic(3.0, thrown_at=3.0, n_toys=120).value, more.value)
    alone = made()
    np.testing.assert_allclose(
        alone.statistic(5.0, thrown_at=3.0, n_toys=100, test_stat="q").value, other.value, atol=1e-9
    )
    # after the unbounded statistic, the bounded one, with more toys than that had
    again = alone.statistic(3.0, thrown_at=3.0, n_toys=120)
    np.testing.assert_allclose(again.value, more.value, atol=1e-9)
    assert (again.poi_hat >= 0).all() and (other.poi_hat < 0).any()
    # in small pieces
    alone._throw.chunk = 7
    np.testing.assert_array_equal(
        alone.statistic(4.0, thrown_at=4.0, n_toys=30).value, pool.statistic(4.0, thrown_at=4.0, n_toys=30).value
    )


def test_toys_of_a_file_come_first(tmp_path, monkeypatch):
    path = tmp_path / "toys.h5"
    run(STUDY, path, Options(n_toys=30, seed=8, backend="numba", validate=0))
    pool = made(nuisance="truth", stored=path)
    monkeypatch.setattr(pool._throw, "chunk", 16)
    expected = statistic_of(COST, load_data(path), "mu", 6.0, test_stat="q", start=TRUTH, limits=LIMITS)
    found = pool.statistic(6.0, thrown_at=4.0, n_toys=50, test_stat="q")
    np.testing.assert_array_equal(found.value[:30], expected.value)
    np.testing.assert_array_equal(found.poi_hat[:30], expected.poi_hat)
    assert found.valid.all() and len(np.unique(found.poi_hat)) > 45
    other = pool.statistic(6.0, thrown_at=5.0, n_toys=30, test_stat="q")
    assert not np.isin(other.poi_hat, expected.poi_hat).any()
    assert f"the first 30 at mu = 4 are those of {path}" in pool.sentence
    with pytest.raises(ValueError, match="pass nuisance='truth' and auxiliary='redrawn'"):
        made(stored=path)
    for study, sentence in (
        (STUDY.at({"b": 8.0}), "were thrown at b = 10, not at the study's truth: pass the study at that truth"),
        (FIXED, "have 'fixed' measured values, new ones do not"),
    ):
        with pytest.raises(ValueError, match=sentence):
            made(study, nuisance="truth", stored=path)


def test_streams():
    pool = made()
    one, two = thrown(pool, 3.0, 500)[0][:, 0], thrown(pool, 3.5, 500)[0][:, 0]
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.2
    assert not np.array_equal(thrown(made(seed=2), 3.0, 500)[0][:, 0], one)
    zero, minus = (made().statistic(1.0, thrown_at=value, n_toys=9).value for value in (0.0, -0.0))
    np.testing.assert_array_equal(zero, minus)
    # a test far from where the toys were thrown
    q = pool.statistic(3.0, thrown_at=3.5, n_toys=4, test_stat="t")
    assert q.valid.all() and q.fixed is None and (q.tested == 3.0).all()


def test_observation():
    pool = made()
    for test_stat in ("t", "qtilde", "q"):
        seen = pool.observed(1.0, test_stat)
        assert len(seen) == 1 and seen.fixed.values[0, 1] == pytest.approx(profiled(1.0), abs=1e-7)
    without = made(Study(COST, STUDY.sampler, TRUTH, limits=LIMITS))
    np.testing.assert_allclose(np.concatenate(without.data, axis=1), [[14.0, 30.0, 10.0]])
    assert without.observed(4.0).value[0] == pytest.approx(0.0, abs=1e-9)
    assert "Asimov data of the truth" in without.sentence
    assert pool.asimov_statistic(4.0, poi_alt=4.0) == pytest.approx(0.0, abs=1e-9)
    assert pool.asimov_statistic(4.0) > 0.5


def test_poisson_constraints_and_no_nuisance_parameter():
    counts = PoissonNLL(lambda mu: jnp.array([1.0]) * mu + 5.0)
    study = Study(counts, PoissonCounts.of(counts), {"mu": 1.0}, data=np.array([[7.0]]))
    pool = made(study)
    assert pool.theta_at(2.0) == {"mu": 2.0} and "no nuisance parameters" in pool.sentence
    cost = COUNTS + PoissonConstraint("b", 20.0, 2.0)
    study = Study(cost, Simultaneous(cost, (PoissonCounts.of(COUNTS), None)), TRUTH, limits=LIMITS, data=DATA[0])
    measured = thrown(made(study, nuisance="truth"), 1.0, 2000)[1]
    assert abs(measured.mean() - 20.0) < 4.0 * np.sqrt(20.0 / 2000)


def test_nothing_is_fitted_where_nothing_is_free():
    counts = PoissonNLL(lambda mu, b: jnp.array([1.0]) * mu + b)  # without signal the data are impossible
    truth = {"mu": 1.0, "b": 0.0}
    study = Study(counts, PoissonCounts.of(counts), truth, fixed=["b"], limits={"mu": (0, 9)}, data=np.array([[7.0]]))
    assert made(study).theta_at(0.0) == {"mu": 0.0, "b": 0.0}
    with pytest.raises(ValueError, match=r"mu = 30 is outside of its limits \(0, 9\)"):
        made(study).theta_at(30.0)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"poi": "nu"}, "poi names 'nu', but the parameters are mu, b"),
        ({"auxiliary": "free"}, "auxiliary must be one of"),
        ({"nuisance": "free"}, "nuisance must be one of"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"data": (np.ones((2, 2)), np.ones((2, 1)))}, "data must be one toy, got 2"),
        ({"data": (np.ones((1, 2, 2)), None)}, "the data are weighted, and toys are thrown without weights"),
    ],
)
def test_mistakes(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(**options)


@pytest.mark.filterwarnings("ignore:no toy can be fitted")
def test_mistakes_in_questions():
    pool = made(Study(COST, STUDY.sampler, TRUTH, limits={"mu": (0.0, 20.0)}, data=DATA))
    with pytest.raises(ValueError, match=r"mu = 30 is outside of its limits \(0, 20\)"):
        pool.theta_at(30.0)
    with pytest.raises(ValueError, match="n_toys must be a whole number of at least 1, got 0"):
        pool.statistic(1.0, thrown_at=1.0, n_toys=0)
    with pytest.raises(TypeError, match="a value of the parameter of interest must be a number, got 'x'"):
        pool.theta_at("x")
    bad = made(data=(np.array([[np.nan, 1.0]]), DATA[1]))
    with pytest.raises(ValueError, match="the fit of the observation at mu = 1 failed"):
        bad.theta_at(1.0)
    with pytest.raises(ValueError, match="the fit of the observation at mu = 1 failed"):
        bad.observed(1.0)


def test_the_sampler_tells_x_and_the_events_of_parts():
    x = np.linspace(0.0, 1.0, 8)
    line = LeastSquares(lambda x, a, k: a + k * x)
    slope = UnbinnedNLL(lambda x, k: jnp.exp(k * x), nodes=np.linspace(0.0, 1.0, 400))
    prior = NormalConstraint("k", 0.7, 0.2)
    for cost, parts in ((line, None), (line + prior, None), (slope + prior, Resampled(slope, 300))):
        sampler = parts or NormalPoints(line.model, ("a", "k"), x, 0.1)
        sampler = Simultaneous(cost, (sampler, None)) if cost is not line else sampler
        pool = made(Study(cost, sampler, dict(zip(cost.names, [0.5, 0.7][-len(cost.names) :], strict=True))), "k")
        assert not pool.has_data
        fit = fit_batch(cost, pool.data, dict.fromkeys(cost.names, 0.3))
        assert fit.values["k"][0] == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize(
    "cost",
    [
        UnbinnedNLL(lambda x, k: jnp.exp(k * x), nodes=np.linspace(0.0, 1.0, 400)),
        BinnedNLL(lambda x, k: jnp.expm1(k * x), np.linspace(0.0, 1.0, 9)),
    ],
)
def test_the_sampler_tells_how_many_events_stand_for_data_that_are_not_there(cost):
    sampler = Resampled(cost, 300) if isinstance(cost, UnbinnedNLL) else MultinomialCounts.of(cost, 300)
    pool = made(Study(cost, sampler, {"k": 0.7}), "k")
    assert not pool.has_data
    fit = fit_batch(cost, pool.data, {"k": 0.5})
    assert fit.values[0, 0] == pytest.approx(0.7, abs=1e-6)
    weights = pool.data.weights[0] if isinstance(cost, UnbinnedNLL) else pool.data
    assert np.sum(weights) == pytest.approx(300.0)
