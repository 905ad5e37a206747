"""The table and the picture of clinical skill against instruction following."""

import io

from clinmerge_jax.evaluation.trade_off import CLINICAL, FOLLOWED, SIDES, TradeOff
from clinmerge_jax.report.tables import table

_COLOURS = {"base": "#7f7f7f", "clinical": "#1b6ca8", "instruct": "#c2571a", "merged": "#1a7f37"}
_MARKERS = {"base": "s", "clinical": "^", "instruct": "v", "merged": "o"}


def trade_off_text(found: TradeOff) -> str:
    """The table of all systems and sides, with the floor of each side."""
    header = ["score, 0 to 100", *(side.name for side in SIDES)]
    rows = [[name, *(score.format(0) for score in scores)] for name, scores in found.systems.items()]
    rows.append(["*best answer without a model*", *(f"{score:.0f} ({name})" for score, name in found.floors)])
    sizes = ", ".join(f"{side.items * len(side.tasks)}" for side in SIDES)
    note = (
        f"In brackets: 95 % intervals over the {sizes} test items; another training seed may differ by more. Clinical"
        " items are asked as plain text, instructions through the chat template; of base and clinical, which know no"
        " chat, the better of both ways counts."
    )
    return f"{table(header, rows)}\n{note}\n{_against_either(found)}".rstrip()


def _against_either(found: TradeOff) -> str:
    """Which merges beat answering every question with one parent or the other at random."""
    (low, high), (left, right) = _spans(found)
    if low >= high or left >= right:
        return "Clinical is not better than instruct on clinical items, and instruct on instructions; nothing to join."
    merges = [(t, pair) for t, pair in found.sweep.items()]
    if found.t is not None:
        merges.append((str(found.t), (found.of("merged", CLINICAL), found.of("merged", FOLLOWED))))
    merges.sort(key=lambda merge: float(merge[0]))
    if not merges:
        return ""
    above = [t for t, (y, x) in merges if (y.low - low) / (high - low) + (x.low - left) / (right - left) > 1]
    return (
        "A merge joins its parents' skills where it lies above the line between them, which is what answering with one"
        f" parent or the other at random gives. Of t = {', '.join(t for t, _ in merges)},"
        f" {', '.join(above) or 'none'} {'do' if len(above) > 1 else 'does'} so with both intervals (the line's own are"
        " not counted). These are test items: choose t on others (configs/evaluate.py, miniature@dev)."
    )


def _spans(found: TradeOff) -> tuple[tuple[float, float], tuple[float, float]]:
    """On the clinical side instruct's score and clinical's, on the other side clinical's and instruct's."""
    (y0, x0), (y1, x1) = (
        [found.of(name, side).estimate for side in (CLINICAL, FOLLOWED)] for name in ("instruct", "clinical")
    )
    return (y0, y1), (x1, x0)


def trade_off_png(found: TradeOff) -> bytes:
    """The picture as a PNG file: every system and every t, with 95 % intervals on both axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    path = [(float(t), *pair) for t, pair in found.sweep.items()]
    ends = [(name, t) for name, t in (("instruct", 0.0), ("merged", found.t), ("clinical", 1.0)) if t is not None]
    path += [(t, found.of(name, CLINICAL), found.of(name, FOLLOWED)) for name, t in ends]
    path.sort(key=lambda point: point[0])
    axes.plot([b.estimate for _, _, b in path], [a.estimate for _, a, _ in path], "-", color="#b0b0b0", zorder=1)
    y, x = _spans(found)
    axes.plot(x, (y[1], y[0]), "--", color="#b0b0b0", linewidth=0.8, zorder=0)
    middle = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2)
    axes.annotate("one parent or the other", middle, xytext=(4, 4), textcoords="offset points", fontsize=7,
                  color="#808080")  # fmt: skip
    for t, (clinical, followed) in found.sweep.items():
        _point(axes, followed, clinical, "#808080", ".", f"t = {t}")
    for name in found.systems:
        clinical, followed = found.of(name, CLINICAL), found.of(name, FOLLOWED)
        _point(axes, followed, clinical, _COLOURS.get(name, "black"), _MARKERS.get(name, "o"), name)
    axes.set_xlabel(f"{FOLLOWED.name}, %")
    axes.set_ylabel(CLINICAL.name)
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    axes.set_title("Clinical skill against instruction following (95 % intervals)", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _point(axes, x, y, colour: str, marker: str, name: str) -> None:
    axes.errorbar(
        x.estimate, y.estimate,
        xerr=[[x.estimate - x.low], [x.high - x.estimate]], yerr=[[y.estimate - y.low], [y.high - y.estimate]],
        fmt=marker, color=colour, capsize=2, linewidth=0.8, markersize=7, zorder=2,
    )  # fmt: skip
    axes.annotate(name, (x.estimate, y.estimate), textcoords="offset points", xytext=(6, 6), fontsize=8, color=colour)
