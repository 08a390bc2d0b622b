"""A matplotlib Figure that shows itself in a notebook, whether or not pyplot was imported there."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """Drawn without pyplot, for which a notebook has its own ways; a cell that ends in it shows it once."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
        return buffer.getvalue()


def as_shown(figure: Figure) -> ShownFigure:
    """The same object: what is drawn on it refers back to it, and a copy would not."""
    figure.__class__ = ShownFigure
    return figure  # type: ignore[return-value]
