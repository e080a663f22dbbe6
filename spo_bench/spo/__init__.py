"""SPO: key content of an answer, degraded copies, the head that tells their degree, and its loss."""
