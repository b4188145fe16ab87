"""What a comparison of online and offline features found, for people."""

import rich.box
from rich.console import Console
from rich.table import Table

from data.checks.skew import Skew

SHOWN = 40
"""So many differences are printed; all of them are in the report's list."""


def print_skew(skew: Skew) -> None:
    """Values compared and differences by feature, then the first differences one by one."""
    out, figures = Console(markup=False, highlight=False), skew.figures()
    summary = Table("feature", "values", "differences", box=rich.box.SIMPLE_HEAD)
    for feature, count in skew.compared.items():
        summary.add_row(feature, f"{count:,}", f"{figures[f'differences/{feature}']:,}")
    out.print(summary)
    if skew.differences.height:
        table = Table(*skew.differences.columns, box=rich.box.SIMPLE_HEAD)
        for row in skew.differences.head(SHOWN).iter_rows():
            table.add_row(*row)
        out.print(table)
