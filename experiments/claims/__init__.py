"""Claims of the literature, run again with tuned baselines and several seeds; `python -m experiments.claims` runs them.

One module per claim. The first paragraph of its docstring is the claim, the others are the protocol and the rule of
the verdict, which a function of the module applies to the results; both are committed before the runs. `protocol` runs
and keeps them, `tuning` compares, `showing` has tables and figures, `small` small problems; `standing` has the claims
whose experiments were written before, and `pages` writes and reads the pages.
"""
