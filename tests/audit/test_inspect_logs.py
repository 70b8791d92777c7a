"""Logs that Inspect itself has written, read as questions."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalError,
    EvalLog,
    EvalSample,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import Score, includes
from inspect_ai.solver import generate
from inspect_ai.tool import ToolCall
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import wherefrom as wf
from tiny_lm import tiny_tokenizer
from wherefrom.audit.inspect_logs import SampleChoice, TracedSample, read_inspect_log
from wherefrom.errors import MissingExtraError, QueryError
from wherefrom.gradients.tokens import render_chat, tokenise, tokenise_query
from wherefrom.records import Document, Message

ANSWERS = (" Paris", "It is not known", "Madrid", "Lisbon")


def output(text: str) -> ModelOutput:
    """Counted, so that the mock model needs no tokenizer from the network."""
    said = ModelOutput.from_content("mockllm/model", text)
    said.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return said


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> EvalLog:
    """Two samples in two epochs, asked and scored by Inspect."""
    folder = tmp_path_factory.mktemp("logs")
    asked = Task(
        dataset=[
            Sample(id="fr", input="Capital of France?", target="Paris"),
            Sample(id=2, input=[ChatMessageUser(content="Capital of Spain?")], target="Madrid"),
        ],
        solver=generate(),
        scorer=includes(),
        name="capitals",
        epochs=2,
    )
    model = get_model("mockllm/model", custom_outputs=[output(text) for text in ANSWERS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of what Inspect stands on; none of it is ours.
        (log,) = evaluate(
            asked,
            model=model,
            log_dir=str(folder),
            display="none",
            max_samples=1,
            score_display=False,
        )
    assert log.status == "success", log.error
    return log


def written(folder: Path, *samples: EvalSample, suffix: str = ".eval", **spec: Any) -> Path:
    """A log with these samples."""
    path = folder / f"made{suffix}"
    log = EvalLog(
        eval=EvalSpec(
            created="2026-01-01T00:00:00+00:00",
            task="made",
            dataset=EvalDataset(),
            config=EvalConfig(),
            **{"model": "mockllm/model", **spec},
        ),
        status="success",
        samples=list(samples),
    )
    write_eval_log(log, str(path))
    return path


def sample(
    said: str | ModelOutput, *before: ChatMessage, number: int = 1, **fields: Any
) -> EvalSample:
    """A sample whose conversation ends with what was said."""
    answer = said if isinstance(said, ModelOutput) else output(said)
    turns = list(before) or [ChatMessageUser(content="Who?")]
    return EvalSample(
        **{
            "id": number,
            "epoch": 1,
            "input": "Who?",
            "target": "me",
            "messages": [*turns, answer.message],
            "output": answer,
            **fields,
        }
    )


def untraced(path: Path, tokenizer: Any = None) -> str:
    """Why nothing in a log can be traced."""
    with pytest.raises(QueryError) as caught:
        read_inspect_log(path, tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def starting_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts a start token before every text, as its chat template does too."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "<s>" + str(tokenizer.chat_template)
    return tokenizer


def test_an_evaluation_is_read_with_its_provenance(evaluated: EvalLog) -> None:
    found = read_inspect_log(evaluated.location)
    assert {(one.sample_id, one.epoch) for one in found} == {
        ("fr", 1),
        ("fr", 2),
        ("2", 1),
        ("2", 2),
    }
    assert len({one.id for one in found}) == 4
    assert {one.query.completion for one in found} == set(ANSWERS)
    for one in found:
        country = "France" if one.sample_id == "fr" else "Spain"
        assert one.query.prompt == f"Capital of {country}?"
        assert (one.task, one.model) == ("capitals", "mockllm/model")
        assert one.eval_id == evaluated.eval.eval_id
        right = one.target in one.query.completion
        assert one.scores == {"includes": "C" if right else "I"}
        assert one.tags["inspect"]["sample_id"] == one.sample_id
        assert one.tags["inspect"]["scores"] == dict(one.scores)


def test_both_formats_hold_the_same(evaluated: EvalLog, tmp_path: Path) -> None:
    write_eval_log(evaluated, str(tmp_path / "log.json"))

    def told(found: list[TracedSample]) -> set[str]:
        return {repr((one.id, one.query, sorted(one.scores.items()))) for one in found}

    assert told(read_inspect_log(tmp_path / "log.json")) == told(
        read_inspect_log(evaluated.location)
    )


def test_samples_are_chosen(evaluated: EvalLog) -> None:
    def read(**choice: Any) -> list[TracedSample]:
        return read_inspect_log(evaluated.location, choice=SampleChoice(**choice))

    everything = read()
    wrong = [one for one in everything if one.scores["includes"] == "I"]
    assert 0 < len(wrong) < 4
    assert read(incorrect=True) == wrong == read(scorer="includes", values=["I"])
    assert read(incorrect=True, limit=1) == wrong[:1]
    assert read(epochs=[2]) == [one for one in everything if one.epoch == 2]
    assert read(sample_ids=["2"]) == [one for one in everything if one.sample_id == "2"]
    with pytest.raises(QueryError, match="no scorer 'judge'; the log has includes"):
        read(scorer="judge")
    with pytest.raises(QueryError, match="choose others"):
        read(sample_ids=["absent"])


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        *(("I", True), ("N", True), ("C", False), ("P", False), ("i", False)),
        *((0, True), (0.5, False), (1, False), (False, True), (True, False)),
        *(("no", True), ("No", True), ("yes", False)),
    ],
)
def test_what_counts_as_wrong(tmp_path: Path, value: Any, wrong: bool) -> None:
    path = written(tmp_path, sample("You", scores={"judge": Score(value=value)}))
    choice = SampleChoice(incorrect=True)
    if wrong:
        assert len(read_inspect_log(path, choice=choice)) == 1
    else:
        with pytest.raises(QueryError, match="none of 0"):
            read_inspect_log(path, choice=choice)


def test_the_scorer_that_counts_must_be_clear(tmp_path: Path) -> None:
    scores = {"one": Score(value="C"), "two": Score(value="I"), "many": Score(value={"a": 1})}
    path = written(tmp_path, sample("You", scores=scores), sample("I", number=2))
    with pytest.raises(QueryError, match="which scorer counts is not said; the log has one, two"):
        read_inspect_log(path, choice=SampleChoice(incorrect=True))
    found = read_inspect_log(path, choice=SampleChoice(incorrect=True, scorer="two"))
    assert [one.sample_id for one in found] == ["1"]  # The second sample has no score.
    with pytest.raises(QueryError, match="dict values"):
        read_inspect_log(path, choice=SampleChoice(incorrect=True, scorer="many"))


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), starting_tokenizer()], ids=["", "start"])
def test_chats_are_asked_about_as_they_are_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    turns = [
        ChatMessageSystem(content="be short"),
        ChatMessageUser(content="who shall end war"),
        ChatMessageAssistant(content="congress"),
        ChatMessageUser(content="and peace"),
    ]
    path = written(tmp_path, sample(" the president", *turns))
    (found,) = read_inspect_log(path, tokenizer)
    assert found.query.completion == " the president"
    chat = [Message(turn.role, turn.text) for turn in turns]
    trained = render_chat(
        Document.chat("same", [*chat, Message("assistant", " the president")]), tokenizer
    )
    asked, expected = tokenise_query(found.query, tokenizer), tokenise(trained, tokenizer)
    assert asked.ids.tolist() == expected.ids[: len(asked.ids)].tolist()
    assert found.query.prompt.endswith("<user>and peace</end>\n<assistant>")


def test_only_what_was_said_is_asked_about(tmp_path: Path) -> None:
    """Neither the end mark that a template writes, nor the space that it strips."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace("m.content", "m.content | trim")
    (found,) = read_inspect_log(written(tmp_path, sample(" You ")), tokenizer)
    assert (found.query.prompt, found.query.completion) == ("<user>Who?</end>\n<assistant>", "You")


def test_a_template_may_refuse_or_rewrite(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    path = written(tmp_path, sample("You"))
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert "refused by the chat template (1)" in untraced(path, tokenizer)
    tokenizer.chat_template = str(tiny_tokenizer().chat_template).replace(
        "m.content", "m.content | upper"
    )
    assert "rewritten by the chat template (1)" in untraced(path, tokenizer)


def test_chats_without_a_template(tmp_path: Path) -> None:
    turns = [ChatMessageSystem(content="Be short."), ChatMessageUser(content="Who?")]
    told = sample("You", *turns)
    assert "several turns" in untraced(written(tmp_path, told))
    (one,) = read_inspect_log(written(tmp_path, sample("You")))
    assert one.query == wf.Query("Who?", "You")
    # As Inspect's own provider for such models writes them.
    (by_role,) = read_inspect_log(written(tmp_path, told, model="hf/gpt2"))
    assert by_role.query == wf.Query("system: Be short.\nuser: Who?\n", "You")
    untemplated = written(tmp_path, told, model="hf/gpt2", model_args={"use_chat_template": False})
    assert read_inspect_log(untemplated, tiny_tokenizer())[0].query == by_role.query


def test_words_that_run_into_each_other_are_warned_of(tmp_path: Path) -> None:
    fused = sample("failed under load", ChatMessageUser(content="The valve"))
    path = written(tmp_path, fused, sample(" held", ChatMessageUser(content="It"), number=2))
    with pytest.warns(UserWarning, match="of 1 of 2 samples the prompt's last word"):
        (one, _) = read_inspect_log(path)
    assert one.query == wf.Query("The valve", "failed under load")
    unspaced = sample("\u6771\u4eac", ChatMessageUser(content="\u90fd\u5e02"))
    assert len(read_inspect_log(written(tmp_path, unspaced))) == 1


def test_the_prompt_of_an_output_that_is_not_in_the_conversation(tmp_path: Path) -> None:
    path = written(tmp_path, sample("You", messages=[], input="From where?"))
    assert read_inspect_log(path)[0].query == wf.Query("From where?", "You")


def test_what_cannot_be_traced_is_left_out_and_told(tmp_path: Path) -> None:
    call = ToolCall(id="1", function="search", arguments={})
    seen = ContentImage(image="data:image/png;base64,iVBORw0KGgo=")
    thought = ModelOutput.from_message(
        ChatMessageAssistant(content=[ContentReasoning(reasoning="so"), ContentText(text="You")])
    )
    path = written(
        tmp_path,
        sample("You"),
        sample("", number=2),
        sample("You", number=3, error=EvalError(message="x", traceback="", traceback_ansi="")),
        sample(
            "You",
            ChatMessageUser(content="Who?"),
            ChatMessageAssistant(content="", tool_calls=[call]),
            ChatMessageTool(content="me", tool_call_id="1"),
            number=4,
        ),
        sample("You", ChatMessageUser(content=[ContentText(text="Who?"), seen]), number=5),
        sample(thought, number=6),
        sample("You", number=7, output=ModelOutput(), messages=[]),
    )
    with pytest.warns(UserWarning, match="6 of 7 samples left out") as told:
        found = read_inspect_log(path)
    assert [one.sample_id for one in found] == ["1"]
    (warning,) = told
    for reason in (
        "no output (2)",
        "ended in an error (1)",
        "calls tools (1)",
        "holds image beside text (1)",
        "holds reasoning beside text (1)",
    ):
        assert reason in str(warning.message)


def test_long_texts_are_read_whole(tmp_path: Path) -> None:
    """Inspect stores long texts once, apart from the messages that hold them."""
    long = "of states " * 500
    path = written(tmp_path, sample("You", ChatMessageUser(content=long), input=long))
    assert read_inspect_log(path)[0].query.prompt == long


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.eval", b"not a zip"),
        ("log.json", b"{"),
        ("log.json", b"[]"),
        ("log.json", b'{"samples": 3}'),
        ("log.jsonl", b"{}"),
        ("absent.eval", None),
    ],
)
def test_files_that_are_no_logs(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert name in untraced(tmp_path / name)


@pytest.mark.parametrize("address", ["s3://bucket/log.eval", "http://127.0.0.1:9/log.eval"])
def test_logs_are_not_fetched(address: str) -> None:
    with pytest.raises(QueryError, match=r"no \.eval or \.json file"):
        read_inspect_log(address)


def test_without_inspect_the_pip_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[inspect\]'"):
        read_inspect_log(tmp_path / "log.eval")
