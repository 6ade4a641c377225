"""The papers behind the library: the names that serve each of them; and the papers that bring no method, and why.

`docs/papers.md` is made of the cards and of this file by

    python -m gradkit.papers > docs/papers.md
"""

import textwrap
from collections.abc import Mapping

from gradkit import catalogue
from gradkit.catalogue import Card, Paper

WIDTH = 120
HEAD = """# Papers

Every paper that a method of the library comes from, the newest first, with the names that serve it; then methods that
are of no paper; then papers that were read and bring no method, with the reason. `gradkit show 1904.00962` and
`gradkit list --paper="large batch"` find a paper by its title, its authors, its year or its arXiv id.

This page is made by `python -m gradkit.papers > docs/papers.md`.
"""

# Papers that were read, and have nothing that a card could be of -> the reason.
WITHOUT_METHOD: Mapping[Paper, str] = {
    Paper("Optimization Benchmark for Diffusion Models on Dynamical Systems", "Schaipp", 2025, "2510.19376"): (
        "It compares optimizers that exist."
    ),
    Paper(
        "Optimizers Qualitatively Alter Solutions And We Should Leverage This", "Pascanu et al.", 2025, "2507.12224"
    ): ("It argues that an optimizer should be chosen for the solutions that it prefers, and proposes no new one."),
    Paper(
        "Sound Matching an Analogue Levelling Amplifier Using the Newton-Raphson Method",
        "Yu, Fazekas",
        2025,
        "2509.10706",
    ): (
        "It applies Newton's method to a handful of parameters: `gk.gradient_regularized_newton` without "
        "regularization."
    ),
    Paper(
        "Towards Better Alignment: Training Diffusion Models with Reinforcement Learning Against Sparse Rewards",
        "Hu et al.",
        2025,
        "2503.11240",
    ): (
        "It widens the interval of denoising steps that reinforcement learning trains, and branches samples: a "
        "recipe of an application."
    ),
    Paper(
        "AffineQuant: Affine Transformation Quantization for Large Language Models", "Ma et al.", 2024, "2403.12544"
    ): ("It fits a transformation of weights before they are quantized, layer by layer, with an ordinary optimizer."),
    Paper(
        "Boosting Large-scale Parallel Training Efficiency with C4: A Communication-Driven Approach",
        "Dong et al.",
        2024,
        "2406.04594",
    ): (
        "It finds faulty machines and plans network traffic in a cluster: infrastructure, outside of the program "
        "that trains."
    ),
    Paper(
        "GD doesn't make the cut: Three ways that non-differentiability affects neural network training",
        "Kumar",
        2024,
        "2401.08426",
    ): ("It analyses what happens where a loss has no derivative, and proposes no method."),
    Paper(
        "Lowering PyTorch's Memory Consumption for Selective Differentiation", "Bhatia, Dangel", 2024, "2404.12406"
    ): (
        "In JAX, differentiating with respect to the trained subtree, with a closure over the rest, has the same "
        "effect."
    ),
    Paper("Meta-Learning Neural Procedural Biases", "Raymond et al.", 2024, "2406.07983"): (
        "It learns initialization, optimizer and loss together for few-shot tasks: a program of its own, not an update."
    ),
    Paper(
        "Multi-Layer Transformers Gradient Can be Approximated in Almost Linear Time",
        "Liang et al.",
        2024,
        "2408.13233",
    ): ("It approximates the gradient of attention inside backpropagation: a kernel for one layer, not an update."),
    Paper("Unraveling the Mystery of Scaling Laws: Part I", "Su et al.", 2024, "2403.06563"): (
        "It fits scaling laws of language models; the part about batches is `gk.diagnostics.critical_batch_size`."
    ),
    Paper(
        "A Novel Method for improving accuracy in neural network by reinstating traditional back propagation technique",
        "Gokulprasath R",
        2023,
        "2308.05059",
    ): ("The text does not determine its rule: two readers would write two methods."),
    Paper(
        "Benign Oscillation of Stochastic Gradient Descent with Large Learning Rates", "Lu et al.", 2023, "2310.17074"
    ): ("It analyses plain SGD at large learning rates."),
    Paper("Dataset Distillation via Curriculum Data Synthesis in Large Data Era", "Yin, Shen", 2023, "2311.18838"): (
        "Its curriculum of crop sizes is an ordinary schedule, applied to an augmentation."
    ),
    Paper("Dataset Distillation with Convexified Implicit Gradients", "Loo et al.", 2023, "2302.06755"): (
        "It distils data sets by implicit gradients; `gk.gradients.bilevel_directions` has the general part."
    ),
    Paper(
        "Dissecting the Effects of SGD Noise in Distinct Regimes of Deep Learning",
        "Sclocchi, Geiger, Wyart",
        2023,
        "2301.13703",
    ): ("It analyses where the noise of plain SGD helps and where it harms."),
    Paper(
        "Domain-Agnostic Neural Architecture for Class Incremental Continual Learning in Document Processing Platform",
        "Wójcik et al.",
        2023,
        "2307.05399",
    ): ("It is an architecture, a mixture of experts with keys; the update is an ordinary one."),
    Paper("Efficient ConvBN Blocks for Transfer Learning and Beyond", "You et al.", 2023, "2305.11624"): (
        "It fuses a convolution with the normalization behind it in a model that is fine-tuned; the update is "
        "unchanged."
    ),
    Paper(
        "Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings",
        "Yvinec, Dapogny, Bailly",
        2023,
        "2309.17361",
    ): (
        "It compresses a trained model; its gradient of the mapping is not stated in enough detail to be "
        "reproduced exactly."
    ),
    Paper("Poincaré ResNet", "van Spengler et al.", 2023, "2303.14027"): (
        "It brings layers of hyperbolic geometry, and trains them with an existing Riemannian optimizer."
    ),
    Paper(
        "Revisiting Gradient Clipping: Stochastic bias and tight convergence guarantees",
        "Koloskova, Hendrikx, Stich",
        2023,
        "2305.01588",
    ): ("It proves how clipped SGD converges; the clipping is `gk.clip_by_global_norm`."),
    Paper("Small batch deep reinforcement learning", "Obando-Ceron et al.", 2023, "2310.03882"): (
        "It measures the effect of small batches in reinforcement learning, and changes nothing else."
    ),
    Paper(
        "Small Temperature is All You Need for Differentiable Architecture Search", "Zhang, Ding", 2023, "2306.06855"
    ): (
        "It is a schedule of the temperature of one architecture search, and not stated exactly enough to be "
        "reproduced."
    ),
    Paper(
        "SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for "
        "Training Many-in-One Neural Networks",
        "Valipour et al.",
        2023,
        "2309.00255",
    ): ("It trains nested networks by choosing one of them per step: an architecture, with an ordinary update."),
    Paper("The Marginal Value of Momentum for Small Learning Rate SGD", "Wang et al.", 2023, "2307.15196"): (
        "It proves that at small learning rates momentum is SGD at the rate divided by 1 - momentum: a fact about "
        "methods that are here."
    ),
    Paper("Think before you speak: Training Language Models With Pause Tokens", "Goyal et al.", 2023, "2310.02226"): (
        "It adds tokens to the data of a language model; loss and update are unchanged."
    ),
    Paper(
        "A Deep Conjugate Direction Method for Iteratively Solving Linear Systems", "Kaneda et al.", 2022, "2205.10763"
    ): ("It is a solver of linear systems whose directions come from a trained network, not a way to train one."),
    Paper(
        "Amos: An Adam-style Optimizer with Adaptive Weight Decay towards Model-Oriented Scale",
        "Tian, Parikh",
        2022,
        "2210.11693",
    ): (
        "Its update asks for the expected scale of every variable, which only the author of a model knows; it is "
        "not implemented here."
    ),
    Paper("BBTv2: Towards a Gradient-Free Future with Large Language Models", "Sun et al.", 2022, "2205.11200"): (
        "It is an evolution strategy over random projections of prompts: there is no gradient to transform."
    ),
    Paper("Data-Efficient Augmentation for Training Neural Networks", "Liu, Mirzasoleiman", 2022, "2210.08363"): (
        "It chooses the examples to augment by facility location, which is `gk.batches.facility_location` on its "
        "features."
    ),
    Paper("LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", "Dettmers et al.", 2022, "2208.07339"): (
        "It is a matrix product in 8 bits for inference; nothing is trained."
    ),
    Paper("Monotonic Differentiable Sorting Networks", "Petersen et al.", 2022, "2203.09630"): (
        "It is a layer that sorts, with useful gradients; the update is left to any optimizer."
    ),
    Paper(
        "Q-Ensemble for Offline RL: Don't Scale the Ensemble, Scale the Batch Size",
        "Nikulin et al.",
        2022,
        "2211.11092",
    ): ("It applies the square-root rule, `gk.batches.sqrt_scaling`, to reinforcement learning, and adds no rule."),
    Paper(
        "Special Properties of Gradient Descent with Large Learning Rates",
        "Mohtashami, Jaggi, Stich",
        2022,
        "2205.15142",
    ): ("It analyses plain gradient descent at large learning rates."),
    Paper("Fast Certified Robust Training with Short Warmup", "Shi et al.", 2021, "2103.17268"): (
        "It initializes and regularizes networks for interval bounds; its warm-up is of the size of a "
        "perturbation, not of a rate."
    ),
    Paper(
        "Federated Reconnaissance: Efficient, Distributed, Class-Incremental Learning",
        "Hendryx et al.",
        2021,
        "2109.00150",
    ): ("Clients share running means of class prototypes: there are no gradients."),
    Paper(
        "NeuralNDCG: Direct Optimisation of a Ranking Metric via Differentiable Relaxation of Sorting",
        "Pobrotyn, Białobrzeski",
        2021,
        "2102.07831",
    ): ("It is a ranking loss made differentiable; any optimizer trains it as it is."),
    Paper("SGD Implicitly Regularizes Generalization Error", "Roberts", 2021, "2104.04874"): (
        "It analyses SGD; what it measures is in `gk.gradients.gradient_moments`."
    ),
    Paper("Stochastic Training is Not Necessary for Generalization", "Geiping et al.", 2021, "2109.14119"): (
        "Its recipe for full batches is made of `gk.gradients.gradient_regularization`, `gk.clip_by_global_norm` "
        "and a long warm-up."
    ),
    Paper("Test-time Batch Statistics Calibration for Covariate Shift", "You, Li, Zhao", 2021, "2110.04065"): (
        "It adapts the statistics of a trained model to test data; nothing is trained."
    ),
    Paper(
        "Fast & Slow Learning: Incorporating Synthetic Gradients in Neural Memory Controllers",
        "Fernando et al.",
        2020,
        "2011.05438",
    ): (
        "It applies synthetic gradients to one kind of model; `gk.gradients.map_cotangent` with a learned map is "
        "the general tool."
    ),
    Paper("Supervised Contrastive Learning", "Khosla et al.", 2020, "2004.11362"): (
        "It is a loss in which labels choose the positive pairs; any optimizer trains it as it is."
    ),
    Paper(
        "Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs",
        "Frankle, Schwab, Morcos",
        2020,
        "2003.00152",
    ): ("It trains the normalization parameters alone: a mask that selects their leaves does it."),
    Paper(
        "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency and Simplicity",
        "Bhatt et al.",
        2019,
        "1902.05605",
    ): ("It is a critic whose two forward passes share their batch statistics: a model, not an update."),
    Paper("Feature Gradients: Scalable Feature Selection via Discrete Relaxation", "Sheth, Fusi", 2019, "1908.10382"): (
        "It is an objective that scores input features; the update is left to any optimizer."
    ),
    Paper("Deep Learning is Robust to Massive Label Noise", "Rolnick et al.", 2017, "1705.10694"): (
        "It measures how much label noise ordinary training withstands, and changes nothing in the training."
    ),
}


def page() -> str:
    """The text of `docs/papers.md`.

    >>> "arXiv [2302.06675](https://arxiv.org/abs/2302.06675): `gk.lion`" in " ".join(page().split())
    True
    """
    groups: dict[Paper, list[Card]] = {}
    for card in catalogue.cards().values():
        groups.setdefault(card.paper, []).append(card)
    own = {paper: group for paper, group in groups.items() if not paper.authors}
    blocks = [HEAD]
    for year in sorted({paper.year for paper in groups.keys() - own.keys()}, reverse=True):
        papers = sorted((p for p in groups.keys() - own.keys() if p.year == year), key=_order)
        blocks += [f"## {year}\n", *(_entry(_cited(paper), _names(groups[paper])) for paper in papers), ""]
    blocks += ["## Of no paper\n", *(_entry(paper.title, _names(own[paper])) for paper in sorted(own, key=_order)), ""]
    blocks += ["## Papers that bring no method\n"]
    blocks += [_entry(_cited(p), WITHOUT_METHOD[p]) for p in sorted(WITHOUT_METHOD, key=_order)]
    return "\n".join(blocks) + "\n"


def without_method(text: str) -> dict[Paper, str]:
    """The papers that a text means and that bring no method, with the reasons; see `Paper.matches`.

    >>> [paper.arxiv for paper in without_method("BBTv2")]
    ['2205.11200']
    """
    return {paper: reason for paper, reason in WITHOUT_METHOD.items() if paper.matches(text)}


def _order(paper: Paper) -> tuple[str, str]:
    return paper.title.casefold(), paper.authors


def _cited(paper: Paper) -> str:
    where = f", arXiv [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    return f"{paper.sentence} {paper.authors}, {paper.year}{where}"


def _names(cards: list[Card]) -> str:
    return ", ".join(
        f"`{card.public_name}`" for card in sorted(cards, key=lambda card: (card.public_name.count("."), card.name))
    )


def _entry(term: str, meaning: str) -> str:
    return textwrap.fill(
        f"- {term}: {meaning}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    print(page(), end="")
