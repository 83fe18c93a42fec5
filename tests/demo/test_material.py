"""The user's own model and rows: taken as they are, or refused with a sentence."""

import json
from pathlib import Path

import pytest

from demo.material import MOST_HELD_OUT, Base, offer, own_base, own_rows, split, to_jsonl
from demo.service import DemoError
from tests.factories import chat_row, jsonl


def written(folder: Path, content: bytes) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    return path


def test_a_tenth_is_held_out_and_nothing_is_lost_or_seen_twice(tmp_path):
    rows = own_rows(written(tmp_path, jsonl(200)))

    assert len(rows.valid) == 20
    every = [json.dumps(row) for row in [*rows.train, *rows.valid]]
    assert sorted(every) == sorted(json.dumps(chat_row(number)) for number in range(200))


def test_the_same_rows_are_always_split_alike(tmp_path):
    path = written(tmp_path, jsonl(50))

    assert own_rows(path) == own_rows(path)


@pytest.mark.parametrize(("rows", "held_out"), [(20, 10), (99, 10), (300, 30), (9000, 128)])
def test_few_rows_hold_out_ten_and_many_no_more_than_can_be_scored(rows, held_out):
    assert len(split([chat_row(number) for number in range(rows)]).valid) == held_out
    assert held_out <= MOST_HELD_OUT


def test_prompts_and_completions_are_rows_too(tmp_path):
    lines = [{"prompt": f"{n} + {n} =", "completion": f" {2 * n}"} for n in range(30)]

    rows = own_rows(written(tmp_path, to_jsonl(lines)))

    assert len(rows.train) == 20
    assert set(rows.valid[0]) == {"prompt", "completion"}


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DemoError, match=r"Cannot read DATA .*nowhere.jsonl: No such file"):
        own_rows(tmp_path / "nowhere.jsonl")


def test_too_few_rows_are_counted(tmp_path):
    with pytest.raises(DemoError, match="has 19 rows; 20 are needed"):
        own_rows(written(tmp_path, jsonl(19)))


def test_a_bad_row_is_told_by_its_line_in_the_users_file(tmp_path):
    with pytest.raises(DemoError, match="line 31: not JSON"):
        own_rows(written(tmp_path, jsonl(30) + b"{oops\n"))


def test_a_model_folder_goes_by_its_name(models_dir):
    base = own_base(str(models_dir / "tiny-llama"))

    assert base == Base(name="tiny-llama", location=str(models_dir / "tiny-llama"))
    assert base.hub_models == []


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(DemoError, match=r"has no config\.json"):
        own_base(str(tmp_path))


def test_what_is_neither_folder_nor_hub_id_is_refused():
    with pytest.raises(DemoError, match="no folder /no/such/model"):
        own_base("/no/such/model")


def test_a_hub_id_may_carry_a_revision():
    base = own_base("acme/llama@v2")

    assert (base.name, base.revision, base.hub_models) == ("acme/llama", "v2", ["acme/llama@v2"])


def test_a_hub_id_alone_stands_for_its_main_revision():
    assert own_base("acme/llama").hub_models == ["acme/llama"]


def test_the_link_to_a_model_follows_the_last_wish(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for place in ("old", "new"):
        folder = tmp_path / place / "mine"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

        offer(own_base(str(folder)), models)

    assert (models / "mine").resolve() == tmp_path / "new" / "mine"


def test_a_model_that_lies_among_the_models_needs_no_link(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    offer(own_base(str(folder)), tmp_path)

    assert not folder.is_symlink()
