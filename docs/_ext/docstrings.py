"""Docstrings of the package as MyST: sections, paragraphs, arguments, and blocks of equations or code."""

import ast
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import typeset

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Examples?|References?):", re.MULTILINE)
CODE = re.compile(r"\b(?:gk|jax|jnp|optax|nnx|np)\.\w|^\s*(?:def|import|from|class) |>>> ", re.MULTILINE)
HEAD = re.compile(
    r"Equations: (?P<which>(?:[\w` ,]*? )?)at the head of (?:(?:this|the) file|`(?P<file>[\w/]+\.py)`)"
    r"(?P<rest>[.,;:]?)"
)


class Docstring(NamedTuple):
    """The parts of a docstring.

    Attributes:
      summary: its first sentence or paragraph.
      body: what follows, before the first section.
      sections: name -> text, dedented.
    """

    summary: str
    body: str
    sections: dict[str, str]


def parse(text: str) -> Docstring:
    r"""Splits a docstring of Google's style.

    >>> parse("One.\n\nTwo.\n\nArgs:\n  x: three.").sections
    {'Args': 'x: three.'}
    """
    pieces = SECTION.split(text)
    summary, _, body = pieces[0].strip().partition("\n\n")
    sections = {}
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        name = {"Examples": "Example", "References": "Reference"}.get(name, name)
        first, _, others = content.partition("\n")
        sections[name] = "\n".join(part for part in (first.strip(), inspect.cleandoc("\n" + others)) if part).strip()
    return Docstring(" ".join(summary.split()), body.strip("\n"), sections)


def entries(text: str) -> list[tuple[str, str]]:
    r"""The entries of a section of arguments: name, meaning.

    >>> entries("x: one\n  and more.\ny, z: two.")
    [('x', 'one and more.'), ('y, z', 'two.')]
    """
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = re.match(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*(?: and \w+)?):(?: |$)(.*)", line)
        if match:
            found.append((match[1], match[2]))
        elif found:
            name, meaning = found[-1]
            found[-1] = name, f"{meaning}\n{line}"
        elif line.strip():
            found.append(("", line))
    return [(name, " ".join(meaning.split())) for name, meaning in found]


def escaped(text: str) -> str:
    """Text in which nothing is markup of MyST."""
    text = re.sub(r"([\\`*_<>\[\]|$#~^{}])", r"\\\1", text)
    return re.sub(r"^(\s*)([-+:=]|\d+[.)])(?=\s|$|\w|=)", lambda m: m[1] + _guarded(m[2]), text)


def _guarded(mark: str) -> str:
    return mark[:-1] + "\\" + mark[-1]


def prose(text: str) -> str:
    """A paragraph as MyST."""
    parts = re.split(r"(`[^`\n]+`)", " ".join(text.split()))
    out = []
    for part in parts:
        if part.startswith("`") and part.endswith("`") and len(part) > 2:
            out.append(part)
        else:
            part = escaped(part) if part.strip() else part
            part = re.sub(r"arXiv:? (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", part)
            out.append(part)
    return "".join(out)


def groups(text: str) -> list[tuple[str, list[str]]]:
    """Paragraphs ("text"), equations and code blocks, in order."""
    found: list[tuple[str, list[str]]] = []
    for paragraph in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        for line in lines:
            kind = "block" if line.startswith("  ") else "text"
            if found and found[-1][0] == kind and line is not lines[0]:
                found[-1][1].append(line)
            else:
                found.append((kind, [line]))
    merged: list[tuple[str, list[str]]] = []
    for kind, lines in found:
        if kind == "text" and _is_mathematical(lines):
            kind = "block"
        if kind == "block" and merged and merged[-1][0] == "block" and _code(merged[-1][1]) == _code(lines):
            merged[-1][1].extend(["", *lines])
        else:
            merged.append((kind, list(lines)))
    return [(("code" if _code(lines) else "equations") if kind == "block" else kind, lines) for kind, lines in merged]


def _code(lines: list[str]) -> bool:
    """Whether lines are a program: they use a library, and Python can read them."""
    text = inspect.cleandoc("\n" + "\n".join(lines))
    if CODE.search(text) is None:
        return False
    try:
        ast.parse(text)
    except SyntaxError:
        return text.startswith(">>> ")
    return True


def _is_mathematical(lines: list[str]) -> bool:
    """Whether lines that are not indented are equations all the same: aligned in columns, or short with an equality."""
    aligned = sum(bool(re.search(r"\S {2,}\S", line)) for line in lines)
    equal = sum(bool(re.match(r"[^.]{1,40}?(?: [-+*/]?= | <- | -> |<= )", line)) for line in lines)
    longest = max(len(re.findall(r"(?<![_\w])[a-z]{3,}(?![_\w(])", line)) for line in lines)
    words = longest < 7 or (len(lines) > 2 and 5 * equal >= 3 * len(lines))
    return (2 * equal > len(lines) and words) or 2 * aligned > len(lines)


def shown(text: str, names: Collection[str]) -> list[str]:
    """A text with blocks as lines of MyST."""
    out: list[str] = []
    for kind, lines in groups(text):
        if kind == "text":
            out += [prose("\n".join(lines)), ""]
        elif kind == "code":
            out += ["```python", *inspect.cleandoc("\n" + "\n".join(lines)).splitlines(), "```", ""]
        else:
            out += ["```{raw} html", typeset.block([line for line in lines if line.strip()], names), "```", ""]
    return out


def raised(text: str) -> list[str]:
    """A section of errors as MyST: their lines hang, and are no blocks."""
    return [f"- `{name}`: {prose(said)}" if name else f"- {prose(said)}" for name, said in entries(text)] + [""]


def split_equations(doc: Docstring, module: Any, read: Callable[[str], str]) -> tuple[str, str]:
    """(equations, the rest of the body) of a docstring; equations at the head of a file are taken from there."""
    body, equations = doc.body, ""
    match = HEAD.search(" ".join(body.split())) if "at the head of" in body else None
    if match:
        flat = re.compile(r"\s+".join(map(re.escape, match[0].split())))
        source = read(match["file"]) if match["file"] else inspect.getdoc(module) or ""
        _, _, equations = source.partition("\n\n")
        which = match["which"].strip()
        said = f"Of these equations this is {which}" if which else "" if match["rest"] == "." else "As above"
        said += match["rest"] if said else ""
        body = flat.sub(lambda _: said, body, count=1).strip()
        return equations, body
    found = groups(body)
    last = max((i for i, (kind, _) in enumerate(found) if kind == "equations"), default=-1)
    if last < 0:
        return "", body
    # Text between equations belongs to them; what leads to the first one does too where it ends in a colon.
    pieces = ["\n".join(lines) for _, lines in found]
    first = min(i for i, (kind, _) in enumerate(found) if kind == "equations")
    if first and pieces[first - 1].rstrip().endswith((":", ",")):
        first -= 1
    lead, core, rest = pieces[:first], pieces[first : last + 1], pieces[last + 1 :]
    core = [re.sub(r"^Equations?:\s*", "", piece) for piece in core]
    core = [re.sub(r"^Equations?, (\w)", lambda m: m[1].upper(), piece) for piece in core]
    return "\n\n".join(piece for piece in core if piece), "\n\n".join(lead + rest)
