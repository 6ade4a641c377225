"""Equations from plain text to MathML, which browsers draw without a script and without a font of ours.

The docstrings of the package have their equations as plain text that reads well in a terminal:

    m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) g_t^2

`block` makes a grid of such lines: two spaces or more begin a new cell, and cells that begin at the same character
stand below each other. A cell is mathematics, text, or both: `math` tells them apart word by word. Nothing is
rearranged: a fraction is drawn only where a whole product stands over one factor, so that no reading of the text is
changed.
"""

import html
import re
from collections.abc import Collection

from signs import BIG, FUNCTIONS, GREEK, OPERATORS, RELATIONS, Token, tokens_of


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


class _Parser:
    """Tokens to MathML, by descent over brackets."""

    def __init__(self, tokens: list[Token], names: Collection[str]) -> None:
        self.tokens, self.names, self.at = tokens, names, 0

    def peek(self, offset: int = 0) -> Token | None:
        i = self.at + offset
        return self.tokens[i] if i < len(self.tokens) else None

    def row(self, closing: str = "") -> tuple[str, bool]:
        """Everything up to a closing bracket; whether that was found."""
        terms: list[list[tuple[str, str]]] = [[]]  # (kind, MathML) of the factors of each term and the signs between
        while (token := self.peek()) is not None:
            if closing and token.kind == "sign" and token.text == closing and not (closing == "|" and token.spaced):
                self.at += 1
                return self._joined(terms), True
            if not closing and token.kind == "sign" and token.text in ")]}":
                self.at += 1
                terms[-1].append(("factor", f'<mo stretchy="false">{token.text}</mo>'))
                continue
            space = bool(token.spaced and terms[-1])
            if token.kind == "text":
                words = []
                while (word := self.peek()) is not None and word.kind == "text":
                    words.append(word.text)
                    self.at += 1
                said = _escaped(" ".join(words))
                after = self.peek()
                left, right = ("&#160;" if space else ""), ("&#160;" if after is not None and after.spaced else "")
                terms.append([("text", f"<mtext>{left}{said}{right}</mtext>")])
                terms.append([])
                continue
            if token.kind == "sign" and token.text in RELATIONS and not self._is_product():
                self.at += 1
                terms.append([("sign", self._sign(token))])
                terms.append([])
                continue
            if token.kind == "sign" and token.text == "/":
                self.at += 1
                terms[-1].append(("over", "<mo>/</mo>"))
                continue
            big = token.kind == "word" and token.text in BIG
            factor = self.scripted()
            if space and terms[-1] and terms[-1][-1][0] != "over":
                terms[-1].append(("space", '<mspace width="0.22em"/>'))
            terms[-1].append(("big" if big else "factor", factor))
        return self._joined(terms), False

    def _joined(self, terms: list[list[tuple[str, str]]]) -> str:
        return "".join(self._term(term) for term in terms)

    def _term(self, term: list[tuple[str, str]]) -> str:
        kinds = [kind for kind, _ in term]
        plain = "".join(part for _, part in term)
        # One slash, behind it one factor to the end, before it factors alone: a fraction.
        if kinds.count("over") == 1 and "big" not in kinds and "text" not in kinds:
            at = kinds.index("over")
            if at > 0 and len(kinds) == at + 2 and kinds[-1] == "factor":
                top = "".join(part for _, part in term[:at])
                if at == 1:
                    top = _bare(top)
                return f"<mfrac><mrow>{top}</mrow><mrow>{_bare(term[-1][1])}</mrow></mfrac>"
        return plain

    def _sign(self, token: Token) -> str:
        shown = OPERATORS.get(token.text, token.text)
        before = self.tokens[self.at - 2] if self.at > 1 else None
        prefix = token.text in "+-" and (
            before is None or before.kind == "text" or (before.kind == "sign" and before.text not in ")]}|'")
        )
        form = ' form="prefix" lspace="0" rspace="0"' if prefix else ""
        return f'<mo stretchy="false"{form}>{_escaped(shown)}</mo>'

    def scripted(self) -> str:
        """One factor with its indices, powers, primes, hat and tilde."""
        big = (token := self.peek()) is not None and token.kind == "word" and token.text in BIG and token.text != "mean"
        base, sub, up = self.factor(), "", ""
        while (token := self.peek()) is not None and token.kind == "sign" and not token.spaced:
            after = self.peek(1)
            ends = after is None or after.spaced or after.text in (",", ")", ";", "]", "}", "|", "=")
            if token.text == "_":
                self.at += 1
                index = self.script()
                # b1_t has two indices, not an index of an index.
                if not sub and (match := re.fullmatch(r"<msub>(<mi>.*?</mi>)(<mn>\d+</mn>)</msub>", base)):
                    base, index = match[1], f"{match[2]}<mo>,</mo>{index}"
                sub += index
            elif token.text == "^" and ends:
                self.at += 1
                base = f'<mover accent="true">{base}<mo stretchy="false">^</mo></mover>'
            elif token.text == "^":
                self.at += 1
                up += self.script()
            elif token.text == "'":
                self.at += 1
                up += '<mo lspace="0" rspace="0">′</mo>'
            elif token.text == "~" and ends:
                self.at += 1
                base = f'<mover accent="true">{base}<mo stretchy="false">~</mo></mover>'
            elif token.text in "+*" and ends and base.startswith(("<mi", "<msub")):
                self.at += 1
                up += f'<mo lspace="0" rspace="0">{token.text}</mo>'
            else:
                break
        if up and not sub and (match := re.fullmatch(r"<msub>(<mi>[^<]*</mi>)(<mn>\d+</mn>)</msub>", base)):
            base, sub = match[1], match[2]
        sub, up = (f"<mrow>{x}</mrow>" if x else "" for x in (sub, up))
        if big and sub:
            return f"<munder>{base}{sub}</munder>" if not up else f"<munderover>{base}{sub}{up}</munderover>"
        if sub and up:
            return f"<msubsup>{base}{sub}{up}</msubsup>"
        return f"<msub>{base}{sub}</msub>" if sub else f"<msup>{base}{up}</msup>" if up else base

    def script(self) -> str:
        """What stands behind _ or ^: brackets around it are dropped, unless they are square."""
        token = self.peek()
        if token is None:
            return ""
        if token.kind == "sign" and token.text in "({":
            self.at += 1
            return self.row(")" if token.text == "(" else "}")[0]
        if token.kind == "sign" and token.text in "-+":
            self.at += 1
            return (
                f'<mo form="prefix" lspace="0" rspace="0">{OPERATORS.get(token.text, token.text)}</mo>{self.factor()}'
            )
        if token.kind == "sign" and token.text == "*":
            self.at += 1
            return "<mo>*</mo>"
        if token.kind == "word":
            self.at += 1
            return self.word(token, index=True)
        return self.factor()

    def factor(self) -> str:
        token = self.peek()
        if token is None:
            return "<mrow></mrow>"
        self.at += 1
        if token.kind == "number":
            return f"<mn>{token.text}</mn>"
        if token.kind == "code":
            return f'<mtext class="name">{_escaped(token.text)}</mtext>'
        if token.kind == "text":
            return f"<mtext>{_escaped(token.text)}</mtext>"
        if token.kind == "word":
            return self.word(token)
        opening = token.text
        if opening == "<":
            inner, _ = self.row(">")
            return f'<mrow><mo stretchy="false">⟨</mo>{inner}<mo stretchy="false">⟩</mo></mrow>'
        if opening in "([{":
            closing = {"(": ")", "[": "]", "{": "}"}[opening]
            inner, found = self.row(closing if opening != "[" else self._closing())
            end = self.tokens[self.at - 1].text if found else ""
            return f'<mrow><mo stretchy="true">{opening}</mo>{inner}<mo stretchy="true">{end}</mo></mrow>'
        if opening == "|" and self._bar_closes():
            inner, _ = self.row("|")
            return (
                f'<mrow><mo stretchy="true" form="prefix">|</mo>{inner}<mo stretchy="true" form="postfix">|</mo></mrow>'
            )
        return f'<mo stretchy="false">{_escaped(OPERATORS.get(opening, opening))}</mo>'

    def _is_product(self) -> bool:
        """Whether an inner product <x, y> begins here."""
        token, after = self.peek(), self.peek(1)
        if token is None or token.text != "<" or after is None or after.spaced:
            return False
        for i, other in enumerate(self.tokens[self.at + 1 :], self.at + 1):
            if other.kind == "sign" and other.text in ("<", "=", "<-", "<="):
                return False
            if other.kind == "sign" and other.text == ">":
                return not other.spaced and any(t.text == "," for t in self.tokens[self.at : i])
        return False

    def _closing(self) -> str:
        """An interval may be closed by a round bracket: [0, 1)."""
        depth = 0
        for token in self.tokens[self.at :]:
            if token.kind == "sign":
                if token.text in "([":
                    depth += 1
                elif token.text in ")]":
                    if depth == 0:
                        return token.text
                    depth -= 1
        return "]"

    def _bar_closes(self) -> bool:
        """Whether a bar opens here, and another one closes it before the brackets around it end."""
        after = self.peek()
        if after is None or after.spaced:
            return False
        depth = 0
        for token in self.tokens[self.at :]:
            if token.kind == "sign":
                depth += (token.text in "([{") - (token.text in ")]}")
                if depth < 0:
                    return False
                if token.text == "|" and depth == 0 and not token.spaced:
                    return True
        return False

    def word(self, token: Token, index: bool = False) -> str:
        word, after = token.text, self.peek()
        called = not index and after is not None and after.text == "(" and not after.spaced
        if word == "sqrt" and called:
            self.at += 1
            return f"<msqrt>{self.row(')')[0]}</msqrt>"
        if BIG.get(word):
            return f"<mo>{BIG[word]}</mo>"
        if word == "grad":
            return '<mo lspace="0" rspace="0.05em">∇</mo>'
        if word in GREEK:
            return f"<mi>{GREEK[word]}</mi>"
        if "_" in word or (word in self.names and len(word) > 3):
            return f'<mtext class="name">{_escaped(word)}</mtext>'
        if match := re.fullmatch(r"([^\W\d_]{1,3}|alpha|beta|gamma|theta|lambda|sigma|delta)(\d+)", word):
            letter = GREEK.get(match[1], match[1])
            return f"<msub><mi>{letter}</mi><mn>{match[2]}</mn></msub>"
        shown = f"<mi>{_escaped(word)}</mi>"
        if called and word not in BIG:
            self.at += 1
            inner, _ = self.row(")")
            return f'<mrow>{shown}<mo stretchy="true">(</mo>{inner}<mo stretchy="true">)</mo></mrow>'
        return shown


def _bare(factor: str) -> str:
    """A factor without the round brackets around all of it, as above or below the bar of a fraction."""
    match = re.fullmatch(r'<mrow><mo stretchy="true">\(</mo>(.*)<mo stretchy="true">\)</mo></mrow>', factor, re.DOTALL)
    return match[1] if match else factor


def is_text(text: str, names: Collection[str] = ()) -> bool:
    """Whether a cell has no mathematics in it.

    >>> is_text("the mean of all"), is_text("m_t = 0"), is_text("so m_t is small")
    (True, False, False)
    """
    tokens = tokens_of(text, names)
    if len(tokens) == 1 and tokens[0].kind == "word":
        word = tokens[0].text
        return word.isalpha() and len(word) > 3 and word not in GREEK and word not in FUNCTIONS and word not in names
    signs = [t for t in tokens if t.kind == "sign" and t.text not in (",", ".", ";", ":", "(", ")", "-", "'")]
    return (
        not signs
        and any(t.kind == "text" for t in tokens)
        and not any(t.kind == "word" and (t.text in GREEK or t.text in FUNCTIONS or len(t.text) == 1) for t in tokens)
    )


def math(text: str, names: Collection[str] = ()) -> str:
    """One cell as MathML.

    >>> math("x_t^2 / 2")
    '<math displaystyle="true"><mfrac><mrow><msubsup><mi>x</mi><mrow><mi>t</mi></mrow><mrow><mn>2</mn></mrow></msubsup></mrow><mrow><mn>2</mn></mrow></mfrac></math>'
    """  # noqa: E501
    parser = _Parser(tokens_of(text, names), names)
    return f'<math displaystyle="true">{parser.row()[0]}</math>'


def cells(line: str) -> list[tuple[int, str]]:
    """The cells of a line with the characters that they begin at.

    >>> cells("a = 1    b = 2")
    [(0, 'a = 1'), (9, 'b = 2')]
    """
    return [(match.start(), match[0]) for match in re.finditer(r"\S+(?: \S+)*", line)]


def block(lines: list[str], names: Collection[str] = ()) -> str:
    """Lines as a grid of cells, in HTML."""
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    rows = [cells(line[indent:]) for line in lines]
    starts = sorted({start for row in rows for start, _ in row})
    parts = []
    number = 0
    for row in rows:
        if not row:
            continue
        number += 1
        for i, (start, text) in enumerate(row):
            first = starts.index(start) + 1
            last = starts.index(row[i + 1][0]) + 1 if i + 1 < len(row) else len(starts) + 1
            gap = start - (row[i - 1][0] + len(row[i - 1][1])) if i else start
            kind = "text" if is_text(text, names) else "formula"
            shown = _with_code(text) if kind == "text" else math(text, names)
            wide = " far" if gap > 2 else ""
            parts.append(f'<span class="{kind}{wide}" style="grid-area:{number}/{first}/auto/{last}">{shown}</span>')
    return f'<div class="equations" tabindex="0"><div class="grid">{"".join(parts)}</div></div>'


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escaped(text))
