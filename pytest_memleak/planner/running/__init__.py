"""Plans carried out, by torch's own means: what blocks save, where weights lie, and whose optimizer steps where."""
