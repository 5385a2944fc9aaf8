"""The parts every Transformer is composed of: norms, feed-forwards, residuals, embeddings, heads."""
