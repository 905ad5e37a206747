"""Heat maps over layers and modules, as PNG pictures.

A picture has one or more panels that share one colour scale. A panel shows a value for each module (rows) and layer
(columns), and beside them the values of the tensors outside the layers. R rows, L layers, M tensors outside.
"""

import dataclasses
import io
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 120
_CELL_INCHES = 0.27  # cell height, and cell width for up to 40 layers
_WRITTEN_LAYERS = 10  # up to so many layers, values are written into the cells
_WRITTEN_CELL_INCHES = 0.55
_TICKS = 40  # maximum number of layer labels
_MISSING = "0.85"  # the grey level of cells without a value


@dataclasses.dataclass(frozen=True)
class Panel:
    """One heat map of a picture.

    Attributes:
      title: what it shows.
      values_RL: the value for each module and layer, NaN if there is none.
      outside_M: the values of the tensors outside the layers, likewise.
    """

    title: str
    values_RL: np.ndarray
    outside_M: np.ndarray


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A picture of one or more panels.

    Attributes:
      title: the picture's title.
      unit: the label of the colour bar.
      rows: R names of modules.
      layers: L numbers of layers.
      outside: M names of the tensors outside the layers.
      panels: the panels, with equal shapes.
      centre: the neutral value of a diverging colour map; None takes a sequential one from zero.
      percent: whether values are shares, shown in percent.
    """

    title: str
    unit: str
    rows: Sequence[str]
    layers: Sequence[int]
    outside: Sequence[str]
    panels: Sequence[Panel]
    centre: float | None = None
    percent: bool = False


def draw(heat_map: HeatMap) -> "Figure":
    """Draws a picture.

    Returns:
      A matplotlib figure with an Agg canvas. Each panel has axes for the layers and, if M > 0, axes for the tensors
      outside; the last axes are the colour bar's.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # hides the messages of its font search
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows, layers, outside = len(heat_map.rows), len(heat_map.layers), len(heat_map.outside)
    written = layers <= _WRITTEN_LAYERS
    cell = _WRITTEN_CELL_INCHES if written else _CELL_INCHES * min(1.0, _TICKS / layers)
    column = max(cell, _WRITTEN_CELL_INCHES if written else _CELL_INCHES)  # width of the tensors outside the layers
    width = max(layers * cell + column * bool(outside) + 3.2, 6.0)
    panel_height = _CELL_INCHES * max(rows, 4) + 0.85
    figure = Figure(figsize=(width, panel_height * len(heat_map.panels) + 0.45), dpi=_DOTS_PER_INCH)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heat_map.title, fontsize=11)
    axes = figure.subplots(
        len(heat_map.panels),
        2 if outside else 1,
        squeeze=False,
        width_ratios=[layers * cell, column] if outside else None,
    )
    norm, colours = _scale(heat_map)
    image = None
    for panel, row_axes in zip(heat_map.panels, axes):
        image = _show(row_axes[0], panel.values_RL, norm, colours, heat_map.percent, written)
        row_axes[0].set_title(panel.title, fontsize=9)
        row_axes[0].set_yticks(range(rows), heat_map.rows, fontsize=8)
        every = math.ceil(layers / _TICKS)
        row_axes[0].set_xticks(range(0, layers, every), heat_map.layers[::every], fontsize=7)
        row_axes[0].set_xlabel("layer", fontsize=8)
        if outside:
            _show(row_axes[1], panel.outside_M[:, None], norm, colours, heat_map.percent, written)
            row_axes[1].set_ylim(max(rows, outside) - 0.5, -0.5)  # cells as high as those of the layers
            row_axes[1].set_yticks(range(outside), heat_map.outside, fontsize=8)
            row_axes[1].yaxis.tick_right()
            row_axes[1].set_xticks([])
            row_axes[1].tick_params(length=0)
    bar = figure.colorbar(
        image,
        ax=axes.ravel().tolist(),
        format=PercentFormatter(1.0) if heat_map.percent else None,
        aspect=25,
        pad=0.02,
    )
    bar.set_label(heat_map.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def png(heat_map: HeatMap) -> bytes:
    """The picture as a PNG file; the same bytes for the same values and version of matplotlib."""
    buffer = io.BytesIO()
    draw(heat_map).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _scale(heat_map: HeatMap):
    """The norm and the colour map that all panels share."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    values = np.concatenate([np.append(panel.values_RL.ravel(), panel.outside_M) for panel in heat_map.panels])
    values = values[np.isfinite(values)]
    if heat_map.centre is None:
        highest = float(values.max(initial=0.0))
        return Normalize(0.0, highest or 1.0), colormaps["viridis"].with_extremes(bad=_MISSING)
    reach = float(np.abs(values - heat_map.centre).max(initial=0.0)) or 1.0
    norm = Normalize(heat_map.centre - reach, heat_map.centre + reach)
    return norm, colormaps["RdBu_r"].with_extremes(bad=_MISSING)


def _show(axes, values: np.ndarray, norm, colours, percent: bool, written: bool):
    """Draws the cells, and their values if `written`; NaN and infinity stay grey."""
    values = np.where(np.isfinite(values), values, np.nan)
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="none")
    axes.tick_params(length=2, pad=2)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    if written:
        decimals = max(0, 2 - math.floor(math.log10(max(abs(norm.vmin), norm.vmax))))
        for (row, column), value in np.ndenumerate(values):
            if math.isfinite(value):
                red, green, blue, _ = colours(norm(value))
                light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
                text = f"{100 * value:.1f}" if percent else f"{value:.{decimals}f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color="black" if light else "white")
    return image
