"""Every block of Python in the README runs as it stands, and prints the block of text that follows it."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


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


BLOCKS = blocks(README)


@pytest.mark.parametrize(
    ("heading", "code", "output"), BLOCKS, ids=[f"{i} {heading}" for i, (heading, *_) in enumerate(BLOCKS)]
)
def test_block_runs(heading: str, code: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    # A reader's machine has JAX's own settings, not the strict ones of these tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, f"README.md, {heading}", "exec"), {"__name__": "readme"})
    if output:
        assert capsys.readouterr().out == output


def test_three_loops_are_short() -> None:
    loops = [code for heading, code, _ in BLOCKS if heading == "Three loops"]
    assert len(loops) == 3
    assert all(len(code.splitlines()) < 15 for code in loops)
