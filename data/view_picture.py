"""A picture of a feature view: how its features are distributed."""

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from data.views import FeatureView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 30
PANELS_A_ROW = 3


def picture(view: FeatureView, features: pl.DataFrame, moment: datetime) -> "Figure":
    """A histogram per feature that is one number; `features` has a row per entity, as of `moment`."""
    import matplotlib.pyplot as plt

    names = [name for name in view.features if view.is_scalar(name)]
    rows = max(1, -(-len(names) // PANELS_A_ROW))
    figure, axes = plt.subplots(rows, PANELS_A_ROW, figsize=(3.6 * PANELS_A_ROW, 2.4 * rows), squeeze=False)
    for place, panel in enumerate(axes.flat):
        if place < len(names):
            _histogram(panel, features.get_column(names[place]))
        else:
            panel.set_axis_off()
    figure.suptitle(f"{view.name} of {view.entity.name} ({features.height:,}) as of {moment:%Y-%m-%d %H:%M} UTC")
    figure.tight_layout()
    plt.close(figure)
    return figure


def _histogram(panel: "Axes", column: pl.Series) -> None:
    """Of numbers that spread over orders of magnitude, on a logarithmic scale."""
    values = column.drop_nulls().cast(pl.Float64).to_numpy()
    positive = values[values > 0]
    if len(positive) and positive.max() > 100 * np.median(positive):
        edges = np.geomspace(positive.min(), positive.max(), BINS)
        panel.hist(positive, bins=edges.tolist())
        panel.set_xscale("log")
    else:
        panel.hist(values, bins=BINS)
    panel.set_title(column.name, fontsize=9)
    panel.tick_params(labelsize=7)
