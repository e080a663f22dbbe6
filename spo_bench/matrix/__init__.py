"""The spec file, its expansion into cells, and the plan of stages with their keys."""
