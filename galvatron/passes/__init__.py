"""The passes, in the order in which the default pipeline runs them.

`PASSES` names each pass and the class behind it, which is imported when it is first used; other packages add theirs
through the entry point group `galvatron.passes`. `galvatron.passes.pipeline` makes pipelines of them,
`galvatron.passes.base` says what a pass is.
"""

PASSES: dict[str, str] = {
    # captured → captured: one spelling per computation; mean losses become sum and count
    "normalize": "galvatron.passes.frontend.normalize:Normalize",
    # captured → captured: several ops that one op can do are that op; constant masks become `is_causal` or none
    "fuse": "galvatron.passes.frontend.fuse:Fuse",
    # captured → captured: terms of the loss without samples count once, however many micro-batches there are
    "count-once": "galvatron.passes.frontend.count_once:CountOnce",
    # captured → clustered: layers, and the classes that equal layers share
    "cluster-layers": "galvatron.passes.frontend.cluster_layers:ClusterLayers",
    # clustered → costed: FLOP, traffic and saved bytes per layer class, on a given cluster
    "annotate-costs": "galvatron.passes.planning.annotate_costs:AnnotateCosts",
    # costed → candidates: every leaf of the decision tree of strategies
    "enumerate-strategies": "galvatron.passes.planning.enumerate_strategies:EnumerateStrategies",
    # candidates → candidates: without the leaves that cannot win, each with the rule that cut it
    "prune": "galvatron.passes.planning.prune:Prune",
    # candidates → planned: stages, micro-batches and a strategy per layer, within the memory budget
    "search": "galvatron.passes.planning.search:Search",
    # costed → planned: a plan that is given, instead of the last three
    "use-plan": "galvatron.passes.planning.use_plan:UsePlan",
    # planned → sharded: each class becomes the local graph of one rank, collectives included
    "shard": "galvatron.passes.lower.shard:Shard",
    # sharded → sharded: collectives between layers whose layouts differ
    "redistribute": "galvatron.passes.lower.redistribute:Redistribute",
    # sharded → sharded: collectives of layers run beside computation where that pays
    "overlap": "galvatron.passes.planning.overlap:Overlap",
    # sharded → staged: what each stage runs, receives, sends and keeps
    "split-stages": "galvatron.passes.lower.split_stages:SplitStages",
}

FRONT_END = ("normalize", "fuse", "count-once", "cluster-layers")
PLANNING = ("annotate-costs", "enumerate-strategies", "prune", "search")
LOWERING = ("shard", "redistribute", "overlap", "split-stages")
