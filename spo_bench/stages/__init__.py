"""One file a stage, each a function from inputs and config to an artifact."""
