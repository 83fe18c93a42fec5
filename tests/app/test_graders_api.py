"""Graders: exact numbers, and a reason where there is none."""

import sys
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.graders.schemas import StringCheck
from app.graders.service import run
from app.graders.similarity import common_subsequence, fuzzy_match, gleu, rouge_l, rouge_n

CHECK = {"type": "string_check", "name": "check", "input": "{{ sample.output_text }}"}
ALIKE = CHECK | {"type": "text_similarity", "name": "alike"}


def check(operation: str, reference: str) -> dict[str, Any]:
    return CHECK | {"operation": operation, "reference": reference}


def alike(metric: str, reference: str) -> dict[str, Any]:
    return ALIKE | {"evaluation_metric": metric, "reference": reference}


def grade(http: httpx.Client, grader: dict[str, Any], sample: str, item: Any = None) -> Any:
    body = {"grader": grader, "model_sample": sample, "item": item}
    answer = http.post("/fine_tuning/alpha/graders/run", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("operation", "reference", "reward"),
    [
        ("eq", "Paris", 1),
        ("eq", "paris", 0),
        ("ne", "paris", 1),
        ("ne", "Paris", 0),
        ("like", "ari", 1),
        ("like", "ARI", 0),
        ("ilike", "ARI", 1),
        ("ilike", "Rome", 0),
    ],
)
def test_strings_are_compared(http: httpx.Client, operation: str, reference: str, reward: float):
    assert grade(http, check(operation, reference), "Paris")["reward"] == reward


def test_templates_read_the_item_and_the_sample(http: httpx.Client):
    grader = check("eq", "{{ item.answers[1].text }}!") | {
        "input": "{{sample.output_json.city}}{{ item.mark }}"
    }
    item = {"answers": [{}, {"text": "Paris"}], "mark": "!"}

    graded = grade(http, grader, '{"city": "Paris"}', item)

    assert graded["reward"] == 1 and graded["metadata"]["scores"] == {"check": 1.0}


@pytest.mark.parametrize(
    ("reference", "sample", "error"),
    [
        ("{{ item.nothing }}", "x", "invalid_variable_error"),
        ("{{ item.list[3] }}", "x", "invalid_variable_error"),
        ("{{ sample.output_json.a }}", "no json", "sample_parse_error"),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_no_reward(
    http: httpx.Client, reference: str, sample: str, error: str
):
    graded = grade(http, check("eq", reference), sample, {"list": []})

    errors = {name for name, value in graded["metadata"]["errors"].items() if value}
    assert (graded["reward"], errors) == (0, {error})


@pytest.mark.parametrize(
    ("metric", "reference", "reward"),
    [
        ("fuzzy_match", "the cat sat", 1),
        ("fuzzy_match", "the bat sat", 20 / 22),
        ("rouge_1", "the cat", 2 * 2 / 5),
        ("rouge_2", "The cat, sat.", 1),
        ("rouge_3", "the cat", 0),
        ("rouge_l", "the dog sat", 4 / 6),
        ("gleu", "the cat sat", 1),
        ("gleu", "the cat ran", 3 / 6),
    ],
)
def test_similarity_is_exact(http: httpx.Client, metric: str, reference: str, reward: float):
    assert grade(http, alike(metric, reference), "the cat sat")["reward"] == pytest.approx(reward)


def test_an_endless_index_names_nothing(http: httpx.Client):
    graded = grade(http, check("eq", "{{ item[%s] }}" % ("9" * 5000)), "x", [1])

    assert graded["metadata"]["errors"]["invalid_variable_error"] is True


def test_a_deep_sample_is_graded_or_refused_with_a_sentence():
    """What JSON can be read at some depth may be too deep to write a few calls further in."""
    grader = StringCheck(
        type="string_check",
        name="deep",
        input="{{ sample.output_json }}",
        operation="eq",
        reference="x",
    )
    refused = 0
    for depth in range(200, sys.getrecursionlimit()):
        try:
            run(grader, sample="[" * depth + "]" * depth, item=None)
        except InvalidRequest as error:
            refused += "nested too deeply" in error.message

    assert refused > 0


@pytest.mark.parametrize("metric", ["cosine", "bleu", "meteor"])
def test_a_metric_that_is_not_exact_here_is_refused_with_another(http: httpx.Client, metric: str):
    answer = http.post("/fine_tuning/alpha/graders/validate", json={"grader": alike(metric, "x")})

    assert answer.status_code == 400 and "use " in answer.text
    assert answer.json()["error"]["param"] == "grader.evaluation_metric"


@pytest.mark.parametrize(
    "grader",
    [
        {"type": "python", "name": "p", "source": "def grade(sample, item): return 1.0"},
        {"type": "score_model", "name": "s", "model": "gpt-4o", "input": []},
        {"type": "multi", "name": "m", "graders": {}, "calculate_output": "a + b"},
    ],
)
@pytest.mark.parametrize("call", ["run", "validate"])
def test_what_does_not_run_here_is_refused_with_the_reason(
    http: httpx.Client, grader: dict[str, Any], call: str
):
    body = {"grader": grader} | ({"model_sample": "x"} if call == "run" else {})

    answer = http.post(f"/fine_tuning/alpha/graders/{call}", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "grader.type" and ": " in answer.text


def test_a_template_of_a_strange_namespace_is_refused(http: httpx.Client):
    body = {"grader": check("eq", "{{ environment.HOME }}")}

    answer = http.post("/fine_tuning/alpha/graders/validate", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "grader.reference"


@pytest.mark.parametrize(
    "template",
    ["{{" + " " * 99_996 + "}}", "{{" + " " * 99_000, "{{" * 50_000, "{{ item" * 14_000],
    ids=["spaces", "spaces without an end", "braces", "variables without an end"],
)
def test_a_template_that_means_harm_is_answered(http: httpx.Client, template: str):
    """Each took hours where a pattern could go back on what it had read."""
    body = {"grader": check("eq", template)}

    answer = http.post("/fine_tuning/alpha/graders/validate", json=body)

    assert answer.status_code == (400 if template.endswith("}}") else 200)


def test_texts_have_a_longest(http: httpx.Client):
    body = {"grader": alike("rouge_l", "x"), "model_sample": "x " * 60_000}

    answer = http.post("/fine_tuning/alpha/graders/run", json=body)

    assert answer.status_code == 400 and "too long" in answer.text


def test_a_text_is_given_up_at_the_first_piece_too_many(http: httpx.Client):
    grader = check("eq", "{{ sample.output_text }}{{ item.never_reached }}")

    answer = http.post(
        "/fine_tuning/alpha/graders/run",
        json={"grader": grader | {"input": "x"}, "model_sample": "x" * 100_001, "item": {}},
    )

    assert answer.status_code == 400 and "too long" in answer.text


def test_the_official_client_runs_and_validates(client: openai.OpenAI):
    graders = client.fine_tuning.alpha.graders

    validated = graders.validate(grader=check("eq", "Paris"))
    graded = graders.run(grader=check("eq", "{{ item.a }}"), model_sample="x", item={"a": "x"})

    assert validated.grader is not None and validated.grader.type == "string_check"
    assert graded.reward == 1 and graded.metadata.name == "check"


def longest(a: str, b: str) -> int:
    """The textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for index, y in enumerate(b):
            row[index + 1] = before[index] + 1 if x == y else max(before[index + 1], row[index])
    return row[-1]


@given(st.text("abc", max_size=80), st.text("abc", max_size=80))
def test_the_common_subsequence_is_the_textbooks(a: str, b: str):
    assert common_subsequence(a, b) == longest(a, b)


@given(st.text(max_size=30), st.text(max_size=30))
def test_every_measure_lies_between_0_and_1_and_knows_itself(a: str, b: str):
    measures = [fuzzy_match, rouge_l, gleu, *(lambda x, y, n=n: rouge_n(x, y, n) for n in (1, 5))]

    for measure in measures:
        assert 0 <= measure(a, b) <= 1
        assert measure(a, a) == 1
