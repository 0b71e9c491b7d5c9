"""archport.compat as the body of a SetFit model: its head is trained and predicts; the body stays as it is."""

import numpy as np
import pytest
from setfit import SetFitModel
from sklearn.linear_model import LogisticRegression

import archport  # noqa: F401
from archport.compat import SentenceTransformer

TEXTS = ["a cat sleeps", "the dog barks", "a kitten naps", "interest rates rose", "the bank lends", "shares fell"]
LABELS = [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def model():
    return SetFitModel(model_body=SentenceTransformer("all-MiniLM-L6-v2"), model_head=LogisticRegression())


def test_a_head_is_trained_and_predicts(model):
    model.fit(TEXTS, LABELS, num_epochs=1)
    assert np.asarray(model.predict(["a puppy runs", "the price of bonds"])).tolist() == [0, 1]
    assert np.asarray(model.predict_proba(["a puppy runs"])).shape == (1, 2)


def test_training_the_body_is_refused_in_words(model):
    with pytest.raises(AttributeError, match="neither trains nor saves"):
        model.model_body.parameters()
