"""Questions out of the logs of Inspect: what a model said in an evaluation, to be traced.

Reads ``.eval`` and ``.json`` logs by Inspect's own reader (extra ``inspect``). Of each sample, the
model's last output is the completion, and the conversation before it the prompt, written out as the
model saw it: by the tokenizer's chat template, and where it has none, as Inspect's provider ``hf``
writes chats for such models. What a model saw is never guessed: samples for which it is not known
cannot be traced. :func:`read_inspect_log` leaves them out, with a warning that says how many and
why; :func:`read_samples` names each.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherefrom.audit.log_size import require_size
from wherefrom.errors import CorpusError, MissingExtraError, QueryError
from wherefrom.query.interpretation.lexical import words
from wherefrom.records import Document, Message, Query

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ChatMessage
    from transformers import PreTrainedTokenizerBase

__all__ = ["SampleChoice", "TracedSample", "UntracedSample", "read_inspect_log", "read_samples"]

_UNREAD = {"events", "events_data", "store", "timelines"}
_WRONG = ("I", "N")
_DENIALS = ("no", "false")
"""What Inspect's scorers say of wrong and missing answers, and what it takes for that."""


@dataclass(frozen=True, slots=True)
class SampleChoice:
    """Which samples of a log to read; all conditions must hold.

    Attributes:
        scorer: Whose score counts; may be left out where the log has one scorer.
        values: Scores to read, as logged (``C``, ``I``, ``0.5``, ...); all if ``None``.
        incorrect: Only samples whose answer is wrong or missing.
        sample_ids: Ids to read, as text; all if ``None``.
        epochs: Epochs to read; all if ``None``.
        limit: At most so many samples, the first ones.
    """

    scorer: str | None = None
    values: Collection[str] | None = None
    incorrect: bool = False
    sample_ids: Collection[str] | None = None
    epochs: Collection[int] | None = None
    limit: int | None = None

    @property
    def scored(self) -> bool:
        """Whether scores decide."""
        return self.incorrect or self.values is not None


@dataclass(frozen=True, slots=True)
class TracedSample:
    """An output of a model in an evaluation, and where it stands.

    Attributes:
        query: Prompt and completion.
        sample_id: Of the sample.
        epoch: Of the sample.
        task: Name of the evaluation.
        model: Name of the model, with Inspect's provider before it.
        eval_id: Of the run of the evaluation.
        scores: What each scorer gave the sample.
        target: What the sample's answer should be.
        metadata: Of the sample.
    """

    query: Query
    sample_id: str
    epoch: int
    task: str
    model: str
    eval_id: str
    scores: Mapping[str, Any] = field(default_factory=dict)
    target: str | tuple[str, ...] = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Sample and epoch, unique in a log."""
        return f"{self.sample_id}, epoch {self.epoch}"

    @property
    def tags(self) -> dict[str, Any]:
        """Where the output comes from, as plain values."""
        return {
            "inspect": {
                "task": self.task,
                "model": self.model,
                "eval_id": self.eval_id,
                "sample_id": self.sample_id,
                "epoch": self.epoch,
                "scores": dict(self.scores),
                "target": list(self.target) if isinstance(self.target, tuple) else self.target,
            }
        }


@dataclass(frozen=True, slots=True)
class UntracedSample:
    """A sample of which is not known, as text, what the model saw or said.

    Attributes:
        id: As for :class:`TracedSample`.
        tags: Likewise.
        reason: Why it cannot be traced.
    """

    id: str
    tags: dict[str, Any]
    reason: str


def read_inspect_log(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    choice: SampleChoice | None = None,
) -> list[TracedSample]:
    """The outputs in a log, in its order.

    Args:
        path: A log on this machine, ``.eval`` or ``.json``.
        tokenizer: Of the index's model. Without one, as with one that has no chat template, prompts
            are written out plainly.
        choice: Which samples to read; by default all.

    Raises:
        MissingExtraError: Inspect is not installed.
        QueryError: The file is no log, the choice does not fit it, or nothing is left to trace.

    Warns:
        UserWarning: Samples are left out because what the model saw or said is not known as text.
    """
    every = read_samples(path, tokenizer, choice)
    found = [sample for sample in every if isinstance(sample, TracedSample)]
    left_out = Counter(sample.reason for sample in every if isinstance(sample, UntracedSample))
    if not found:
        raise QueryError(
            f"{path}: none of {len(every)} samples can be traced ({_counted(left_out)})"
        )
    if left_out:
        warnings.warn(
            f"{path}: {left_out.total()} of {len(every)} samples left out: {_counted(left_out)}",
            UserWarning,
            stacklevel=2,
        )
    return found


def read_samples(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    choice: SampleChoice | None = None,
) -> list[TracedSample | UntracedSample]:
    """All samples of a log, in its order: those that cannot be traced as well, for the record.

    Args:
        path: As for :func:`read_inspect_log`.
        tokenizer: Likewise.
        choice: Likewise.

    Raises:
        MissingExtraError: Inspect is not installed.
        QueryError: The file is no log, or the choice does not fit it or leaves nothing.

    Warns:
        UserWarning: Without a chat template, words of prompt and output run into each other.
    """
    choice = SampleChoice() if choice is None else choice
    log = _read(Path(path))
    found: list[TracedSample | UntracedSample] = []
    for sample in _chosen(log.samples or [], choice, str(path)):
        try:
            found.append(_traced(log, sample, _query(sample, _writing(log, tokenizer))))
        except _UntraceableError as reason:
            known = _traced(log, sample, Query("", ""))
            found.append(UntracedSample(known.id, known.tags, str(reason)))
    if not found:
        raise QueryError(f"{path}: none of 0 samples can be traced; choose others")
    fused = sum(_fused(one.query) for one in found if isinstance(one, TracedSample))
    if fused:
        warnings.warn(
            f"{path}: of {fused} of {len(found)} samples the prompt's last word and the output's "
            "first stand together as one, for the log does not say what was between them; give a "
            "tokenizer with the model's chat template",
            UserWarning,
            stacklevel=2,
        )
    return found


def _fused(query: Query) -> bool:
    """Whether prompt and completion, joined as they are, make one word of two."""
    seam = query.prompt[-1:], query.completion[:1]
    return all(part.isalnum() for part in seam) and len(words("".join(seam))) == 1


class _UntraceableError(Exception):
    """Why a sample has no question to ask."""


def _read(path: Path) -> EvalLog:
    try:
        from inspect_ai.log import read_eval_log
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            "reading Inspect's logs needs the package inspect-ai; pip install 'wherefrom[inspect]'"
        ) from missing
    # Inspect would look for anything else than a file on the network.
    if not path.is_file() or path.suffix not in (".eval", ".json"):
        raise QueryError(f"{path} is no .eval or .json file; give a log that Inspect has written")
    try:
        require_size(path)
        return read_eval_log(path, resolve_attachments=True, exclude_fields=_UNREAD)
    except Exception as error:  # Zip, JSON and pydantic each fail in their own ways.
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise QueryError(f"{path} cannot be read as a log of Inspect ({reason})") from error


def _chosen(samples: Sequence[EvalSample], choice: SampleChoice, name: str) -> list[EvalSample]:
    found = [
        sample
        for sample in samples
        if (choice.sample_ids is None or str(sample.id) in choice.sample_ids)
        and (choice.epochs is None or sample.epoch in choice.epochs)
    ]
    if choice.scored:
        scorer = _scorer(samples, choice.scorer, name)
        found = [sample for sample in found if _passes(sample, scorer, choice)]
    elif choice.scorer is not None:
        _scorer(samples, choice.scorer, name)
    return found[: choice.limit]


def _scorer(samples: Sequence[EvalSample], named: str | None, name: str) -> str:
    scorers = list(dict.fromkeys(scorer for sample in samples for scorer in sample.scores or {}))
    if named is None and len(scorers) == 1:
        return scorers[0]
    if named not in scorers:
        known = ", ".join(scorers) or "no scorer"
        given = "which scorer counts is not said" if named is None else f"no scorer {named!r}"
        raise QueryError(f"{name}: {given}; the log has {known}")
    return str(named)


def _passes(sample: EvalSample, scorer: str, choice: SampleChoice) -> bool:
    """Whether a sample's score is one to read; samples without a score are not."""
    score = (sample.scores or {}).get(scorer)
    if score is None:
        return False
    value = score.value
    if not isinstance(value, (str, int, float)):
        raise QueryError(
            f"scorer {scorer!r} gives {type(value).__name__} values, of which none is wrong or "
            "right; choose by another scorer"
        )
    wrong = value == 0 or value in _WRONG or str(value).lower() in _DENIALS
    return (wrong or not choice.incorrect) and (
        choice.values is None or str(value) in choice.values
    )


@dataclass(frozen=True, slots=True)
class _Writing:
    """How a model's chats were written out for it.

    Attributes:
        tokenizer: Whose chat template writes them; ``None`` where none does.
        by_role: Without a template: as Inspect's provider ``hf`` writes them.
    """

    tokenizer: PreTrainedTokenizerBase | None
    by_role: bool


def _writing(log: EvalLog, tokenizer: PreTrainedTokenizerBase | None) -> _Writing:
    plain = log.eval.model_args.get("use_chat_template") is False
    templated = tokenizer is not None and bool(tokenizer.chat_template) and not plain
    return _Writing(tokenizer if templated else None, log.eval.model.startswith("hf/"))


def _query(sample: EvalSample, writing: _Writing) -> Query:
    """The question about a sample's output.

    Raises:
        _UntraceableError: It has none.
    """
    if sample.error is not None:
        raise _UntraceableError("ended in an error")
    said = _text_of(sample.output.message) if sample.output.choices else ""
    if not said:
        raise _UntraceableError("no output")
    turns = _before(sample, said)
    if writing.tokenizer is not None:
        return _templated(turns, said, writing.tokenizer)
    if writing.by_role:
        return Query("".join(f"{turn.role}: {turn.content}\n" for turn in turns), said)
    if len(turns) != 1:
        raise _UntraceableError("several turns, and no chat template to write them by")
    return Query(turns[0].content, said)


def _before(sample: EvalSample, said: str) -> list[Message]:
    """The conversation that the output was an answer to."""
    messages: Sequence[ChatMessage] = sample.messages
    for place in reversed(range(len(messages))):
        if messages[place].role == "assistant" and messages[place].text == said:
            return [Message(turn.role, _text_of(turn)) for turn in messages[:place]]
    if isinstance(sample.input, str):
        return [Message("user", sample.input)]
    return [Message(turn.role, _text_of(turn)) for turn in sample.input]


def _text_of(message: ChatMessage) -> str:
    """A message's text.

    Raises:
        _UntraceableError: It is more than text.
    """
    if message.role == "tool" or (message.role == "assistant" and message.tool_calls):
        raise _UntraceableError("calls tools")
    if not isinstance(message.content, str):
        kinds = {part.type for part in message.content} - {"text"}
        if kinds:
            raise _UntraceableError(f"holds {', '.join(sorted(kinds))} beside text")
    return message.text


def _templated(turns: Sequence[Message], said: str, tokenizer: PreTrainedTokenizerBase) -> Query:
    # Imports torch, which reading a log without a tokenizer can do without.
    from wherefrom.gradients.tokens import render_chat

    chat = Document.chat("sample", [*turns, Message("assistant", said)])
    try:
        rendered = render_chat(chat, tokenizer)
    except CorpusError as error:
        raise _UntraceableError("refused by the chat template") from error
    (*_, (start, end)) = rendered.scored or ((0, 0),)
    prompt, answer = rendered.text[:start], rendered.text[start:end]
    # Some templates strip what was said; after it comes their end mark, which was not.
    for completion in (said, said.strip()):
        if completion and answer.startswith(completion):
            return Query(_without_start(prompt, tokenizer), completion)
    raise _UntraceableError("rewritten by the chat template")


def _without_start(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt without the start token that tokenising it will put there once more."""
    start = tokenizer.bos_token
    if not isinstance(start, str) or not prompt.startswith(start):
        return prompt
    added = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return prompt.removeprefix(start) if added else prompt


def _traced(log: EvalLog, sample: EvalSample, query: Query) -> TracedSample:
    target = sample.target
    return TracedSample(
        query=query,
        sample_id=str(sample.id),
        epoch=sample.epoch,
        task=log.eval.task,
        model=log.eval.model,
        eval_id=log.eval.eval_id,
        scores={name: score.value for name, score in (sample.scores or {}).items()},
        target=target if isinstance(target, str) else tuple(target),
        metadata=sample.metadata,
    )


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
