"""Scores against sacreBLEU called directly, and against known answers."""

import json

import pytest
import sacrebleu

from regard.core.errors import InputError
from regard.core.serial import to_json
from regard.evaluate.translation import evaluate
from regard.generate.decode import greedy
from regard.tasks.translate import score

PAIRS = [
    ("a man rides a horse", "Ein Mann reitet auf einem Pferd."),
    ("two dogs play in the snow", "Zwei Hunde spielen im Schnee."),
    ("a girl reads", "Ein Mädchen liest ein Buch."),
]
OUTPUTS = ["Ein Mann reitet auf dem Pferd.", "Zwei Hunde spielen im Schnee.", "ein Mädchen liest ein Buch."]


class Memory:
    """Answers from a table, where a trained model is beside the point."""

    def predict(self, model, sources, method):
        assert method is greedy
        return iter([dict(zip([p[0] for p in PAIRS], OUTPUTS, strict=True))[source] for source in sources])


def test_scores_are_sacrebleus():
    result = evaluate(Memory(), None, PAIRS, greedy)
    references = [[target for _, target in PAIRS]]
    assert result.scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(OUTPUTS, references).score)
    assert result.scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(OUTPUTS, references).score)
    assert result.scores["exact_match"] == pytest.approx(1 / 3)
    assert result.outputs == OUTPUTS
    assert "case:mixed" in result.signatures["bleu"]
    assert "tok:13a" in result.signatures["bleu"]
    assert "chrF2" in result.signatures["chrf"] or "nc:6" in result.signatures["chrf"]
    assert json.loads(json.dumps(to_json(result)))["num_examples"] == 3


def test_the_right_answers_score_full():
    references = [target for _, target in PAIRS]
    assert score(references, references)[0] == pytest.approx({"bleu": 100, "chrf": 100, "exact_match": 1})
    assert score(["", "", ""], references)[0]["exact_match"] == 0


def test_nothing_to_evaluate_on():
    with pytest.raises(InputError, match="no pairs"):
        evaluate(Memory(), None, [])
