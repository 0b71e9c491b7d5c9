"""The tasks that come with archport: whole, and with the right answers in them."""

from typing import get_args

import pytest

from archport.contract import InputError
from archport.evaluation.tasks import Graded, Kind, Retrieval, bundled


@pytest.mark.parametrize("kind", get_args(Kind))
def test_no_text_is_empty_or_given_two_times(kind):
    task = bundled(kind)
    if isinstance(task, Retrieval):
        rows = [*task.documents, *task.queries]
    else:
        rows = list(zip(task.first, task.second, strict=True))
        assert all(first.strip() and second.strip() and first != second for first, second in rows)
    assert len(set(rows)) == len(rows)


def test_every_query_has_documents_that_are_there():
    task = bundled("retrieval")
    assert isinstance(task, Retrieval)
    assert len(task.queries) == len(task.relevant)
    assert all(rows and 0 <= min(rows) and max(rows) < len(task.documents) for rows in task.relevant)


def test_grades_are_on_their_scales():
    scored, same = bundled("sts"), bundled("pairs")
    assert isinstance(scored, Graded)
    assert isinstance(same, Graded)
    assert 0 <= min(scored.grades) < max(scored.grades) <= 5
    assert set(same.grades) == {0.0, 1.0}


def test_another_task_is_refused():
    with pytest.raises(InputError, match="retrieval, sts, pairs"):
        bundled("mteb")  # pyright: ignore[reportArgumentType]
