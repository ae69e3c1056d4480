"""Tests of hypotheses: p-values and CLs from toys, with the asymptotic values beside them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from engine.arguments import one_of
from engine.asimov import NoAsimovError
from engine.asymptotic import BAND, Asymptotic
from toys.pool import TIE, ToyPool, number, pool_for
from toys.study import Study

__all__ = [
    "AsymptoticTest",
    "HypothesisTest",
    "Tail",
    "asymptotic_test",
    "hypotest",
    "no_asymptotics",
    "plus_minus",
    "quantile_errors",
    "quantiles",
    "tail",
]

CALCTYPES = ("toybased", "asymptotics")


class Tail(NamedTuple):
    """The fraction of toys that are at least as extreme as the observation.

    Attributes
    ----------
    p : float
        k / n of the n toys that were fitted; NaN without any.
    error : float
        sqrt(r (1 - r) / n) with r = (k + 1) / (n + 2), which is not 0 where no toy is, or all are.
    n, ties, failed : int
        Fitted toys; those of them within 1e-6 of the observation, which count as extreme; and failed toys.
    """

    p: float
    error: float
    n: int
    ties: int
    failed: int


def tail(q: np.ndarray, q_observed: float) -> Tail:
    """The tail of the statistics of toys, NaN where a fit failed, from an observed one on."""
    fitted = q[np.isfinite(q)]
    n = len(fitted)
    ties = int((np.abs(fitted - q_observed) <= TIE).sum())
    k = int((fitted >= q_observed - TIE).sum())
    r = (k + 1) / (n + 2)
    p, error = (k / n, np.sqrt(r * (1.0 - r) / n)) if n else (np.nan, np.nan)
    return Tail(float(p), float(error), n, ties, len(q) - n)


@dataclass(frozen=True, eq=False)
class AsymptoticTest:
    """A test by asymptotic formulae; the attributes are those of `HypothesisTest`.

    Attributes
    ----------
    distribution : engine.asymptotic.Asymptotic
        Of the test statistic.
    """

    CLsb: float
    CLb: float
    CLs: float
    expected: np.ndarray
    distribution: Asymptotic

    @property
    def pvalue(self) -> float:
        return self.CLsb

    @property
    def significance(self) -> float:
        return float(-ndtri(self.CLsb))


@dataclass(frozen=True, eq=False)
class HypothesisTest:
    """The test of one value of the parameter of interest.

    Attributes
    ----------
    poi : str
    value, poi_alt : float
        The tested value and that of the alternative.
    test_stat, calctype : str
    q_observed, poi_hat : float
        Of the observation.
    CLsb, CLb, CLs : float
        P(q >= q_observed) at the tested value and at the alternative, and CLsb / CLb. CLs is NaN for "q0".
    CLsb_error, CLb_error, CLs_error : float
        Monte Carlo errors; 0 for asymptotic formulae.
    expected : (5,) float64
        What is expected at -2, -1, 0, 1 and 2 standard deviations if the alternative is true, increasing: CLs for "q"
        and "qtilde", else the p-value.
    asymptotic : AsymptoticTest or None
        None where there are no Asimov data.
    null, alternative : Tail or None
        Toys at the tested value and at the alternative, with ties and failures.
    q_null, q_alternative : (n_toys,) float64
        Test statistics of the toys, NaN where a fit failed; empty without toys.
    sentence : str
        How the toys were thrown, ties and failures.
    """

    poi: str
    value: float
    poi_alt: float
    test_stat: str
    calctype: str
    q_observed: float
    poi_hat: float
    CLsb: float
    CLsb_error: float
    CLb: float
    CLb_error: float
    CLs: float
    CLs_error: float
    expected: np.ndarray
    asymptotic: AsymptoticTest | None
    null: Tail | None
    alternative: Tail | None
    q_null: np.ndarray
    q_alternative: np.ndarray
    sentence: str

    @property
    def pvalue(self) -> float:
        """P(q >= q_observed) at the tested value: CLsb."""
        return self.CLsb

    @property
    def pvalue_error(self) -> float:
        return self.CLsb_error

    @property
    def significance(self) -> float:
        """Z = Phi^-1(1 - p); infinite where no toy, or every one, is as extreme."""
        return float(-ndtri(self.pvalue))

    @property
    def told_significance(self) -> str:
        """Z as text; its lower limit where none of the toys is as extreme, which only bounds p."""
        if self.calctype != "toybased" or self.pvalue != 0.0 or self.null is None:
            return f"= {self.significance:.4g}"
        most = 1.0 - 0.05 ** (1.0 / self.null.n)  # of p, at 95 % CL
        return f"> {-ndtri(most):.3g} at 95 % CL, as none of {self.null.n} toys is as extreme"

    @property
    def ties(self) -> int:
        """Toys whose statistic equals the observed one to 1e-6: they count as at least as extreme."""
        return sum(part.ties for part in (self.null, self.alternative) if part)

    @property
    def failed(self) -> int:
        """Toys whose fits failed: they are in no p-value."""
        return sum(part.failed for part in (self.null, self.alternative) if part)

    @property
    def expected_error(self) -> np.ndarray:
        """Monte Carlo errors of `expected`, (5,), of the tails at the tested value and of quantiles; 0 without toys."""
        return quantile_errors(self.q_null, self.q_alternative, ratio=self.test_stat in ("q", "qtilde"))

    def __repr__(self) -> str:
        beside = self.asymptotic if self.calctype == "toybased" else None
        lines = [
            f"{self.test_stat} = {self.q_observed:.6g} for {self.poi} = {self.value:g} (best fit {self.poi_hat:.6g})"
        ]
        for name in ("pvalue",) if self.test_stat in ("t", "ttilde", "q0") else ("CLsb", "CLb", "CLs"):
            line = f"{name:6} = {getattr(self, name):.5g}"
            if self.calctype == "toybased":
                line += f" +- {getattr(self, name + '_error'):.2g}"
            lines.append(line + (f", asymptotic {getattr(beside, name):.5g}" if beside else ""))
        if self.test_stat == "q0":
            lines.append(f"Z      {self.told_significance}")
        if np.isfinite(self.expected).all():
            band = zip(BAND, self.expected, self.expected_error, strict=True)
            lines.append("expected " + ", ".join(f"{x:.4g}{plus_minus(error)} ({n:+d})" for n, x, error in band))
        return "\n".join([*lines, self.sentence])


def hypotest(
    study: Study,
    value: float,
    *,
    poi: str | None = None,
    data: Any = None,
    test_stat: str = "qtilde",
    poi_alt: float | None = None,
    calctype: str = "toybased",
    n_toys: int = 2000,
    n_toys_alt: int | None = None,
    seed: int = 1,
    auxiliary: str = "redrawn",
    nuisance: str = "profiled",
    pool: ToyPool | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> HypothesisTest:
    """Test a value of a parameter: p-value, CLs = CLsb / CLb, and what is expected of them.

    CLsb = P(q >= q_observed | value) and CLb = P(q >= q_observed | poi_alt), each from toys of its own with binomial
    errors, which are independent: (dCLs / CLs)^2 = (dCLsb / CLsb)^2 + (dCLb / CLb)^2. A toy within 1e-6 of the
    observation counts as at least as extreme.

    Parameters
    ----------
    study : Study
    value : float
        0 for "q0", the test for a discovery.
    poi : str, optional
        The parameter of interest; by default the study's.
    data : optional
        The observation, one toy; by default the study's, and without any the Asimov data of its truth.
    test_stat : {"qtilde", "q", "q0", "t", "ttilde"}
        See `engine.test_statistic`.
    poi_alt : float, optional
        The alternative; by default 0, and where 0 is tested the study's truth.
    calctype : {"toybased", "asymptotics"}
    n_toys, n_toys_alt : int
        At the tested value and at the alternative, by default as many.
    seed, auxiliary, nuisance, backend, device
        See `toys.pool.ToyPool`.
    pool : ToyPool, optional
        An earlier pool of this study, whose toys are used and with whose options; the arguments of the line above
        and the data are then its own.

    Returns
    -------
    HypothesisTest

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong form, the alternative cannot be told from the value, or the observation cannot be
        fitted; for "asymptotics" also if there are no Asimov data.

    References
    ----------
    Read, J. Phys. G 28 (2002) 2693, for CLs.
    """
    one_of("calctype", calctype, CALCTYPES)
    options = {"seed": seed, "auxiliary": auxiliary, "nuisance": nuisance, "backend": backend, "device": device}
    pool = pool_for(pool, study, poi, data, **options)
    poi, value = pool.poi, number(value)
    if poi_alt is None:
        poi_alt = 0.0 if value else float(study.truth.get(poi, 0.0))
    if test_stat in ("q", "qtilde") and not poi_alt < value:
        q0 = "" if value else ": for a test of discovery pass test_stat='q0' (--test-stat q0, without --value)"
        raise ValueError(f"{test_stat} tests a value above its alternative {poi_alt:g}, got {value:g}{q0}")
    observed = pool.observed(value, test_stat)
    q = float(observed.value[0])
    described: dict[str, Any] = {
        "poi": poi,
        "value": float(value),
        "poi_alt": float(poi_alt),
        "test_stat": test_stat,
        "q_observed": q,
    }
    described |= {"poi_hat": float(observed.poi_hat[0]), "calctype": calctype}
    without = ""
    try:
        asymptotic = asymptotic_test(pool, value, poi_alt, test_stat) if poi_alt != value else None
    except NoAsimovError as reason:
        if calctype == "asymptotics":
            raise
        asymptotic, without = None, f" {no_asymptotics(reason)}"
    if calctype == "asymptotics":
        if asymptotic is None:
            raise ValueError(f"the alternative is the tested value {value:g}: pass another poi_alt")
        return HypothesisTest(
            **described,
            CLsb=asymptotic.CLsb,
            CLsb_error=0.0,
            CLb=asymptotic.CLb,
            CLb_error=0.0,
            CLs=asymptotic.CLs,
            CLs_error=0.0,
            expected=asymptotic.expected,
            asymptotic=asymptotic,
            null=None,
            alternative=None,
            q_null=np.empty(0),
            q_alternative=np.empty(0),
            sentence="Asymptotic formulae, no toys.",
        )

    at_null = pool.statistic(value, thrown_at=value, n_toys=n_toys, test_stat=test_stat).value
    at_alternative = np.empty(0)
    if poi_alt != value:
        at_alternative = pool.statistic(
            value, thrown_at=poi_alt, n_toys=n_toys if n_toys_alt is None else n_toys_alt, test_stat=test_stat
        ).value
    null, alternative = tail(at_null, q), tail(at_alternative, q)
    cls, error = np.nan, np.nan
    if test_stat != "q0" and alternative.p > 0:
        cls = null.p / alternative.p
        error = np.hypot(null.error, cls * alternative.error) / alternative.p
    return HypothesisTest(
        **described,
        CLsb=null.p,
        CLsb_error=null.error,
        CLb=alternative.p,
        CLb_error=alternative.error,
        CLs=float(cls),
        CLs_error=float(error),
        expected=quantiles(at_null, at_alternative, ratio=test_stat in ("q", "qtilde")),
        asymptotic=asymptotic,
        null=null,
        alternative=alternative,
        q_null=at_null,
        q_alternative=at_alternative,
        sentence=_told(pool, described, null, alternative) + without,
    )


def no_asymptotics(reason: NoAsimovError) -> str:
    return f"There are no asymptotic values: {reason}."


def asymptotic_test(pool: ToyPool, value: float, poi_alt: float, test_stat: str) -> AsymptoticTest:
    """The test of the pool's observation by asymptotic formulae.

    Raises
    ------
    NoAsimovError
        If there are no Asimov data, or they do not tell the alternative from the value.
    """
    q = float(pool.observed(value, test_stat).value[0])
    q_asimov = pool.asimov_statistic(value, poi_alt=poi_alt, test_stat=test_stat)
    if not q_asimov > 0:
        raise NoAsimovError(f"the Asimov data of {poi_alt:g} cannot be told from {value:g}, or their fit fails")
    distribution = Asymptotic(test_stat, float(value), float(poi_alt), q_asimov)
    clsb, clb = float(distribution.pvalue(q)), float(distribution.pvalue(q, poi_alt))
    expected, expected_b = distribution.expected()
    if test_stat in ("q", "qtilde"):
        expected = expected / expected_b
    return AsymptoticTest(clsb, clb, np.nan if test_stat == "q0" else clsb / clb, expected, distribution)


def quantiles(null: np.ndarray, alternative: np.ndarray, *, ratio: bool) -> np.ndarray:
    """Quantiles, over the toys of the alternative, of the p-value or CLs that each of them would give, (5,)."""
    clsb, clb = _p_values(null, alternative)
    return np.quantile(clsb / clb if ratio else clsb, ndtr(BAND)) if len(clsb) else np.full(len(BAND), np.nan)


def quantile_errors(null: np.ndarray, alternative: np.ndarray, *, ratio: bool) -> np.ndarray:
    """Monte Carlo errors of `quantiles`; 0 without toys."""
    clsb, clb = _p_values(null, alternative)
    if not len(clsb):
        return np.zeros(len(BAND))
    u, n = ndtr(BAND), np.isfinite(null).sum()
    away = np.sqrt(u * (1.0 - u) / len(clsb))
    of_quantile = 0.5 * (np.quantile(clsb, np.minimum(u + away, 1.0)) - np.quantile(clsb, np.maximum(u - away, 0.0)))
    r = (n * np.quantile(clsb, u) + 1.0) / (n + 2.0)
    error = np.hypot(of_quantile, np.sqrt(r * (1.0 - r) / n))
    return error / np.quantile(clb, u) if ratio else error  # at a quantile CLb is known


def _p_values(null: np.ndarray, alternative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CLsb and CLb that each toy of the alternative would give; none without toys."""
    null, alternative = (np.sort(q[np.isfinite(q)]) for q in (null, alternative))
    if not len(null):
        return np.empty(0), np.empty(0)
    beyond = [len(q) - np.searchsorted(q, alternative - TIE) for q in (null, alternative)]
    return beyond[0] / len(null), beyond[1] / max(len(alternative), 1)


def plus_minus(error: float) -> str:
    return f" +- {error:.1g}" if error > 0 else ""


def _told(pool: ToyPool, described: dict[str, Any], null: Tail, alternative: Tail) -> str:
    poi, value, poi_alt = described["poi"], described["value"], described["poi_alt"]
    n, n_alt = (part.n + part.failed for part in (null, alternative))
    thrown = f"{n} toys at {poi} = {value:g}" + (f" and {n_alt} at {poi_alt:g}" if n_alt else "")
    ties, failed = null.ties + alternative.ties, null.failed + alternative.failed
    told = f"{pool.sentence} {thrown}; {failed} failed and are left out."
    return told + (f" {ties} are within {TIE:g} of the observation and count as extreme." if ties else "")
