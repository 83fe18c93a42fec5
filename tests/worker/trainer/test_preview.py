"""Models that are tried: loaded once, kept within bounds, and answering as plain PEFT does."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from app.previews.spec import Question
from tests.previews import chat_text, generated, make_adapter
from tests.worker.trainer.runs import run_of, train_here
from worker.dialogue import Show
from worker.rundir import Placement
from worker.trainer.chat import render_prompt
from worker.trainer.faults import RunError
from worker.trainer.generate import Made, Until, Words, generate
from worker.trainer.loaded import MOST_TRAINED, Cache

GIB = 1 << 30


def show(model: Path, trained: Path | None = None, *, task: Any = "causal", **asked: Any) -> Show:
    question = {
        "messages": None,
        "prompt": None,
        "max_tokens": 12,
        "temperature": 0,
        "top_p": 1,
        "seed": None,
        "stop": (),
    }
    return Show(
        id="p",
        base=Placement(source="folder", location=str(model), revision=None),
        task=task,
        trained=str(trained) if trained else None,
        context_length=256,
        question=Question.model_validate(question | asked),
        limit_s=60,
    )


def answer(
    cache: Cache,
    asked: Show,
    *,
    stop: threading.Event | None = None,
    told: list[str] | None = None,
    ends_at: float | None = None,
) -> Made:
    return generate(
        cache.get(asked),
        asked.question,
        task=asked.task,
        context_length=asked.context_length,
        ends_at=time.monotonic() + 60 if ends_at is None else ends_at,
        stop=stop or threading.Event(),
        tell=(told if told is not None else []).append,
    )


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return models_dir / "tiny-llama"


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(model, folder / f"a{seed}", seed=seed) for seed in range(2)]


def test_adapters_share_their_base_and_leave_it_as_it_was(model: Path, adapters: list[Path]):
    cache = Cache(GIB)
    before = answer(cache, show(model, prompt="Hello")).text

    tuned = [answer(cache, show(model, each, prompt="Hello")).text for each in adapters]

    assert len({before, *tuned}) == 3
    assert answer(cache, show(model, prompt="Hello")).text == before
    assert tuned == [generated(model, each, "<s>Hello", max_tokens=12) for each in adapters]
    base = cache.get(show(model, prompt="")).model
    twin = cache.get(show(model, adapters[0], prompt="")).model
    shared = {tensor.data_ptr() for tensor in base.parameters()}
    assert shared <= {tensor.data_ptr() for tensor in twin.parameters()}


def test_a_model_is_loaded_once(model: Path, adapters: list[Path]):
    cache = Cache(GIB)

    first, again = (cache.get(show(model, adapters[0], prompt="")) for _ in range(2))

    assert first is again


def test_the_adapter_that_was_asked_longest_ago_makes_room(model: Path, adapters: list[Path]):
    sizes = Cache(GIB)
    sizes.get(show(model, adapters[0], prompt=""))
    cache = Cache(sizes.size_bytes + 8000)
    first = cache.get(show(model, adapters[0], prompt=""))

    cache.get(show(model, adapters[1], prompt=""))

    assert cache.size_bytes <= sizes.size_bytes + 8000
    assert cache.get(show(model, adapters[0], prompt="")) is not first


def test_no_more_than_a_few_adapters_are_kept(model: Path, adapters: list[Path], tmp_path: Path):
    cache = Cache(GIB)
    for number in range(MOST_TRAINED + 1):
        link = tmp_path / f"adapter-{number}"
        link.symlink_to(adapters[0])
        cache.get(show(model, link, prompt=""))

    (family,) = cache._families.values()
    assert next(iter(family.trained)) == "adapter-1" and len(family.trained) == MOST_TRAINED


def test_a_model_larger_than_the_cache_is_refused_before_it_is_read(model: Path):
    with pytest.raises(RunError, match="BASIN_PREVIEW_CACHE_BYTES"):
        Cache(1000).get(show(model, prompt=""))


def test_another_base_takes_the_place_of_the_first(models_dir: Path, model: Path):
    sizes = Cache(GIB)
    sizes.get(show(model, prompt=""))
    t5 = show(models_dir / "tiny-t5", task="seq2seq", prompt="Hello")
    sizes.get(t5)
    cache = Cache(sizes.size_bytes - 1)
    cache.get(show(model, prompt=""))

    answer(cache, t5)

    assert len(cache._families) == 1


def test_a_model_of_the_hub_that_was_never_downloaded_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = show(Path("x"), prompt="")
    there = Placement(source="hub", location="nobody/nothing", revision=None)

    with pytest.raises(RunError, match="nobody/nothing is not on this worker yet"):
        Cache(GIB).get(asked.model_copy(update={"base": there}))


def test_a_trained_encoder_decoder_answers_as_plain_peft_does(models_dir: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    run = train_here(
        run_of("seq2seq", models_dir, tmp_path / "run", training={"learning_rate": 3e-2})
    )
    base = models_dir / "tiny-t5"
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    plain = PeftModel.from_pretrained(
        AutoModelForSeq2SeqLM.from_pretrained(base), str(run.adapter)
    ).eval()
    ids = tokenizer("Is 3 even or odd?", return_tensors="pt")
    made = plain.generate(**ids, max_new_tokens=12, do_sample=False)[0]
    chat = [{"role": "user", "content": "Is 3 even or odd?"}]

    said = [
        answer(Cache(GIB), show(base, run.adapter, task="seq2seq", **asked)).text
        for asked in ({"prompt": "Is 3 even or odd?"}, {"messages": chat})
    ]

    expected = tokenizer.decode(made, skip_special_tokens=True).replace("\0", "\ufffd")
    assert said == [expected, expected]


def test_what_is_told_in_pieces_is_the_answer(model: Path):
    told: list[str] = []

    made = answer(Cache(GIB), show(model, prompt="Hello", max_tokens=60), told=told)

    assert len(told) > 1 and "".join(told) == made.text and made.completion_tokens == 60


def test_an_answer_goes_as_far_as_the_context(model: Path):
    made = answer(Cache(GIB), show(model, prompt="x" * 250, max_tokens=60))

    assert (made.prompt_tokens, made.completion_tokens, made.finish_reason) == (251, 5, "length")


def test_an_answer_breaks_off_when_nobody_waits(model: Path):
    stop = threading.Event()
    stop.set()

    made = answer(Cache(GIB), show(model, prompt="x", max_tokens=200), stop=stop)

    assert made.completion_tokens == 1 and made.finish_reason == "length"


def test_an_answer_ends_with_its_time():
    words = Words(Letters(), (), print, before=[])
    now = time.monotonic()

    over, under = (
        Until(words, ends_at, threading.Event())(torch.tensor([[1]]), None).tolist()
        for ends_at in (now - 1, now + 1000)
    )

    assert (over, under) == ([True], [False])


def test_a_model_that_was_loaded_too_late_is_told_so(model: Path):
    with pytest.raises(RunError, match="it is there now") as caught:
        answer(Cache(GIB), show(model, prompt="x"), ends_at=time.monotonic() - 1)

    assert caught.value.code == "service_unavailable"


def test_a_template_that_refuses_a_conversation_is_quoted(model: Path):
    cache = Cache(GIB)
    asked = show(model, messages=({"role": "user", "content": "Hello"},))
    cache.get(asked).tokenizer.chat_template = "{{ raise_exception('one user only') }}"

    with pytest.raises(RunError, match="one user only") as caught:
        answer(cache, asked)

    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")


def test_a_conversation_is_put_as_it_is_learned(adapters: list[Path], model: Path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ]
    plain = [messages[0], {"role": "user", "content": "Hello"}]
    tokenizer = Cache(GIB).get(show(model, adapters[0], prompt="")).tokenizer

    text = render_prompt(messages, tokenizer)

    assert text == chat_text(adapters[0], plain) and text.endswith("User: Hello\nAssistant: ")


class Letters:
    """A tokenizer of bytes: a token is one, so that a character may come in pieces."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace")


def told_by(text: str, *stops: str) -> tuple[list[str], Words]:
    told: list[str] = []
    words = Words(Letters(), stops, told.append, before=[])
    words.put(torch.tensor([[1, 2]]))  # the prompt
    for byte in text.encode():
        if not words.stopped:
            words.put(torch.tensor([byte]))
    words.end()
    return told, words


def test_half_a_character_is_held_back():
    told, _ = told_by("né€🙂")

    assert told == ["n", "é", "€", "🙂"]


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none():
    told, words = told_by("a END or ENTER", "END.", "ENTIRE")

    assert "".join(told) == "a END or ENTER" and not words.stopped
    assert "END" not in told[:5] and told[:3] == ["a", " ", "END "]


def test_nothing_is_told_of_a_stop_string_or_what_follows():
    told, words = told_by("one\n\ntwo", "\n\n")

    assert "".join(told) == "one" == words.text and words.stopped
