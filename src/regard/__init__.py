"""Every Transformer, one attention."""
