import hypothesis
import pytest

# Machines are noisy: how long an example takes is never a failure.
hypothesis.settings.register_profile("noisy", deadline=None)
hypothesis.settings.load_profile("noisy")


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """What tests tokenise is not kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """Sixty pairs of numbers, spelled and written."""
    ones = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pairs = [(f"{ones[i // 10]} {ones[i % 10]}", f"{i // 10} {i % 10}") for i in range(60)]
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_options(pairs_file):
    """Options of ``regard train translate`` that make it a matter of a second."""
    options = {
        "model.embed-dim": 16, "model.ffn-dim": 32, "model.num-heads": 2, "model.max-seq-len": 64,
        "model.num-encoder-layers": 1, "model.num-decoder-layers": 2,
        "data.train": pairs_file, "data.vocab-size": 300, "data.num-scored": 2,
        "num-steps": 4, "valid-every": 2, "log-every": 1,
    }  # fmt: skip
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_options):
    """A finished run of the smallest recipe; tests only read it."""
    from regard.cli import main

    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "translate", *tiny_options, "--out", str(run), "--quiet"]) == 0
    return run


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """No colours and a fixed width, wherever the tests run."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
