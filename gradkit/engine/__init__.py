"""What methods are built with, and users never call.

`core` makes transformations; `extras` is the table of what their `update` is given; `keys`, `accumulators`, `codecs`,
`sums` and `norms` are their pieces. Methods that work on matrices or tensors have one planner and one mapper:

    planning     plan_stacks: leaves -> a plan of stacks (`stacks`), sharded as `placement` and `shards` say
    fields       init_fields: the state (`parts`), under the names of parameters or with the owners of stacks (`owned`)
    mapping      map_stacks: leaves -> stacks (`exchange`) -> one call per stack -> leaves; apply_to_matrices
    blocks, kronecker, refreshes     what the functions of a stack are made of
"""
