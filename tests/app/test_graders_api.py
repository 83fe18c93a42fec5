"""Graders: exact numbers, and a reason where there is none."""

import sys
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.graders.numbers import last_number
from app.graders.schemas import StringCheck
from app.graders.service import check_grader
from app.graders.service import grade as graded_by
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
            graded_by(grader, sample="[" * depth + "]" * depth, item=None)
        except InvalidRequest as error:
            refused += "nested too deeply" in error.message

    assert refused > 0


def number_match(reference: str, **beside: Any) -> dict[str, Any]:
    return CHECK | {"type": "number_match", "reference": reference} | beside


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("3 apples and 4 pears make 7", "7"),
        ("so 5\n#### 1,234.50 dollars", "1234.50"),
        ("#### 72", "72"),
        ("it is 9\n####", None),
        ("5-3", "3"),
        ("x = -3", "-3"),
        ("x = \u22123", "-3"),
        ("a loss of -$1,000,000", "-1000000"),
        ("f(2)-1", "1"),
        (".5", "0.5"),
        ("1e5", "100000"),
        ("about 1,2", "2"),
        (r"\boxed{17}", "17"),
        ("50%", "50"),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_last_number_is_the_answer(text: str, number: str | None):
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("sample", "reference", "beside", "reward"),
    [
        ("#### 1,000", "He has 1000.0 left. #### 1000", {}, 1),
        ("#### 1000.1", "1000", {}, 0),
        ("0.3", "0.2", {"tolerance": 0.1}, 1),
        ("0.31", "0.2", {"tolerance": 0.1}, 0),
        ("-5", "5", {}, 0),
        ("no number", "5", {"tolerance": 9}, 0),
        ("1" * 90 + "0", "1" * 90 + "1", {}, 0),
    ],
)
def test_numbers_are_compared_as_numbers(
    http: httpx.Client, sample: str, reference: str, beside: dict[str, Any], reward: float
):
    grader = number_match("{{ item.answer }}", **beside)

    assert grade(http, grader, sample, {"answer": reference})["reward"] == reward


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.text("abc .\n"))
def test_a_number_is_found_behind_whatever_is_said(number: Decimal, said: str):
    assert last_number(f"{said} {number:,f} {said}".rstrip(".")) == number


def test_the_last_message_of_a_row_can_be_the_reference(http: httpx.Client):
    item = {
        "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    }

    grader = number_match("{{ item.messages[-1].content }}")

    assert grade(http, grader, "it is 2", item)["reward"] == 1


def multi(formula: str, **graders: dict[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


def test_a_formula_weighs_several_graders(http: httpx.Client):
    grader = multi("0.7 * right + 0.3 * max(alike, 0.5) ^ 2", right=check("eq", "a cat"))
    grader["graders"]["alike"] = alike("rouge_1", "a dog")

    graded = grade(http, grader, "a cat")

    assert graded["reward"] == pytest.approx(0.7 + 0.3 * 0.25)
    assert graded["sub_rewards"] == {"right": 1.0, "alike": 0.5}
    assert graded["metadata"]["scores"] == graded["sub_rewards"] | {"all": graded["reward"]}
    assert graded["metadata"]["type"] == "multi"


def test_one_grader_alone_is_known_by_its_own_name(http: httpx.Client):
    grader = multi("1 - check") | {"graders": check("eq", "x")}

    assert grade(http, grader, "y")["reward"] == 1


def test_a_formula_without_a_value_is_no_reward(http: httpx.Client):
    graded = grade(http, multi("1 / a", a=check("eq", "x")), "y")

    errors = {name for name, value in graded["metadata"]["errors"].items() if value}
    assert (graded["reward"], errors) == (0, {"formula_parse_error"})


def test_a_formula_rewards_nothing_for_a_template_that_cannot_be_filled_in(http: httpx.Client):
    graded = grade(http, multi("1 - a", a=check("eq", "{{ item.nothing }}")), "x", {})

    assert graded["reward"] == 0 and graded["sub_rewards"] == {"a": 0}
    assert graded["metadata"]["errors"]["invalid_variable_error"] is True


@pytest.mark.parametrize(
    ("grader", "param", "reason"),
    [
        (multi("a + b", a=check("eq", "x")), "calculate_output", "the name 'b' is none"),
        (multi("a +", a=check("eq", "x")), "calculate_output", "cannot be read"),
        (multi("a.real", a=check("eq", "x")), "calculate_output", "not offered"),
        (multi("min + 1", min=check("eq", "x")), "graders", "cannot be called min"),
        (multi("a", a=check("eq", "{{ x }}")), "graders.a.reference", "neither item nor sample"),
        (multi("a", a=alike("bleu", "x")), "graders.a.evaluation_metric", "use gleu"),
        (
            multi("p", p={"type": "python", "name": "p", "source": ""}),
            "graders.p.type",
            "a stranger's program",
        ),
        (multi("a"), "graders", "at least 1"),
        (multi("a", a=check("eq", "x") | {"operation": "gt"}), "graders.a.operation", "'eq'"),
        (multi("a", **{"a b": check("eq", "x")}), "graders", "pattern"),
        (number_match("1", tolerance=-1), "tolerance", "greater than or equal"),
        (number_match("1", colour=1), "colour", "not permitted"),
        ({"type": "guess"}, "", "guess"),
        ({}, "", "type"),
    ],
)
def test_a_job_is_told_what_is_wrong_with_its_grader_and_where(
    grader: dict[str, Any], param: str, reason: str
):
    with pytest.raises(InvalidRequest, match=reason) as refused:
        check_grader(grader)

    where = f"method.reinforcement.grader.{param}".rstrip(".")
    assert refused.value.param is not None and refused.value.param.startswith(where)


def test_a_jobs_grader_grades():
    grader = check_grader(multi("a", a=number_match("{{ item.answer }}")))

    graded = graded_by(grader, sample="so it is 4", item={"answer": "4"})

    assert (graded.reward, graded.sub_rewards) == (1.0, {"a": 1.0})


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
        {"type": "label_model", "name": "l", "model": "gpt-4o", "input": [], "labels": ["a"]}
        | {"passing_labels": ["a"]},
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


@pytest.mark.parametrize("name", [{}, [], 5, None])
def test_one_grader_alone_whose_name_is_no_name_is_refused(http: httpx.Client, name: Any):
    grader = multi("1") | {"graders": check("eq", "x") | {"name": name}}

    refused = http.post(
        "/fine_tuning/alpha/graders/run", json={"grader": grader, "model_sample": "x"}
    )

    assert refused.status_code == 400, refused.text
