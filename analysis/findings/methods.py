"""A methods paragraph that can be pasted into a paper, and what was read from the data and the machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from analysis.amounts import amounts_of
from analysis.findings import verdict
from analysis.findings.answer import where
from analysis.findings.curves import Curve
from analysis.findings.words import count
from analysis.statistics import metrics, sequential
from analysis.statistics.bisection import tests_needed


def methods_paragraph(curve: Curve, margins: Sequence[float]) -> str:
    return " ".join(_sentences(curve, margins))


def methods(curves: Sequence[Curve], margins: Sequence[float]) -> list[tuple[str | None, str]]:
    """(a curve's name, its paragraph); of several curves what they have in common comes last, once, for "All". Who has
    nothing of its own to say has no paragraph."""
    told = [_sentences(curve, margins) for curve in curves]
    if len(curves) == 1:
        return [(curves[0].name, " ".join(told[0]))]
    common = [sentence for sentence in told[0] if all(sentence in other for other in told)]
    own = [(curve.name, " ".join(sentence for sentence in sentences if sentence not in common))
           for curve, sentences in zip(curves, told, strict=True)]
    return [(name, text) for name, text in [*own, ("All", " ".join(common))] if text]


def _sentences(curve: Curve, margins: Sequence[float]) -> list[str]:
    return [*_design(curve), *_choice(curve), *_interval(curve), *_verdict(curve, margins)]


def _design(curve: Curve) -> Iterator[str]:
    depths = "" if curve.by_strategy else ", ".join(point.arm.label for point in curve.depths)
    others = [point.arm.strategy for point in curve.points if curve.by_strategy]
    compared = [f"freezing depths {depths} (0: full fine-tuning)"] if depths else []
    compared += [f"the strategies {', '.join(others)}"] if others else []
    trained = curve.points[0].trials[0].record.data.get("rows", {}).get("train")
    rows = f" ({trained:,} training rows)" if trained else ""
    yield f"We fine-tuned {where(curve)}{rows} with {' and '.join(compared)}."
    yield ("A frozen layer holds its pretrained weights and runs in evaluation mode; the depth counts frozen layers "
           "from the input, embeddings included.")


def _choice(curve: Curve) -> Iterator[str]:
    tuned = curve.protocol.group.tuned
    metric = curve.protocol.group.selection
    epochs = "The best epoch on validation was tested once."
    if not tuned:
        yield f"All used the same setting. {epochs}"
        return
    tries = sorted({len(choice.candidates) for choice in curve.protocol.choices})
    yield (f"For every {curve.noun}, {' and '.join(tuned)} {'was' if len(tuned) == 1 else 'were'} chosen "
           f"by validation {metric}, averaged over seeds, among "
           f"{' to '.join(str(n) for n in (tries[0], tries[-1])[:len(tries)])} settings. {epochs}")
    if curve.protocol.confirmed:
        yield f"The chosen settings were then trained on {_seeds(curve, 'fresh seed')}; only those are reported."
    else:
        yield "The same seeds chose the settings and are reported, which favours settings with lucky seeds."


def _interval(curve: Curve) -> Iterator[str]:
    rows = f" and {curve.n_examples:,} test rows" if curve.n_examples else ""
    if curve.population == "this_test_set":
        yield (f"Intervals are 95% t-intervals over {_seeds(curve, 'seed')} and speak about new seeds on this "
               "test set only.")
        return
    yield f"Differences d to full fine-tuning are paired, by {_seeds(curve, 'seed')}{rows}."
    yield ("Intervals are 95% and speak about new seeds and new text, given this training set; their half-width is "
           "sqrt(t²·a + z²·max(b − e, 0)), where a = var(seed means of d)/S with t on S−1 degrees of freedom, "
           "b = var(row means of d)/N, and e is the part of b that a already holds (split-t).")
    if not metrics.is_mean_over_rows(curve.metric):
        yield (f"As {curve.metric} is not a mean over rows, a row's score is its seed's {curve.metric} plus the row's "
               "influence on it (infinitesimal jackknife).")


def _verdict(curve: Curve, margins: Sequence[float]) -> Iterator[str]:
    if (reason := verdict.blocked(curve, margins[0])) is not None:
        yield f"No verdict was drawn ({reason})."
        return
    each = 100 * (1 - verdict.test_level(curve))
    most = tests_needed(len(verdict.sequence(curve) if curve.looks is None else curve.looks.candidates))
    yield (f"A depth counts as safe if the one-sided bound of {curve.amounts.its_loss} against full fine-tuning is "
           f"at most {' or '.join(curve.amounts.margin(margin) for margin in margins)}; depths were tested in the "
           f"order of a bisection, each at {each:.3g}% (Bonferroni over at most {most} tests), so that "
           "the chance of naming a depth that loses more is at most 5%. Differences are otherwise reported with Holm's "
           "adjustment.")
    if curve.looks is not None:
        yield (f"Each depth was looked at after {', '.join(map(str, curve.looks.looks))} seeds until it was shown safe "
               f"or too deep, or given up as futile (predictive power below {sequential.FUTILE:.0%}, not binding). The "
               f"error of a test was spent over its looks by the power family t^{sequential.SPENDING_POWER:g} (Kim & "
               "DeMets 1987); bounds and intervals are repeated confidence bounds (Jennison & Turnbull 1989).")


def _seeds(curve: Curve, noun: str) -> str:
    """'10 seeds', or '5 to 20 seeds' where the points differ."""
    most = max(len(point.measured.seeds) for point in curve.points)
    return count(most, noun) if most == curve.n_seeds else f"{curve.n_seeds} to {count(most, noun)}"


def scope(summary: dict[str, Any]) -> str:
    """Method, population, seeds, rows and what could have been detected, in a line below the answer."""
    population = {"new_text": "new seeds and new text, given this training set",
                  "this_test_set": "new seeds on exactly these test rows"}
    parts = [f"Population: {_each(summary['population'], population.get)}",
             f"{_spent(summary)} {'seed' if summary['n_seeds'] == 1 else 'seeds'}",
             f"{_each(summary['n_examples'], _thousands)} test rows",
             _each(summary["interval_method"])]
    if summary["detectable_margin"] is not None and not isinstance(summary["detectable_margin"], list):
        margin = amounts_of(summary["metric"]).amount(summary["detectable_margin"])
        parts.append(f"detectable margin {margin} (80% power)")
    return " · ".join(parts)


def _spent(summary: dict[str, Any]) -> str:
    """Of an adaptive sweep '5 to 20': its depths have what each needed."""
    most = max((len(entry["values"]) for entry in summary["curve"]), default=0)
    few = _each(summary["n_seeds"])
    return f"{few} to {most}" if summary["adaptive"] and few != str(most) else few


def _thousands(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _each(value: Any, shown: Any = str) -> str:
    if isinstance(value, list) and all(isinstance(v, int) for v in value):
        value = [min(value), max(value)]
        return " to ".join(dict.fromkeys(str(shown(v)) for v in value))
    return " / ".join(dict.fromkeys(str(shown(v)) for v in value)) if isinstance(value, list) else str(shown(value))


def notes(curves: Sequence[Curve]) -> list[str]:
    """What data preparation and the machines have to say; of several curves with the name of the one that is meant."""
    found = [list(dict.fromkeys(_notes(curve))) for curve in curves]
    common = [note for note in found[0] if all(note in other for other in found)]
    own = [f"{curve.name}: {note}" for curve, told in zip(curves, found, strict=True)
           for note in told if note not in common]
    return [*own, *common]


def _notes(curve: Curve) -> Iterator[str]:
    for trial in (trial for point in curve.points for trial in point.trials):
        data, environment = trial.record.data, trial.record.environment
        yield from (str(note) for note in data.get("notes") or [])
        rejected = data.get("rejected")
        if rejected := len(rejected) if isinstance(rejected, list) else rejected:
            yield f"{count(rejected, 'row')} of the data could not be used"
        versions = ", ".join(f"{name} {version}" for name, version in (environment.get("versions") or {}).items())
        yield (f"Ran on {environment.get('device')}, {count(environment.get('threads') or 1, 'thread')}"
               + (f", with {versions}" if versions else ""))
