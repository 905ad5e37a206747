"""The tables of an evaluation: Markdown to read, CSV to compute with, LaTeX to print."""

from collections.abc import Mapping, Sequence

from clinmerge_jax.metrics import Metric
from clinmerge_jax.report.tables import table
from clinmerge_jax.results.comparison import Average, Contrast, Group, Score
from clinmerge_jax.results.records import csv_text
from clinmerge_jax.statistics import Interval
from clinmerge_jax.tasks.leakage import Leakage

# By index of the group, label of the system and name of the metric.
Scores = Mapping[tuple[int, str, str], Score]


def scores_markdown(groups: Sequence[Group], metrics: Mapping[str, Sequence[Metric]], scores: Scores) -> str:
    """A table for each group: systems, then trivial baselines and bounds in italics, with every metric."""
    parts = []
    for index, group in enumerate(groups):
        shown = [metric for metric in metrics[group.task] if any(_has(scores, index, group, metric))]
        header = [group.title, *(metric.name for metric in shown)]
        rows = []
        for system in group.systems:
            name = f"*{system}*" if system in group.floors else system
            cells = [scores.get((index, system, metric.name)) for metric in shown]
            rows.append([name, *("" if cell is None else _cell(cell, system in group.floors) for cell in cells)])
        first = scores[index, next(iter(group.systems)), shown[0].name]
        clusters = len(set(group.clusters))
        of = f" in {clusters} clusters" if clusters < first.items else ""
        parts.append(f"{table(header, rows)}\n\n{first.items} items{of}; 95 % intervals over {_over(group)}.")
    return "\n\n".join(parts)


def _has(scores: Scores, index: int, group: Group, metric: Metric):
    return ((index, system, metric.name) in scores for system in group.systems if system not in group.floors)


def _over(group: Group) -> str:
    seeds = max(len(group.seeds(name)[0]) for name in group.systems if name not in group.floors)
    return f"seeds and items ({seeds} seeds)" if seeds > 1 else "items alone: one seed says nothing of other seeds"


def _cell(score: Score, floor: bool) -> str:
    if score.interval is None or floor:
        return f"{score.value:.2f}"
    return score.interval.format(2)


def contrasts_markdown(found: Sequence[Contrast], means: Sequence[Average], margin: float) -> str:
    """A table of differences, shares kept and verdicts, and one of their means over tasks."""
    header = ["task", "system", "against", "difference", "p", "p, Holm", "detectable", "share kept", "keeps 95 %",
              "not worse", "McNemar's p"]  # fmt: skip
    rows = [
        [
            one.group.title, one.system, one.other, one.interval.format(2), _p(one.p_value), _p(one.holm),
            "" if one.detectable is None else f"{one.detectable:.2f}",
            "" if one.kept_interval is None else one.kept_interval.format(3),
            one.retains or "", one.not_worse or "", _p(one.mcnemar),
        ]
        for one in found
    ]  # fmt: skip
    text = ["### Differences", "", table(header, rows), ""]
    text.append(
        "Differences are paired, in points of the first metric; p is two-sided, Holm's over the tasks on which the"
        " two are compared (choices by letters, where they have them); detectable is the smallest true difference"
        " that 80 of 100 such studies find. Keeps 95 %: the verdict at .05 on a ratio over 0.95. Not worse: that on a"
        f" difference over -{margin:g}. Nothing is concluded where no item tells the two apart, or of scores that a"
        " floor has too."
    )
    if means:
        rows = [
            [one.system, one.other, str(one.shots), str(one.tasks), one.difference.format(2),
             "" if one.kept is None else one.kept.format(3)]
            for one in means
        ]  # fmt: skip
        text += ["", table(["mean over tasks", "against", "shots", "tasks", "difference", "share kept"], rows)]
    return "\n".join(text)


def _p(value: float | None) -> str:
    return "" if value is None else "<.0001" if value < 1e-4 else f"{value:.4f}"


def leakage_markdown(leaks: Mapping[str, Leakage]) -> str:
    """A table of the numbers of scored items that occur in each task's training split."""
    rows = [[name, *(str(count) for count in leak.counts().values())] for name, leak in leaks.items()]
    header = ["shared with the training split", *next(iter(leaks.values())).counts()]
    return table(header, rows)


def scores_csv(groups: Sequence[Group], scores: Scores) -> str:
    """The scores as CSV, a line for each system and metric."""
    rows = []
    for (index, system, metric), score in scores.items():
        group = groups[index]
        low, high = ("", "") if score.interval is None else _ends(score.interval)
        kind = "floor" if system in group.floors else "system"
        rows.append(
            [*_asked(group), system, kind, metric, score.value, low, high, score.over, score.seeds, score.items]
        )
    header = [*_ASKED, "system", "kind", "metric", "score", "low", "high", "over", "seeds", "items"]
    return csv_text(header, rows)


_ASKED = ("task", "mode", "shots", "title")


def _asked(group: Group) -> list[str | int]:
    return [group.task, group.mode, group.shots, group.title]


def contrasts_csv(found: Sequence[Contrast]) -> str:
    """The contrasts as CSV, a line for each."""
    header = [*_ASKED, "system", "other", "primary", "difference", "low", "high", "p_value", "holm", "detectable",
              "kept", "kept_low", "kept_high", "retains", "not_worse", "mcnemar"]  # fmt: skip
    rows = []
    for one in found:
        kept = [one.kept, *_ends(one.kept_interval)] if one.kept_interval else ["", "", ""]
        tests = ["" if value is None else value for value in (one.p_value, one.holm, one.detectable)]
        rows.append(
            [*_asked(one.group), one.system, one.other, one.primary, one.difference, *_ends(one.interval), *tests,
             *kept, one.retains or "", one.not_worse or "", "" if one.mcnemar is None else one.mcnemar]
        )  # fmt: skip
    return csv_text(header, rows)


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def scores_latex(groups: Sequence[Group], lead: Mapping[str, Metric], scores: Scores) -> str:
    """The scores as a LaTeX table (booktabs): systems by tasks, each task by its first metric."""
    systems = list(dict.fromkeys(name for group in groups for name in group.systems if name not in group.floors))
    floors = list(dict.fromkeys(name for group in groups for name in group.systems if name in group.floors))
    heads = [f"{_tex(group.title)} & {_tex(lead[group.task].name)}".split(" & ") for group in groups]
    lines = [
        "% Needs \\usepackage{booktabs}. In brackets: 95 % intervals.",
        f"\\begin{{tabular}}{{l{'r' * len(groups)}}}",
        "\\toprule",
        " & ".join(["", *(head[0] for head in heads)]) + " \\\\",
        " & ".join(["system", *(head[1] for head in heads)]) + " \\\\",
        "\\midrule",
    ]
    for names in (systems, floors):
        for name in names:
            cells = [scores.get((index, name, lead[group.task].name)) for index, group in enumerate(groups)]
            shown = ["--" if cell is None else _cell(cell, name in floors) for cell in cells]
            lines.append(" & ".join([_tex(name), *shown]) + " \\\\")
        if names is systems and floors:
            lines.append("\\midrule")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
