"""Pictures and figures of what a model attends to."""
