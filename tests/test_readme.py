"""Every block of Python in the README and in the guides of the site runs as it stands, and prints the block of text
that follows it. A block that several pages share runs once."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/index.md", *sorted(str(f.relative_to(ROOT)) for f in (ROOT / "docs/guides").glob("*.md")))


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(heading, code, output) of every fenced block of Python, in order; the output is the next block, where that is
    one of text."""
    found, heading = [], ""
    # Whole fences are matched first, so a comment inside one is no heading.
    for language, code, title in re.findall(r"^```(\w*)\n(.*?)^```|^#+ +([^\n]*)$", text, re.MULTILINE | re.DOTALL):
        heading = title or heading
        if language == "python":
            found.append((heading, code, ""))
        if language == "text":
            found[-1] = (*found[-1][:2], code)
    return found


# (code, output) -> (page, heading) of the first page that has it.
BLOCKS: dict[tuple[str, str], tuple[str, str]] = {}
for _page in PAGES:
    for _heading, *_block in blocks((ROOT / _page).read_text(encoding="utf-8")):
        BLOCKS.setdefault((_block[0], _block[1]), (_page, _heading))


@pytest.mark.parametrize(
    ("code", "output"), BLOCKS, ids=[f"{i} {page}: {heading}" for i, (page, heading) in enumerate(BLOCKS.values())]
)
def test_block_runs(code: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, heading = BLOCKS[code, output]
    # A reader's machine has JAX's own settings, not the strict ones of these tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, f"{page}, {heading}", "exec"), {"__name__": "readme"})
    if output:
        assert capsys.readouterr().out == output


def test_three_loops_are_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs/guides/loops.md").read_text(
        encoding="utf-8"
    )
    loops = {code for heading, code, _ in blocks(text) if heading in ("Three loops", "Linen", "NNX", "A plain tree")}
    assert len(loops) == 3
    assert all(len(code.splitlines()) < 15 for code in loops)
