"""Claims whose experiments were written before this collection: judged by reading their results, which stand where they
were. Their pages are written from the scripts and the results, and nothing is run again.
"""

import pathlib
import re
from typing import NamedTuple

from experiments.claims import pages


class Standing(NamedTuple):
    """What is said of an experiment.

    Attributes:
      script: in `experiments/`.
      results: the name of its results; "" where it is that of the claim.
      source: the paper.
      verdict: one of `pages.VERDICTS`.
      found: what was found.
      claim: one sentence; "" where it is the first line of the script.
      figure: whether the picture of the results shows it.
    """

    script: str
    source: str
    verdict: str
    found: str
    claim: str = ""
    results: str = ""
    figure: bool = True


CLAIMS = {
    "scaled_gd_condition": Standing(
        "scaled_gd_condition.py",
        "Tong, Ma, Chi. Accelerating Ill-Conditioned Low-Rank Matrix Estimation via Scaled Gradient Descent. 2020, "
        "arXiv "
        "2005.08898.",
        "reproduced",
        "ScaledGD needs 24 to 34 steps to an error of 1e-8 at condition numbers from 1 to 1000; gradient descent "
        "needs 26 to 3294, and does not arrive at 1000 within 4000 steps.",
    ),
    "central_flow": Standing(
        "central_flow.py",
        "Cohen et al. Understanding Optimization in Deep Learning with Central Flows. 2024, arXiv 2410.24206.",
        "reproduced",
        "Beyond the edge of stability the distance of the central flow to gradient descent stays near 0.2, while "
        "that of gradient flow grows to about 1; the sharpness of the central flow stays at the edge.",
    ),
    "estimates_against_dimension": Standing(
        "estimates_against_dimension.py",
        "Baydin et al. Gradients without Backpropagation. 2022, arXiv 2202.08587; Spall. Multivariate Stochastic "
        "Approximation Using a Simultaneous Perturbation Gradient Approximation. 1992.",
        "reproduced",
        "Errors grow with the square root of the number of parameters, with slopes between 0.49 and 0.51 where "
        "theory has 0.5, and agree with the theory within what the draws allow.",
        "The error of forward gradients and of SPSA grows with the square root of the number of parameters.",
    ),
    "zeroth_order": Standing(
        "zeroth_order.py",
        "Malladi et al. Fine-Tuning Language Models with Just Forward Passes. 2023, arXiv 2305.17333.",
        "reproduced in part",
        "The memory beyond a forward pass is three copies of the parameters at every batch size, a fifth to an "
        "eleventh of "
        "that of backpropagation. In quality it is a miss: with 32 to 100 times the steps of Adam it makes 63% to "
        "74% of "
        "Adam's fall of the loss on one task, and 26% to 49% on the other. Rates tuned, one seed.",
        "Fine-tuning by SPSA with shared seeds needs the memory of inference and ends where backpropagation ends.",
    ),
    "wsd_cooldowns": Standing(
        "wsd_cooldowns.py",
        "Hägele et al. Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations. 2024, arXiv "
        "2405.18392.",
        "reproduced",
        "Three cooldowns of one training reach lower losses than three cosines of the same lengths, with two "
        "thirds of the steps. One seed, two learning rates.",
        "Cooldowns from one training at a constant rate reach what separate cosines reach, in fewer steps.",
    ),
    "schedule_free": Standing(
        "price_of_not_tuning.py",
        "Defazio et al. The Road Less Scheduled. 2024, arXiv 2405.15682.",
        "reproduced",
        "With as many trials, read at the budget of the cosine, Schedule-Free AdamW is lower than AdamW with warm-up "
        "and "
        "cosine on all five seeds on digits (medians 0.0003 and 0.0011) and on the language model (1.90 and 2.08), "
        "and a "
        "tie by the paired bootstrap on the autoencoder, where AdamW spreads from 0.85 to 4.7. Against NAdamW with a "
        "cosine it is lower on the first two and higher on four of five seeds of the third.",
        "Schedule-Free AdamW, without knowing when it will stop, is at least as good as AdamW under a tuned cosine.",
        "price_of_not_tuning",
    ),
    "price_of_not_tuning": Standing(
        "price_of_not_tuning.py",
        "Schaipp et al. MoMo. 2023, arXiv 2305.07583; Ivgi et al. DoG is SGD's Best Friend. 2023, arXiv 2302.12022; "
        "Kreisler et al. Accelerated Parameter-Free Stochastic Optimization. 2024, arXiv 2404.00666.",
        "reproduced in part",
        "MoMo-Adam, accelerated DoG and U-DoG reach every target on every seed without any tuning, in 1.3 to 3.6 "
        "times the steps of the best tuned method. DoG and L-DoG themselves miss all three within these budgets.",
        "Methods without a learning rate to choose reach, without tuning, what tuned methods reach.",
    ),
    "mup_transfer": Standing(
        "mup_transfer.py",
        "Yang et al. Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer. 2022, "
        "arXiv "
        "2203.03466.",
        "reproduced",
        "From width 64 to 512 of the language model the best of rates a factor of 2 apart is 2^-8, 2^-7, 2^-8 and 2^-8 "
        "with the multipliers, and 2^-8, 2^-8, 2^-9 and 2^-10 without; there the widest model is worse at the rate "
        "that was best at width 64 than the narrowest one. Two seeds, 100 steps.",
    ),
    "truncated_rewards": Standing(
        "truncated_rewards.py",
        "Clark et al. Directly Fine-Tuning Diffusion Models on Differentiable Rewards. 2023, arXiv 2309.17400.",
        "reproduced",
        "On a small diffusion model of digits all K need as many updates (52 to 55), and K = 1 about a third of the "
        "seconds of K = 50 and a quarter of its memory; a hundredth where all activations are kept. One seed.",
        "Reward gradients through the last few sampling steps of a diffusion model do as well as through all, for "
        "less.",
    ),
    "v_cycle": Standing(
        "v_cycle.py",
        "Zou, Zhang, Deng. A Multi-Level Framework for Accelerating Training Transformer Models. 2024, arXiv "
        "2404.07999.",
        "not reproduced here",
        "The V-cycle saves between nothing and 3% of the operations at the same loss, where the paper has about a "
        "fifth. "
        "Two seeds, rates that were not tuned.",
        "A V-cycle over two model sizes saves about a fifth of the computation at the same loss.",
    ),
    "loss_against_delay": Standing(
        "loss_against_delay.py",
        "Liu et al. Asynchronous Local-SGD Training for Language Modeling. 2024, arXiv 2401.09135.",
        "reproduced in part",
        "Up to eight workers delayed Nesterov loses nothing by delay where plain Nesterov does; from sixteen on "
        "it is the worst of the rules, and plain SGD the most robust one.",
        "Delayed Nesterov keeps what momentum wins where pseudo-gradients arrive late, and plain Nesterov loses it.",
        figure=False,
    ),
    "loss_against_bytes": Standing(
        "loss_against_bytes.py",
        "Vogels et al. PowerSGD. 2019, arXiv 1905.13727; Douillard et al. DiLoCo. 2023, arXiv 2311.08105.",
        "reproduced in part",
        "Integers of eight bits lose nothing against float32 at a quarter of the bytes, and rounds of 200 steps cost "
        "0.05 nats against rounds of 10 at a twentieth of them; a twentieth of the entries and factors of rank 4 cost "
        "0.06 to 0.29 more. No round is as good as data-parallel AdamW, by 0.33 nats, in these 400 steps from the "
        "start. One seed.",
        "Local rounds with compressed exchanges cost little loss for many times fewer bytes.",
    ),
    "diloco_rounds": Standing(
        "loss_against_bytes.py",
        "Douillard et al. DiLoCo: Distributed Low-Communication Training of Language Models. 2023, arXiv 2311.08105.",
        "reproduced in part",
        "From rounds of 10 to rounds of 200 steps the tuned loss rises only from 2.225 to 2.272, at a twentieth of the "
        "bytes: that the length of a round matters little holds. That DiLoCo is level with data-parallel training on "
        "the "
        "same tokens does not: 1.894, in 400 steps from the start and with the same number of trials. One seed.",
        "DiLoCo's loss hardly depends on the number of steps in a round, and is level with data-parallel training.",
        "loss_against_bytes",
    ),
    "time_under_stragglers": Standing(
        "time_under_stragglers.py",
        "Tandon et al. Gradient Coding. 2016, arXiv 1612.03301; Chen et al. Revisiting Distributed Synchronous SGD. "
        "2016, "
        "arXiv 1604.00981.",
        "reproduced in part",
        "Where workers are slow, not waiting for four of sixteen takes a quarter to two thirds of the time of waiting "
        "for all, and the dynamic rule 13 to 31 per cent less than it. Of the codes M-SGC costs the least on even "
        "workers and gains in bursts; plain codes and SR-SGC gain where the same two are slow. On examples that are "
        "exchangeable no code beats backup workers.",
        "Gradient coding and backup workers save time where some workers are slow.",
    ),
    "metagradient": Standing(
        "metagradient.py",
        "Engstrom et al. Optimizing ML Training with Metagradient Descent. 2025, arXiv 2503.13751.",
        "reproduced in part",
        "Of 1037 weights of training images, metagradients find far better ones than random search with the same "
        "compute; of six learning rates random search finds slightly better ones.",
        "Metagradients find better hyperparameters than random search with the same compute.",
    ),
    "multitask": Standing(
        "multitask.py",
        "Quinton, Rey. Jacobian Descent for Multi-Objective Optimization. 2024, arXiv 2406.16232; Yu et al. Gradient "
        "Surgery for Multi-Task Learning. 2020, arXiv 2001.06782.",
        "reproduced in part",
        "Thirteen aggregators beat the plain mean on four or five of five seeds, but so do constant weights that "
        "correct the sizes of the losses: what they win is about what any such correction wins.",
        "Aggregators that resolve conflicts, such as UPGrad, beat the mean of the gradients on conflicting tasks.",
        figure=False,
    ),
    "large_batch": Standing(
        "large_batch.py",
        "You et al. Large Batch Optimization for Deep Learning. 2019, arXiv 1904.00962; Nado et al. A Large Batch "
        "Optimizer Reality Check. 2021, arXiv 2102.06356.",
        "not reproduced here",
        "LARS and LAMB do not beat a tuned AdamW at any batch size on this convolutional network, and are level "
        "with SGD from 512 examples on.",
        "LARS and LAMB beat tuned generic optimizers at large batch sizes (a convolutional network).",
    ),
    "large_batch_bytelm": Standing(
        "large_batch.py",
        "You et al. Large Batch Optimization for Deep Learning. 2019, arXiv 1904.00962; Nado et al. A Large Batch "
        "Optimizer Reality Check. 2021, arXiv 2102.06356.",
        "not reproduced here",
        "On the byte-level language model LARS and LAMB are far ahead of SGD and not ahead of AdamW.",
        "LARS and LAMB beat tuned generic optimizers at large batch sizes (a language model).",
    ),
    "noise_scale": Standing(
        "large_batch.py",
        "McCandlish et al. An Empirical Model of Large-Batch Training. 2018, arXiv 1812.06162.",
        "reproduced in part",
        "On the convolutional network the gradient noise scale, measured along runs of AdamW at four batch sizes, is "
        "117 "
        "to 278 examples, and the critical batch sizes fitted to steps to target are 81 for AdamW and 37 for SGD: the "
        "right order of magnitude, too large by a factor of 1.4 to 7.5.",
        "The gradient noise scale predicts the critical batch size.",
        "large_batch",
    ),
    "soap_shampoo": Standing(
        "tuned_race.py",
        "Vyas et al. SOAP: Improving and Stabilizing Shampoo using Adam. 2024, arXiv 2409.11321.",
        "reproduced in part",
        "In steps to a held-out loss of 1.8 the order is that of the paper: SOAP 275, Shampoo 325, AdamW 450 "
        "(medians of "
        "five seeds; 39% fewer than AdamW, 15% fewer than Shampoo). In seconds on two cores SOAP at 7.6 is far ahead "
        "of "
        "Shampoo at 18 to 21, and behind AdamW at 6.5, as its steps take twice as long on matrices this small.",
        "SOAP needs fewer steps than Shampoo and than AdamW, and less time than both.",
        "matrix_race_bytelm",
        figure=False,
    ),
}


def page(name: str) -> pages.Page:
    """The page of an experiment, from its script and its results."""
    claim = CLAIMS[name]
    folder, stem = pages.RESULTS.parent, claim.results or name
    title, protocol = pages.docstring(pages.ROOT / "experiments" / claim.script)
    text = (folder / f"{stem}.txt").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (python .*)$", text, re.MULTILINE)
    commands = commands or re.findall(r"^ *(?:\S*/)?(python experiments/[^\[\n]*)", protocol, re.MULTILINE)
    found = re.search(r"jax \d[\d.]*", text)
    versions = found[0] if found else "Versions were not recorded"
    # The command has a place of its own.
    described = "\n\n".join(part for part in protocol.split("\n\n") if "python experiments/" not in part)
    return pages.Page(
        claim=claim.claim or title,
        source=claim.source,
        verdict=claim.verdict,
        found=claim.found,
        protocol=f"{described}\n\nThe verdict was given by reading the results; it was not fixed before them.",
        figure=f"../{stem}.png" if claim.figure else "",
        table=text.strip("\n"),
        command="\n".join(line.strip() for line in commands[:3]),
        versions=f"{versions}; two x86 cores. The results are `experiments/results/{stem}.txt`.",
    )


def write(results: pathlib.Path) -> None:
    """The pages of all experiments."""
    results.mkdir(parents=True, exist_ok=True)
    for name in CLAIMS:
        (results / f"{name}.md").write_text(pages.text_of(page(name)), encoding="utf-8")
