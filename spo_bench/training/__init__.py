"""The bundled trainer: one loop for every method, over batches packed as token tries."""
