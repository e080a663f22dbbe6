"""One file a stage: data → sft → reference → train → generate → score → judge. Each is a function: inputs + config -> artifact."""
