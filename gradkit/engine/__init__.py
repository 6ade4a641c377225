"""What methods are built with, and users never call.

`core` makes transformations; `extras` is the table of what their `update` is given; `keys`, `accumulators`, `codecs`,
`sums` and `norms` are their pieces; `placement`, `matrices`, `tensors`, `blocks`, `works`, `owned`, `per_parameter` and
`refreshes` share the work on matrices out over a mesh, and keep its state.
"""
