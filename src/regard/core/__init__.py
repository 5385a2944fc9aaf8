"""What every other room stands on: the types at the seams, errors, and dataclasses as JSON."""
