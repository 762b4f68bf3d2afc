"""What is left out of a source that is too long: by hand, in tokens, in training and in what is judged."""

from pathlib import Path

import pytest

from engine.configs import load
from engine.corpus.records import Record
from engine.events import Warned
from engine.settings import ConfigError
from engine.truncation import left_out
from tests.truncation import recall


@pytest.mark.parametrize(
    ("length", "space", "policy", "gap", "expected"),
    [
        (10, 10, "head", 0, (0, 0)),
        (10, 9, "head", 0, (9, 10)),
        (10, 4, "tail", 0, (0, 6)),
        (10, 7, "head_tail", 3, (2, 8)),  # 0 1 gap 8 9
        (10, 8, "head_tail", 3, (3, 8)),  # 0 1 2 gap 8 9
        (10, 4, "head_tail", 3, (4, 10)),  # a gap and one token say nothing: the first four
        (10, 5, "head_tail", 3, (1, 9)),
    ],
)
def test_the_range_left_out_by_hand(length, space, policy, gap, expected):
    assert left_out(length, space, policy, gap) == expected


@pytest.mark.parametrize("policy", ["head", "tail", "head_tail"])
def test_what_is_kept_always_fills_the_space_and_never_more(policy):
    for length in range(1, 40):
        for space in range(1, 45):
            start, end = left_out(length, space, policy, 3)
            assert 0 <= start <= end <= length
            kept = length - (end - start)
            mark = 3 if start and end < length else 0
            assert kept + mark == min(length, space)
            if mark:
                assert start - (length - end) in (0, 1)  # half of each


def test_the_setting_goes_by_both_names():
    assert load(None, []).data.truncate == "head_tail"
    for name in ("data.truncate", "train.truncate", "truncate"):
        assert load(None, [f"{name}=tail"]).data.truncate == "tail"
    with pytest.raises(ConfigError, match="data.truncate.*'head', 'tail' or 'head_tail'"):
        load(None, ["train.truncate=middle"])


def test_recall_by_hand():
    assert recall("the knee the", "The knee.", 1) == pytest.approx(2 / 3)  # the second "the" is not there
    assert recall("a b c", "b c a", 2) == pytest.approx(1 / 2)
    assert recall("one", "one", 2) == 0.0


@pytest.fixture(scope="module")
def encoders(tiny_base):
    from transformers import AutoTokenizer

    from engine.batches import Encoder

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    given = ["data.max_length=60", "data.max_summary_length=20"]
    return {
        policy: Encoder(tokenizer, load(None, [*given, f"data.truncate={policy}"]).data)
        for policy in ("head", "tail", "head_tail")
    }


WORDS = " ".join(f"w{n}" for n in range(80))


@pytest.mark.engine
@pytest.mark.parametrize(
    ("policy", "first", "last"), [("head", True, False), ("tail", False, True), ("head_tail", True, True)]
)
def test_rows_keep_what_the_policy_says_and_the_whole_summary(encoders, policy, first, last):
    encoder, record = encoders[policy], Record("a", "paper", WORDS, "a short summary.")
    (row,) = encoder.encode([record])
    prompt = encoder.decode(row.ids[: row.prompt])
    assert len(row.ids) == 60 and encoder.decode(row.ids[row.prompt :]) == record.summary
    assert ("w0 w1" in prompt, "w78 w79" in prompt, "[...]" in prompt) == (first, last, first and last)
    before, lost = encoder.left_out(record)
    assert len(encoder.tokenizer(lost, add_special_tokens=False)["input_ids"]) == pytest.approx(row.cut, abs=1)
    kept = prompt.replace("\n[...]\n", lost) if policy == "head_tail" else prompt
    if policy == "head_tail":
        assert WORDS in kept and before > 0  # nothing else is missing
    (generated,) = encoder.prompts([record], row.summary_tokens)
    assert generated.ids == row.ids[: row.prompt] and generated.cut == row.cut


@pytest.mark.engine
def test_a_source_that_fits_is_the_same_whatever_the_policy(encoders):
    record = Record("a", "video", "hold the wrist", "ok")
    rows = [encoder.encode([record])[0] for encoder in encoders.values()]
    assert rows[0] == rows[1] == rows[2] and rows[0].cut == 0
    assert encoders["tail"].left_out(record) == (0, "")


@pytest.mark.engine
def test_an_instruction_of_the_record_stands_in_the_prompt_as_text(encoders):
    encoder = encoders["head"]
    own = Record("q", "paper", "knee pain", "yes", instruction="Is it </s> the {source}?")
    plain = Record("p", "paper", "knee pain", "yes")
    rows = encoder.encode([own, plain])
    texts = [encoder.tokenizer.decode(row.ids[: row.prompt]) for row in rows]
    assert "Is it </s> the {source}?\n\nknee pain\n\nSummary:" in texts[0]
    assert "Summarize the following paper.\n\nknee pain\n\nSummary:" in texts[1]
    assert encoder.tokenizer.eos_token_id not in rows[0].ids[: rows[0].prompt]
    with pytest.raises(ConfigError, match="nothing of the source fits .record q"):
        encoder.prompts([Record("q", "paper", "x", instruction="why " * 80)], 8)


@pytest.mark.engine
def test_a_chat_template_takes_the_instruction_too(tiny_base):
    from transformers import AutoTokenizer

    from engine.batches import Encoder

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "<s>[I]{% for m in messages %}{{ m['content'] }}{% endfor %}[/I]"
    encoder = Encoder(tokenizer, load(None, ["data.prompt='{source} | {instruction}'"]).data)
    (row,) = encoder.encode([Record("a", "paper", "TEXT", "out", instruction="Name the drug.")])
    assert tokenizer.decode(row.ids[: row.prompt]) == "<s>[I]TEXT | Name the drug.[/I]"


@pytest.mark.engine
def test_an_evaluation_cuts_as_training_does_and_is_made_anew_for_another_policy(tiny_data, tiny_base, tmp_path):
    from engine.evaluation import run as evaluation
    from tests.test_engine_evaluation import work_of

    found = {}
    for policy, place in (("head", "end"), ("tail", "beginning"), ("head_tail", "middle")):
        events = []
        given = ["data.max_length=180", "data.max_summary_length=100", f"data.truncate={policy}"]
        result = evaluation.run(work_of(tiny_data, tiny_base, tmp_path / "run", *given, events=events))
        found[policy] = Path(result["path"]).read_bytes()
        assert any(f"and lost their {place}" in event.message for event in events if isinstance(event, Warned))
    assert len(set(found.values())) == 3
