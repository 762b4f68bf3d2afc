"""The table of job kinds: which function of the engine does the work. Light: modules are named, not imported."""

# Each function takes an engine.work.Work and returns a dict of facts, which go into result.json.
KINDS = {
    "base": ("engine.base", "run"),
    "phase": ("engine.train", "run"),
    "evaluate": ("engine.evaluation.run", "run"),
    "fisher": ("engine.consolidate", "run"),
}
