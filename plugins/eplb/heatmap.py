"""A picture of GPU loads: a row a layer, a column a GPU, colour for the load beside the mean of its layer."""

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from torch import Tensor

LEAST_TOP: Final = 1.5  # colours reach at least this far above the mean, so that even plans look even,
MOST_TOP: Final = 3.0  # and no further than this, so that what a plan leaves uneven can still be seen
NODES_MAX: Final = 64  # more borders than this hide the picture


def draw(panels: Mapping[str, Tensor], *, nodes: int) -> bytes:
    """A PNG with one panel for each (layers, gpus) tensor of loads, all in one scale of colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    ratios = {title: _relative(loads) for title, loads in panels.items()}
    top = min(MOST_TOP, max(LEAST_TOP, *(float(np.quantile(each, 0.999)) for each in ratios.values())))
    layers, gpus = next(iter(ratios.values())).shape
    figure = Figure(
        figsize=(1.6 + 5.2 * len(ratios), min(9.0, 2.4 + 0.09 * layers)), layout="constrained", dpi=120
    )
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
    image: Any = None
    for axis, (title, values) in zip(axes, ratios.items(), strict=True):
        image = axis.imshow(
            values, aspect="auto", interpolation="nearest", cmap="RdBu_r", norm=TwoSlopeNorm(1.0, 0.0, top)
        )
        worst = values.max(axis=1)
        axis.set_title(
            f"{title}\nmax/mean: {worst.mean():.3f} on average, {worst.max():.3f} at worst", fontsize=10
        )
        axis.set_xlabel("GPU")
        if 1 < nodes <= NODES_MAX:
            for node in range(1, nodes):
                axis.axvline(node * gpus / nodes - 0.5, color="black", linewidth=0.6, alpha=0.5)
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(axes), label="load of a GPU / mean of its layer", extend="max", pad=0.01)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _relative(loads: Tensor) -> Any:
    values = loads.numpy()
    mean = values.mean(axis=1, keepdims=True)
    return np.where(mean > 0, values / np.where(mean > 0, mean, 1.0), 1.0)


__all__ = ["draw"]
