"""The summary tables of a folder of Results, rebuilt from all of its lines."""

import json
from collections.abc import Sequence

from ml_collections import ConfigDict

from clinmerge_jax.evaluation import scoring
from clinmerge_jax.evaluation.plan import others
from clinmerge_jax.evaluation.task_data import TaskData
from clinmerge_jax.metrics import Metric
from clinmerge_jax.report import evaluation as report
from clinmerge_jax.results import comparison
from clinmerge_jax.results.records import ResultsFolder


def write_summary(config: ConfigDict, asked: Sequence[TaskData], folder: ResultsFolder) -> str:
    """Writes summary.md, scores.csv, scores.tex, contrasts.csv and leakage.json.

    Lines of tasks that this run does not name, or whose items have changed, stay in the file but not in the tables.

    Args:
      config: the job's config; has compare_to, margin and draws.
      asked: the tasks of this run.
      folder: the folder of Results.

    Returns:
      The text of summary.md.
    """
    metrics = {one.name: _metrics(one) for one in asked}
    lead = {name: found[0] for name, found in metrics.items()}
    digests = {one.name: one.digest for one in asked}
    known = [
        result
        for result in folder.known.values()
        if digests.get(result.cell.task) == result.provenance["questions"]
        and lead[result.cell.task].name in result.scores
    ]
    groups = comparison.group(known)
    scores = {
        (index, system, metric.name): comparison.score(group, system, metric, config.draws)
        for index, group in enumerate(groups)
        for metric in metrics[group.task]
        for system in group.systems
        if all(metric.name in result.scores for result in group.systems[system])
    }
    parts = [report.scores_markdown(groups, metrics, scores)]
    parts += [f"**{line}**" for line in _cut(groups)]
    folder.write("scores.csv", report.scores_csv(groups, scores))
    folder.write("scores.tex", report.scores_latex(groups, lead, scores))
    found = comparison.contrasts(groups, lead, others(config), config.margin, config.draws)
    if found:
        parts.append(report.contrasts_markdown(found, comparison.averages(found, lead), config.margin))
        folder.write("contrasts.csv", report.contrasts_csv(found))
    else:
        (folder.path / "contrasts.csv").unlink(missing_ok=True)  # of an earlier run
    leaks = {one.name: one.leak for one in asked if one.leak is not None}
    if leaks:
        parts.append(report.leakage_markdown(leaks))
        folder.write("leakage.json", json.dumps({name: leak.counts() for name, leak in leaks.items()}, indent=1) + "\n")
    text = "\n\n".join(parts)
    folder.write("summary.md", text + "\n")
    return text


def _metrics(one: TaskData) -> list[Metric]:
    return scoring.metrics_of(one.task, True, one.extra)


def _cut(groups: Sequence[comparison.Group]) -> list[str]:
    """Notes on inputs that were cut to fit, because that changes what a score means."""
    return [
        f"{group.title}, {name}: the input of {cut} of {len(results[0].items)} items was cut to fit the context."
        for group in groups
        for name, results in group.systems.items()
        if (cut := max(result.about.get("cut", 0) for result in results))
    ]
