"""One self-contained page of a study: headline table, interactive charts, every cell with its configuration, versions and devices."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from experiments.report.charts import Chart, heat_chart, published_chart, ratio_chart, rounds_chart, search_chart, stealth_chart
from experiments.report.measures import measured
from experiments.report.views import Matrix, accuracy_matrix, round_panels, worst_cases
from experiments.report.worst_case import map_matrices
from experiments.sweep.inaction import inaction_notes
from experiments.sweep.numbers import published_numbers
from experiments.sweep.published import Pair, over_seeds
from experiments.sweep.search import STEALTH_LIMIT
from experiments.sweep.study import Run, Study, result_keys
from fl_sim.atomic_files import write_whole
from fl_sim.config.resolve import default_flat, to_json

PAGE = Path(__file__).parent / "page"
FIGURES = {  # a run's columns: from the summary, by path
    "before trigger (%)": ("accuracy", "before_trigger"),
    "after trigger (%)": ("accuracy", "after_trigger"),
    "final (%)": ("accuracy", "final"),
    "drop": ("drop",),
    "stealth gap": ("stealth_gap",),
    "gain": ("gain",),
    "clean twin (%)": ("clean_twin", "final"),
    "end of attack (%)": ("accuracy", "end_of_attack"),
    "attack success (%)": ("attack_success_rate", "end_of_attack"),
    "attack success, final (%)": ("attack_success_rate", "final"),
    "worst class, final (%)": ("worst_class", "final"),
    "poison ratio (%)": ("poison_ratio", "realised_mean"),
    "skipped": ("skipped", "attacked"),
    "clipped under attack": ("clipped", "under_attack"),
    "refused": ("refused", "attacked"),
    "rounds": ("rounds",),
    "seconds": ("seconds", "total"),
}

NOTHING = {"skipped": (None, 0), "refused": (None, 0)}  # a column of these says nothing


def write_report(path: Path, study: Study, runs: Sequence[Run], pairs: Sequence[Pair] = ()) -> None:
    """Write the page of a study's complete runs, with published numbers beside them; it needs no network and no other file."""
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    matrix = accuracy_matrix(runs)
    base = result_keys({**default_flat(), **json.loads(to_json(study.base))})
    configs = [result_keys(run.config) for run in runs]
    charts = _charts(study, runs, matrix, pairs)
    text = environment.get_template("report.html").render(
        study=study,
        complete=len(runs),
        made=meta_values(runs),
        matrix=matrix,
        headline=matrix.texts(),
        inactions=inaction_notes(runs),
        charts=charts,
        pairs=pairs,
        source=published_numbers().get(study.published, {}),
        axes=list(runs[0].cell.labels),
        figures=[name for name in FIGURES if any(_figure_of(run.summary, name) not in NOTHING.get(name, (None,)) for run in runs)],
        runs=runs,
        figure_of=_figure_of,
        page_data=_script_json(
            {
                "base": base,
                "changes": [{key: value for key, value in config.items() if base.get(key) != value} for config in configs],
                "charts": [chart.to_json() for chart in charts],
            }
        ),
        style=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup((PAGE / "report.js").read_text(encoding="utf-8")),
        plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode(),
        over_seeds=over_seeds,
    )
    write_whole(path, text)


def meta_values(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What the runs were made with: each entry of their meta.json with its different values, and the first start and last end."""
    metas = [run.meta for run in runs]
    values: dict[str, list[str]] = {"device": [], "git commit": []}
    for meta in metas:
        entries = {"device": meta["device"], "git commit": meta["git_commit"] or "none", **meta["versions"]}
        for name, value in entries.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    values["from"], values["to"] = [min(meta["started"] for meta in metas)], [max(meta.get("finished", "") for meta in metas)]
    return values


def _charts(study: Study, runs: Sequence[Run], matrix: Matrix, pairs: Sequence[Pair]) -> list[Chart]:
    charts = ratio_chart(runs)
    if pairs:
        charts.append(published_chart(pairs, published_numbers()[study.published]["source"]))
    if study.stealth_limit is not None:
        maps = map_matrices(runs, study.axes, study.stealth_limit) if study.axes else {}
        return [*charts, *map(heat_chart, maps.values()), search_chart(runs, study.stealth_limit)]
    heat = [heat_chart(one) for one in (worst_cases(runs) or matrix, *measured(runs).values())]
    return [*charts, rounds_chart(round_panels(runs)), *heat, *stealth_chart(runs, STEALTH_LIMIT)]


def _figure_of(summary: Mapping[str, Any], name: str) -> float | None:
    value: Any = summary
    for key in FIGURES[name]:
        value = value.get(key) if value is not None else None
    return 100.0 * value if value is not None and name == "poison ratio (%)" else value


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))
