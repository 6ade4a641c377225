"""A line of plain text as words, numbers and signs; and which of the words are English, not names of quantities."""

import re
from collections.abc import Collection
from typing import NamedTuple

_SMALL = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi".split()
_LATER = "sigma tau upsilon phi chi psi omega".split()
_LARGE = dict(zip("Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split(), "ΓΔΘΛΞΠΣΦΨΩ", strict=True))
GREEK = {
    **{name: chr(0x3B1 + i) for i, name in enumerate(_SMALL)},
    **{name: chr(0x3C3 + i) for i, name in enumerate(_LATER)},
    **_LARGE,
    **{"pi": "π", "rho": "ρ", "lam": "λ", "eps": "ε", "ell": "ℓ", "inf": "∞", "infinity": "∞"},
}
FUNCTIONS = frozenset(
    """sqrt max min log ln exp sign sgn mean var cov std median diag tr trace det rank argmin argmax clip round floor
    ceil cos sin tan tanh cosh sinh arccos sigmoid softmax softplus relu svd NS vec sg norm top topk prox proj orth
    msign sum prod grad erf tri inv polar dim sup KL relint integral phi quantile normal sort cumsum qr eigh lerp rms
    RMS""".split()
)
BIG = {
    "sum": "∑",
    "prod": "∏",
    "integral": "∫",
    "max": "",
    "min": "",
    "argmin": "",
    "argmax": "",
    "mean": "",
    "sup": "",
}
OPERATORS = {
    "<-": "←", "->": "→", "<->": "↔", "<=": "≤", ">=": "≥", "!=": "≠", "==": "=", "<<": "≪", ">>": "≫", "+-": "±",
    "-": "−", "*": "·", "~": "∼", "...": "…", "..": "…", "+=": "+=", "-=": "−=", "*=": "·=", "/=": "/=", "=>": "⇒",
    "||": "‖", ":=": "≔", "**": "**",
}  # fmt: skip
# Words that are text wherever they stand alone among symbols.
TEXT = frozenset(
    """a an and are as at average be before after behind below above both but by choose chosen does each either else
    entrywise every first for from given has have holds how if in into is it its itself last like likewise much nothing
    new next no not of off on once one only or other others otherwise over per plus same second so some such than that
    the their them then there these they this times to until up use were what when where which while who whose with
    within without yet zero unless elementwise evenly always also drawn random independent uniform row rows column
    columns matrix vector matrices vectors here largest smallest""".split()
)
WORD = re.compile(r"[^\W\d_]\w*")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?(?![\d.]*[^\W\d_])|\d+(?:\.\d+)?")
SIGNS = re.compile(r"<->|//|:=|\.\.\.|<-(?!\d)|->|<=|>=|!=|==|=>|<<|>>|\+-|\+=|-=|\*=|/=|\.\.|\|\||\*\*|[^\w\s]")
RELATIONS = frozenset("= := <- -> <= >= != == < > ~ << >> += -= *= /= => , ; : + - +- <-> ... ..".split())


class Token(NamedTuple):
    """A piece of a line: its kind (word, number, sign, code, text), the text, and whether a space is before it."""

    kind: str
    text: str
    spaced: bool


def _split(text: str, names: Collection[str]) -> list[Token]:
    found, i = [], 0
    while i < len(text):
        spaced = text[i] == " "
        while i < len(text) and text[i] == " ":
            i += 1
        if i == len(text):
            break
        if text[i] == "`" and "`" in text[i + 1 :]:
            end = text.index("`", i + 1)
            found.append(Token("code", text[i + 1 : end], spaced))
            i = end + 1
        elif text[i] == '"' and '"' in text[i + 1 :]:
            end = text.index('"', i + 1)
            found.append(Token("code", text[i : end + 1], spaced))
            i = end + 1
        elif match := WORD.match(text, i):
            word = match[0]
            base, _, sub = word.partition("_")
            called = text[i + len(word) : i + len(word) + 1] == "(" and len(base) > 3 and base not in FUNCTIONS
            if called and base not in GREEK:
                pass
            elif word not in names and word[:-2] in names and word[-2] == "_":
                word = word[:-2]
            elif word not in names and sub and (len(base) <= 3 or base in GREEK or base in FUNCTIONS or len(sub) <= 2):
                word = base
            elif sub == "" and word.endswith("_"):
                word = word.rstrip("_")
            # "up-to-date", "log-normal": a hyphen between words belongs to them.
            hyphened = re.compile(rf"{re.escape(word)}(?:-[^\W\d_]{{2,}})+").match(text, i)
            owned = re.compile(rf"{re.escape(word)}'s\b").match(text, i)
            named = hyphened and (len(word) > 1 or hyphened[0].endswith("-th") or hyphened[0][2:].isupper())
            if owned or (named and word not in GREEK):
                word = (owned or hyphened)[0]
                found.append(Token("text", word, spaced))
            else:
                found.append(Token("word", word, spaced))
            i += len(word)
        elif match := NUMBER.match(text, i):
            found.append(Token("number", match[0], spaced))
            i = match.end()
        else:
            match = SIGNS.match(text, i)
            sign = match[0] if match else text[i]
            found.append(Token("sign", sign, spaced))
            i += len(sign)
    return found


def tokens_of(text: str, names: Collection[str] = ()) -> list[Token]:
    """The tokens of a line; words that are English are marked as text.

    >>> [token.kind for token in tokens_of("m_t is small")]
    ['word', 'sign', 'word', 'text', 'text']
    """
    tokens = _split(text, names)

    def plain(i: int) -> bool:
        if not 0 <= i < len(tokens):
            return False
        return tokens[i].kind == "text" or (tokens[i].kind == "word" and _wordlike(tokens[i].text))

    def joined(i: int, j: int) -> bool:
        """Whether the words at i and j = i + 1 stand beside each other, with nothing but a space between."""
        return plain(i) and plain(j) and tokens[j].spaced

    out = []
    for i, token in enumerate(tokens):
        kind = token.kind
        if kind == "word":
            word, after = token.text, tokens[i + 1] if i + 1 < len(tokens) else None
            called = (
                after is not None and after.kind == "sign" and after.text in ("(", "_", "^", "'") and not after.spaced
            )
            known = word in GREEK or word in FUNCTIONS or word in names
            neighbours = [j for j in (i - 1, i + 1) if joined(min(i, j), max(i, j))]
            english = [j for j in neighbours if not _known(tokens[j].text, names)]
            if called:
                kind = "word"
            elif (word in TEXT and (word not in ("a", "A") or english)) or (
                _wordlike(word) and ((not known and neighbours) or (known and word not in GREEK and english))
            ):
                kind = "text"
        out.append(token._replace(kind=kind))
    return out


def _wordlike(word: str) -> bool:
    return (len(word) > 1 and word.replace("-", "").isalpha()) or word in ("a", "A")


def _known(word: str, names: Collection[str]) -> bool:
    return word not in TEXT and (word in GREEK or word in FUNCTIONS or word in names)
