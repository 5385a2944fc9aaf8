"""The same examples at every run, and no deadline: machines are slow at times."""

from hypothesis import settings

settings.register_profile("generate", deadline=None, derandomize=True)
settings.load_profile("generate")
