"""Reading and writing checkpoints: exact or an error."""
