"""Tables as HTML, which a notebook shows where a cell ends with one."""

import html
from collections.abc import Collection, Sequence

CELL = "padding:0.25em 0.8em;text-align:{side};vertical-align:top;background:none;white-space:nowrap"


def as_html(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    bold: Collection[int] = (),
    caption: str = "",
) -> str:
    """A table as one well-formed element, with every text escaped.

    Styles stand in the cells, since Colab and GitHub remove others; no colour is set but the highlight, so that it is
    readable on light and on dark pages.

    Args:
      head: the titles of the columns; none of an empty sequence.
      rows: the texts of the cells.
      right: columns that are aligned to the right.
      bold: rows that stand out.
      caption: a line above the table.

    >>> "&lt;b&gt;</td></tr></tbody></table>" in as_html(("name", "text"), [("a", "<b>")])
    True
    """

    def line(cells: Sequence[str], tag: str, style: str = "") -> str:
        sides = ["right" if i in right else "left" for i in range(len(cells))]
        made = (
            f'<{tag} style="{CELL.format(side=side)}{style}">{html.escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return "".join(made)

    parts = ['<table style="border-collapse:collapse;margin:0.5em 0;width:auto">']
    if caption:
        above = "caption-side:top;text-align:left;font-weight:bold;white-space:nowrap"
        parts.append(f'<caption style="{above}">{html.escape(caption)}</caption>')
    if head:
        parts.append(f"<thead><tr>{line(head, 'th')}</tr></thead>")
    shown = []
    for place, row in enumerate(rows):
        marked = place in bold
        highlight = ' style="background:rgba(0,158,115,0.16)"' if marked else ' style="background:none"'
        shown.append(f"<tr{highlight}>{line(row, 'td', ';font-weight:bold' if marked else '')}</tr>")
    return "".join([*parts, "<tbody>", *shown, "</tbody></table>"])
