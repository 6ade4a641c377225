"""What the names of trainers say: words of paths, and the kind of a leaf by its name alone.

    decoder/layers/3/self_attn/q_proj/kernel  ->  own "kernel", label "q_proj", kind "dense", direction "up"

A label is the name of the layer: the module above a generic name such as `kernel`, else the leaf's own name without
such a suffix (`query_w` -> `query`). A kernel and its bias have one parent and one label.
"""

import functools
import re


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


GENERIC = _set(
    "kernel w weight weights weight_v weight_g bias b scale offset gamma beta embedding embeddings table gain g v"
)
WEIGHTS = _set("kernel w weight weights v weight_v")
_INDEX = re.compile(r"\d+(_\d+)*|~")
_FIELDS = ("value", "raw_value", "array")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_SUFFIX = re.compile(r"_(w|weights?|kernel|b|bias)$|^(b|bias)_")
_LIFTED = re.compile(r"(Scan|Vmap)[A-Z]\w*_\d+|\w*layer_stack\w*")

_ONE_AXIS = re.compile(
    r"bias|b\d*|scale|gain|gamma|beta|offset|shift|ls\d*|layer_?scale\w*"
    r"|\w+_(b|bias|biases|scale|gain|g|gamma|beta|offset)|(b|bias|scale|gamma|beta)_\w+|\w*norm|ln\w*|\w+_ln"
)
_ANY_AXES = re.compile(
    r"log_?std\w*|\w*_std|log_?alpha|alpha|temp(erature)?|logit_(scale|bias)|a_?log|d_skip|dt_bias|a_param|lambda\w*"
    r"|\w+_log|log_\w+|time_(decay|first|faaaa|mix\w*|maa\w*|curve|shift)|mix_\w+|x_[rwkvag]|cls(_?token)?|probe"
    r"|const(ant)?|init(ial)?_\w+|[hc]0|carry|slopes?"
    r"|(mask|class|dist|distillation|register|sep|pad|bos|null)_?(tokens?|embed(ding)?|emb)|negative_slope|decay|bonus"
)
_STATE_SPACE = re.compile(r"[BC]\d?(_(re|im|real|imag))?")
_POSITION = _set("pos position positional positions")
_NORM = _set("norm ln layernorm rmsnorm rms bn batchnorm groupnorm gn instancenorm norms")
_TABLE = _set(
    "embedding embeddings embed embeds embedder emb embs table tables wte wpe codebook codebooks lookup posemb"
    " posembed relpos latents queries codevectors"
)
_NO_TABLE = _set("proj projection kernel patch linear dense conv norm ln scale mlp fc time modulation")
_HEAD = _set("head lmhead logits logit logitdense classifier readout")
_EXPERT = re.compile(r"moe|experts?|switch|mixture")
_ROUTER = _set("router gate gating routers")
_QUERY = _set("q k v query key value keys values qkv kv qk wq wk wv wqkv wkv receptance")
_UP = _set("up gate gating wi wg fi in intermediate fc inner hidden i expand upscale")
_OUT = _set("o out output wo post vec")
_DOWN = _set("down wo fo out output contract shrink")


@functools.lru_cache(maxsize=65536)
def words(text: str) -> tuple[str, ...]:
    """The lower-case words and numbers of one name: `MlpBlock_0` -> mlp, block, 0."""
    return tuple(word.lower() for word in _WORD.findall(text))


@functools.lru_cache(maxsize=65536)
def parts(path: str) -> tuple[str, ...]:
    """The pieces of a path that are names: without indices and the fields of boxes."""
    pieces: tuple[str, ...] = tuple(piece for piece in path.split("/") if not _INDEX.fullmatch(piece))
    if len(pieces) > 1 and pieces[-1] in _FIELDS and pieces[len(pieces) - 2].lower() in GENERIC:
        return pieces[:-1]
    return pieces or (path.rpartition("/")[2],)


def own(path: str) -> str:
    """The leaf's own name, lower case."""
    return parts(path)[-1].lower()


def label(path: str) -> str:
    """The name of the layer a leaf belongs to."""
    *above, last = parts(path)
    if last.lower() in GENERIC and above:
        return above[-1]
    return _SUFFIX.sub("", last) or last


@functools.lru_cache(maxsize=65536)
def layer(path: str) -> tuple[str, str]:
    """What a kernel and its bias have in common: the module, and the label in it."""
    pieces = path.split("/")
    while len(pieces) > 1 and pieces[-1] != parts(path)[-1]:
        pieces.pop()
    return "/".join(pieces[:-1]), label(path)


@functools.lru_cache(maxsize=65536)
def lifted(piece: str) -> bool:
    """Whether a module's name says that it is stacked: `ScanBlock_0`, `VmapCritic_0`, `__layer_stack_no_state`."""
    return _LIFTED.fullmatch(piece) is not None


@functools.lru_cache(maxsize=65536)
def lifts(path: str) -> int:
    """How many stack axes the names in a path say there are."""
    return sum(map(lifted, path.split("/")))


@functools.lru_cache(maxsize=65536)
def stacks(piece: str) -> bool:
    """Whether a module's name makes it likely that it is stacked."""
    known = ("layers", "layer", "blocks", "block", "stacked", "stack", "scan", "scanned", "repeat", "vmap", "ensemble")
    more = ("experts", "expert", "critics", "members", "critic", "encoderblock", "ensembles", "h", "body")
    return any(word in known or word in more for word in words(piece))


@functools.lru_cache(maxsize=65536)
def of_expert(path: str) -> bool:
    """Whether a leaf belongs to experts that are routed to."""
    inside = False
    for piece in parts(path):
        mine = tuple(word for word in words(piece) if not word.isdigit())
        if "shared" in mine or (inside and any(w in ("attn", "attention") or w.endswith("attention") for w in mine)):
            return False
        layers = mine[-1:] in (("layers",), ("blocks",))  # layers that have experts among other things
        inside = inside or (not layers and any(_EXPERT.fullmatch(w) or w.endswith("moe") for w in mine))
    return inside


def of_ensemble(path: str) -> bool:
    """Whether a leaf belongs to members of an ensemble."""
    known = ("ensemble", "ensembles", "critics", "vmap", "members")
    return any(word in known for piece in path.split("/") for word in words(piece))


@functools.lru_cache(maxsize=65536)
def of_router(path: str) -> bool:
    """Whether a leaf scores the experts."""
    mine = [word for word in words(label(path)) if not word.isdigit()]
    other = ("weight", "weights", "w", "linear", "logits", "network", "dense", "layer", "scores", "expert", "experts")
    return any(word in _ROUTER for word in mine) and all(word in _ROUTER or word in other for word in mine)


@functools.lru_cache(maxsize=65536)
def kind(path: str) -> str:
    """The kind of a leaf by its name: "vector" (one axis of its own), "free vector" (any number), "norm" (the weight of
    a normalization), "table", "head", "conv", "einsum", "lora", "state space", "dense", or "free" for any other."""
    name, of = own(path), label(path)
    if not name:
        return "dense"  # an array by itself
    mine = words(of)
    if _STATE_SPACE.fullmatch(parts(path)[-1]):
        return "state space"
    if "lora" in name or "lora" in of.lower():
        return "lora"
    if _is_table(name, of):
        return "table"
    if _ANY_AXES.fullmatch(name):
        return "free vector"
    if _ONE_AXIS.fullmatch(name) and not (len(parts(path)) > 1 and name == "ln"):
        return "vector"
    if name in WEIGHTS and any(w in _NORM for w in _joined(of)) and not any(w in _NO_TABLE - _NORM for w in mine):
        return "norm"
    if any(word.startswith("einsum") or word in ("ein", "einsum") for word in mine):
        return "einsum"
    if any("conv" in word for word in mine) and not any(w.startswith("pw") for w in mine):
        return "conv"
    if is_head(path):
        return "head"
    known = name in WEIGHTS or _SUFFIX.search(name) or direction(of) or of_expert(path)
    return "dense" if known else "free"


def _joined(text: str) -> tuple[str, ...]:
    """Words, and words that end in one of the names of normalizations."""
    found = words(text)
    return (*found, *("norm" for word in found if word.endswith("norm")))


def _is_table(name: str, of: str) -> bool:
    if name == "kernel" or (_ONE_AXIS.fullmatch(name) and "table" not in words(name)):
        return False
    if name in ("embedding", "embeddings", "table"):
        return True
    mine = words(of if name in WEIGHTS else name)
    tables = _TABLE if name in WEIGHTS else _TABLE | _POSITION
    return any(w in tables for w in mine) and not any(w in _NO_TABLE for w in mine) and not _ANY_AXES.fullmatch(name)


@functools.lru_cache(maxsize=65536)
def of_norm(path: str) -> bool:
    """Whether a leaf belongs to a normalization by its module's name."""
    pieces = parts(path)
    return len(pieces) > 1 and own(path) in GENERIC and any(w in _NORM for w in _joined(pieces[-2]))


@functools.lru_cache(maxsize=65536)
def of_scale(path: str) -> bool:
    """Whether a leaf is the scale of a normalization by its name or its module's.

    >>> of_scale("block/ln_1"), of_scale("block/norm/scale"), of_scale("block/q_bias")
    (True, True, False)
    """
    return of_norm(path) or any(w in _NORM for w in _joined(own(path).rstrip("_0123456789")))


@functools.lru_cache(maxsize=65536)
def _heads(of: str) -> bool:
    mine = words(of)
    known = any(w in _HEAD or w.startswith("unembed") for w in mine) or "output_layer" in of.lower()
    return known and mine[0] not in ("pre", "map", "multi", "multihead") and not any(w in _NORM for w in _joined(of))


def is_head(path: str) -> bool:
    """Whether a leaf is the weight of an output layer by its name."""
    pieces, of = parts(path), label(path)
    if _heads(of):
        return True
    last = words(of)[:1] in (("decoder",), ("out",)) and own(path) in WEIGHTS
    return last and len(pieces) > 2 and _heads(pieces[-3])


def in_head(path: str) -> str:
    """The module of an output layer that a leaf with a general name (`linear`, `dense`) is directly below, or ""."""
    pieces = parts(path)
    general = ("linear", "dense", "proj", "fc", "layer", "out")
    if len(pieces) < 3 or not _heads(pieces[-3]) or not all(w in general or w.isdigit() for w in words(pieces[-2])):
        return ""
    return layer(path)[0].rpartition("/")[0]


@functools.lru_cache(maxsize=65536)
def direction(of: str) -> str:
    """Which side of a layer has the model's width: "query" and "up" read it, "out" and "down" write it; or ""."""
    lower = of.lower()
    if "_to_" in lower and not lower.startswith("dense"):
        return direction(lower.rpartition("_to_")[2])
    mine = words(of)
    bare = tuple(w for w in mine if not w.isdigit())
    if any(w in _QUERY for w in mine) or lower in ("c_attn", "wqkv", "query_key_value"):
        return "query"
    if re.search(r"(^|_)(fc|linear|lin|w)_?2(_\d+)?$", lower) or lower in ("c_proj", "dense_4h_to_h"):
        return "down"
    if re.search(r"(^|_)(fc|linear|lin|w)_?[13](_\d+)?$", lower) or lower in ("c_fc", "dense_h_to_4h"):
        return "up"
    if any(w in _DOWN for w in bare):
        return "down"
    if any(w in _OUT for w in bare):
        return "out"
    return "up" if any(w in _UP for w in bare) else ""


def is_query(path: str) -> bool:
    """Whether a leaf makes queries, keys, values or gates of heads, whose outputs may be (heads, features)."""
    return direction(label(path)) == "query" or label(path).lower() in ("gating", "gen")
