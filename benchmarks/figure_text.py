"""How the tables and pictures of benchmarks write a figure."""


def figure_text(value: float | None) -> str:
    """Three digits, or all before the point; nothing where there is no figure."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
