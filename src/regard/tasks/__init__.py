"""One file per task: what an example is, how it is encoded, decoded and scored."""
