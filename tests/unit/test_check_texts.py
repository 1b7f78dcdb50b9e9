"""What a tokenizer or a metric cannot represent is named before anything is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from retain.backbone import Backbone, PromptConfig
from retain.errors import RetainError
from retain.evaluation.answers import EvaluationConfig
from retain.learner.check_examples import check_examples
from retain.learner.learner import Learner
from retain.tasks import Example, Task
from retain.testing.tiny import make_backbone, make_learner, make_tokenizer

EVALUATION = EvaluationConfig(max_new_tokens=64)
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A tokenizer that knows printable ASCII and the line break."""
    return make_backbone("llama")


def task_of(
    answers: Sequence[str], metric: str, train: Sequence[str] = (), prompt: str = "Is {}?"
) -> Task:
    """A task whose test answers are `answers`; its training answers are the same by default."""
    learned = [Example(f"Learn {i}", (text,)) for i, text in enumerate(train or answers)]
    tested = [Example(prompt.format(i), (text,)) for i, text in enumerate(answers)]
    return Task("t", learned, learned[:1], tested, metric)


def said(backbone: Backbone, task: Task) -> list[str]:
    return check_examples(task, backbone, EVALUATION)


# -- the tokenizer


def test_answers_that_the_vocabulary_lacks_are_refused(backbone: Backbone) -> None:
    says = "task 't': no test answer survives .*: 'ja ✓' is read back as 'ja'; take another back"
    with pytest.raises(RetainError, match=says):
        said(backbone, task_of(["ja ✓", "né"], "exact_answer"))


def test_answers_of_which_a_part_can_be_scored_are_told(backbone: Backbone) -> None:
    """They are not refused: under such a metric the model still gets points."""
    lines = said(backbone, task_of(["yes é x", "né a"], "edit_similarity"))
    assert [line[: line.index(" do")] for line in lines] == [
        "t: 2 of 2 test answers",
        "t: 2 of 2 training answers",
    ]


def test_some_such_answers_are_counted_with_an_example(backbone: Backbone) -> None:
    lines = said(backbone, task_of(["yes", "né", "no"], "exact_answer"))
    assert lines == [
        f"t: 1 of 3 {kind} answers do not survive the backbone's tokenizer, and no answer of the "
        "model can equal them: 'né' is read back as 'n'"
        for kind in ("test", "training")
    ]


def test_what_the_metric_does_not_see_is_not_told(backbone: Backbone) -> None:
    assert said(backbone, task_of(["yes ✓", "no"], "rouge_l")) == []


def test_answers_that_generation_would_cut_are_refused() -> None:
    plain = make_backbone("llama")
    line_break = plain.tokenizer("\n")["input_ids"]
    plain.model.generation_config.eos_token_id = [1, *line_break]
    backbone = Backbone(plain.model, plain.tokenizer, "x")
    with pytest.raises(RetainError, match=r"'one\\ntwo' is read back as 'one'"):
        said(backbone, task_of(["one\ntwo"], "exact_answer"))
    assert said(backbone, task_of(["one two"], "exact_answer")) == []


def test_prompts_that_the_vocabulary_lacks_are_told(backbone: Backbone) -> None:
    task = task_of(["a", "b"], "exact_answer")
    train = [replace(example, prompt="总结一下") for example in task.train]
    train[1] = replace(train[1], prompt="总结二下")
    lines = said(backbone, replace(task, train=train))
    assert lines == [
        "t: the model does not read 100 % of the characters of the training prompts: the "
        "backbone's tokenizer does not know them, or its chat template leaves them out",
        "t: 1 of 4 prompts are to the backbone's tokenizer the same as one that has another "
        "answer: '总结一下' and '总结二下' have the same tokens",
    ]


def with_model(model: str, normalizer: str | None = None) -> Backbone:
    """The tiny backbone with another tokenizer, as its file describes it."""
    plain = make_backbone("llama")
    values = json.loads(plain.tokenizer.backend_tokenizer.to_str())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "is": 3, "it": 4, "yes": 5, "no": 6}
    unknown = "<unk>" if model == "known" else "<nothing>"
    values |= {
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
        "normalizer": normalizer
        and {"type": "Replace", "pattern": {"Regex": normalizer}, "content": ""},
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": None,
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)),
        **{"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    return Backbone(plain.model, tokenizer, "x")


def test_a_prompt_without_tokens_is_refused() -> None:
    """It would be asked without a token to read."""
    backbone = with_model("known", normalizer="it")
    task = task_of(["yes", "no"], "exact_answer", prompt="is")
    assert said(backbone, task)
    for split in ("train", "dev", "test"):
        bad = replace(task, **{split: [Example("it", ("yes",))]})
        with pytest.raises(
            RetainError, match=r"task 't', a .* example: text 'it': the tokenizer of"
        ):
            said(backbone, bad)


def test_a_text_that_the_tokenizer_cannot_read_is_refused() -> None:
    """A vocabulary without an unknown token raises at what it lacks."""
    backbone = with_model("strict")
    task = Task("t", *3 * [[Example("is it", ("yes",))]], "exact_answer")
    task = replace(task, train=[Example("it is", ("yes",))], dev=[])
    assert said(backbone, task) == []
    for example in (Example("is ox", ("yes",)), Example("is it", ("ox",))):
        with pytest.raises(
            RetainError, match=r"a test example: text '.*ox': the tokenizer of back"
        ):
            said(backbone, replace(task, test=[example]))


def test_a_prompt_that_a_template_leaves_out_is_told() -> None:
    backbone = make_backbone("llama")
    backbone.prompt = PromptConfig(chat_template=True)
    backbone.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% if m.role != 'user' %}{{ m.content }}{% endif %}|"
        "{% endfor %}"
    )
    lines = said(backbone, task_of(["a", "b"], "exact_answer"))
    assert lines[-1].startswith("t: the chat template leaves out turns of 4 examples (role user)")
    assert any("the same as one that has another answer" in line for line in lines)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TURNS + "{{ 9**(9**9) }}", "computes a power, which may take for ever"),
        (TURNS + "{{ ['a', 'b'] | random }}", r"draws at random \(random\)"),
        (TURNS.replace("|{%", "|{{ m.content }}|{%"), "writes an answer twice"),
    ],
)
def test_a_template_that_is_not_one_text_is_refused(template: str, says: str) -> None:
    backbone = make_backbone("llama")
    backbone.prompt = PromptConfig(chat_template=True)
    backbone.tokenizer.chat_template = template
    with pytest.raises(RetainError, match=f"the chat template of backbone '.*' {says}; set prompt"):
        said(backbone, task_of(["a", "b"], "exact_answer"))


def test_a_template_that_cuts_prompts_is_told() -> None:
    backbone = make_backbone("llama")
    backbone.prompt = PromptConfig(chat_template=True)
    backbone.tokenizer.chat_template = TURNS.replace("m.content", "m.content[:9]")
    lines = said(backbone, task_of(["a", "b"], "exact_answer", prompt="Is it a long question {}?"))
    assert lines[0].startswith("t: the model does not read 37 % of the characters of the test pro")


def test_dropout_of_a_tokenizer_is_switched_off() -> None:
    """With it a prompt would be asked in other tokens than it was learned in."""
    plain = make_backbone("llama")
    merges = [("a", "b"), ("ab", "c")]
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "c": 5, "ab": 6, "abc": 7}
    model = models.BPE(vocab=vocabulary, merges=merges, dropout=0.5)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model),
        **{"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    texts = Backbone(plain.model, tokenizer, "x").texts
    assert {tuple(texts.plain_ids("abcabc")) for _ in range(20)} == {(7, 7)}


def test_a_special_token_in_another_spelling_is_told() -> None:
    plain = make_backbone("llama")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    end = AddedToken("<END>", special=True, normalized=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    plain.model.resize_token_embeddings(len(tokenizer))
    lines = said(
        Backbone(plain.model, tokenizer, "x"),
        task_of(["a", "b"], "exact_answer", prompt="the <End> of {}"),
    )
    assert lines == [
        "t: 2 texts hold what the tokenizer's normalizer makes a special token of, such as "
        "'the <End> of 0'; the model reads that token and not the text"
    ]


def test_special_tokens_in_a_text_are_told(backbone: Backbone) -> None:
    (line,) = said(backbone, task_of(["<unk>old</s>", "new", "b"], "exact_answer"))
    assert line.startswith("t: 2 of 6 examples spell special tokens, such as '<unk>'; they are")


def test_conversations_without_a_template_are_told() -> None:
    turns = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"})
    task = task_of(["a", "b"], "exact_answer")
    chats = [replace(example, messages=turns) for example in task.train]
    task = replace(task, train=chats)
    (line,) = said(make_backbone("llama"), task)
    assert line.startswith("t: 2 examples are conversations; their turns are joined by line breaks")
    templated = make_backbone("llama")
    templated.tokenizer.chat_template = TURNS
    task = replace(task, test=[replace(example, messages=turns) for example in task.test])
    assert said(templated, task) == []
    templated.tokenizer.chat_template = TURNS + "{{ strftime_now('%d') }}"
    (line,) = said(templated, task)
    assert "the chat template writes the date" in line


def test_turns_that_a_template_leaves_out_are_told() -> None:
    backbone = make_backbone("llama")
    backbone.tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}[{{ m.content | upper }}]{% endfor %}"
    )
    turns = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"})
    task = task_of(["a", "b"], "exact_answer")
    task = replace(task, train=[replace(example, messages=turns) for example in task.train])
    (mixed, line) = said(backbone, task)
    assert mixed.startswith("t: 2 of 2 training and 0 of 2 test examples are written with the chat")
    assert line == (
        "t: the chat template leaves out turns of 2 examples (role system), such as "
        "'Be short.'; the model does not read them"
    )
    backbone.tokenizer.chat_template = TURNS
    assert said(backbone, task) == [mixed]


def test_auto_writes_conversations_with_the_template_and_prompts_without() -> None:
    backbone = make_backbone("llama")
    backbone.tokenizer.chat_template = TURNS
    turns = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"})
    text = {
        setting: [
            backbone.tokenizer.decode(backbone.encode(example)["input_ids"])
            for example in (Example("Hi", ("a",)), Example("Hi", ("a",), turns))
            if not setattr(backbone, "prompt", PromptConfig(chat_template=setting))
        ]
        for setting in ("auto", True, False)
    }
    plain, alone = "Hi a</s>", "<user>Hi|<assistant>a</s>"
    chat, joined = "<system>Be short.|<user>Hi|<assistant>a</s>", "Be short.\nHi a</s>"
    assert text == {"auto": [plain, chat], True: [alone, chat], False: [plain, joined]}


@pytest.mark.parametrize("kind", ["conversations", "prompts", "both"])
def test_a_run_asks_as_it_has_learned(kind: str, tmp_path: Path) -> None:
    """`generate` and `serve` encode by `LearnedModel.encode`."""

    def backbone() -> Backbone:
        plain = make_backbone("llama")
        plain.tokenizer.chat_template = TURNS
        return Backbone(plain.model, plain.tokenizer, "x")

    chats = tuple({"role": "user", "content": f"Hi {i}"} for i in range(4))
    rows = {
        "conversations": [Example(turn["content"], ("a",), (turn,)) for turn in chats],
        "prompts": [Example(turn["content"], ("a",)) for turn in chats],
    }
    learner = make_learner("seqlora", backbone(), tmp_path, max_steps=1)
    for name, examples in rows.items():
        if kind in (name, "both"):
            learner.learn(Task(name, examples[:2], examples[2:3], examples[3:]))
    loaded = Learner.load(tmp_path, backbone=backbone())
    text = [
        loaded.backbone.tokenizer.decode(loaded.encode(example)["input_ids"])
        for example in (
            Example("Hey", ("",)),
            Example("Hey", ("",), ({**chats[0], "content": "Hey"},)),
        )
    ]
    asked = "<user>Hey|<assistant>"  # which the template writes before an answer
    expected = {"conversations": [asked, asked], "prompts": ["Hey", "Hey"], "both": ["Hey", asked]}
    assert text == expected[kind]
    if kind == "both":
        assert loaded.templated("prompts") is False
    other = backbone()
    other.tokenizer.chat_template += "!"
    if kind == "prompts":
        Learner.load(tmp_path, backbone=other)
    else:
        with pytest.raises(RetainError, match="learned on other chat template than backbone 'x'"):
            Learner.load(tmp_path, backbone=other)


# -- the metric


@pytest.mark.parametrize("metric", ["rouge_l", "rouge_l_union"])
def test_a_right_answer_that_scores_0_is_refused(metric: str) -> None:
    from tests.unit.test_texts import tokenizer_of

    plain = make_backbone("llama")
    plain.model.resize_token_embeddings(1000)
    backbone = Backbone(plain.model, tokenizer_of("byte level"), "x")
    answers = ["是的", "不是"] if metric == "rouge_l" else ["...", "."]
    other = "rouge_l_unicode" if metric == "rouge_l" else "exact_answer"
    says = rf"all test answers score under 100 by {metric} .* \(0\); take the metric {other}"
    with pytest.raises(RetainError, match=says):
        said(backbone, task_of(answers, metric))
    if metric == "rouge_l":
        assert said(backbone, task_of(answers, "rouge_l_unicode")) == []
        (line,) = said(backbone, task_of([*answers, "yes"], metric))
        assert line.startswith("t: 2 of 3 test answers score under 100 by rouge_l although")


@pytest.mark.parametrize(
    ("metric", "answers", "pair"),
    [
        ("exact_match", ["C", "C++", "C#"], "'C' and 'C++' (and 2 more pairs)"),
        ("exact_match", ["-1", "1"], "'-1' and '1'"),
        ("rouge_l", ["run", "runs"], "'run' and 'runs'"),
        ("first_letter", ["positive", "possible", "no"], "'positive' and 'possible'"),
        ("edit_similarity", ["<STR_LIT:x>", "x"], "'<STR_LIT:x>' and 'x'"),
        ("rouge_l_unicode", ["is it", "IS, it."], "'is it' and 'IS, it.'"),
        ("rouge_l_union", ["a b", "a b."], "'a b' and 'a b.'"),
        ("sari", ["Tom &amp; Al", "tom & al"], "'Tom &amp; Al' and 'tom & al'"),
        ("first_letter", [*map(chr, range(65, 123)), "zebra"], "'z' and 'zebra'"),
        ("first_letter", ["I agree", "I disagree"], "'I agree' and 'I disagree'"),
        ("first_letter", ["3.5", "3.14"], "'3.5' and '3.14'"),
    ],
)
def test_answers_that_the_metric_cannot_tell_apart(
    metric: str, answers: list[str], pair: str, backbone: Backbone
) -> None:
    (line,) = said(backbone, task_of(answers, metric))
    assert line.startswith(f"t: {metric} cannot tell the answers {pair} apart; if they are diff")
    assert said(backbone, task_of(answers, "exact_answer")) == []


def test_case_and_stops_are_no_difference_among_many_texts(backbone: Backbone) -> None:
    texts = [f"text {chr(97 + i % 26)}{i}" for i in range(60)]
    assert said(backbone, task_of([*texts, "You are welcome.", "you are welcome"], "rouge_l")) == []
    (line,) = said(backbone, task_of([*texts, "it's 3.14", "its 314"], "exact_match"))
    assert "cannot tell the answers \"it's 3.14\" and 'its 314' apart" in line
    labels = [*texts, "us", "US"]
    (line,) = said(backbone, task_of(labels, "exact_match", labels * 2))
    assert "cannot tell the answers 'us' and 'US' apart" in line


def test_a_few_answers_that_score_0_may_be_mistakes(backbone: Backbone) -> None:
    (line,) = said(backbone, task_of(["a", "b", "c", "**"], "rouge_l"))
    assert line.endswith("such as '**' (0); correct them, or take the metric exact_answer")


def test_a_choice_s_letter_and_one_example_s_references_are_no_such_pair(
    backbone: Backbone,
) -> None:
    assert said(backbone, task_of(["A. cat", "A) dog", "A: ox", "B"], "first_letter")) == []
    task = task_of(["yes"], "exact_match")
    both = replace(task, test=[Example("Is it?", ("yes", "Yes."))])
    assert said(backbone, both) == []


@pytest.mark.parametrize(
    ("metric", "train", "test", "told"),
    [
        ("exact_answer", ["good", "bad"] * 4, ["-1"] * 4, "no test answer (such as '-1') is ever"),
        ("exact_answer", ["good", "bad"] * 4, ["Good", "Bad"], "no test answer (such as 'Good')"),
        ("exact_match", ["good", "bad"] * 4, ["Good", "Bad", "good."], None),
        ("exact_match", ["yes.", "no."] * 4, ["yes", "no"], None),
        ("exact_answer", ["1", "0"] * 4, ["-1"] * 4, "no test answer (such as '-1') is ever"),
        ("exact_answer", ["1", "0"] * 4, ["1", "-1", "0", "-1"], "2 of 4 test answers (such as '-"),
        ("exact_answer", ["1", "0"] * 4, ["1", "2", "0", "1"], None),
        ("exact_answer", [f"text {i}" for i in range(8)], ["another", "text"], None),
        ("first_letter", ["a", "b"] * 4, ["A", "B"], "no test answer (such as 'A') is ever"),
    ],
)
def test_labels_that_are_held_back_are_told(
    metric: str, train: list[str], test: list[str], told: str | None, backbone: Backbone
) -> None:
    lines = [line for line in said(backbone, task_of(test, metric, train)) if "tell" not in line]
    assert len(lines) == (told is not None)
    if told:
        assert lines[0].startswith(f"t: {told}")
        assert lines[0].endswith("; are the test labels held back, or written otherwise?")


# -- encoder-decoders: an answer begins as generation makes it begin


@pytest.mark.parametrize("forced", [None, 2])
@pytest.mark.parametrize("start", [1, 0])
def test_what_an_encoder_decoder_learns_is_what_it_is_asked(start: int, forced: int | None) -> None:
    plain = make_backbone("bart")
    plain.model.generation_config.decoder_start_token_id = start
    plain.model.generation_config.forced_bos_token_id = forced
    backbone = Backbone(plain.model, plain.tokenizer, "x")
    example = Example("Team?", ("billing",))
    row = backbone.encode(example)
    assert (row["labels"][0] == forced) == (forced is not None)
    seen: list[list[int]] = []
    decoder = backbone.model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    backbone.answer_loss(backbone.collate([row]))
    learned = seen.pop()
    backbone.generate(backbone.collate([backbone.encode(example, with_answer=False)]), 3)
    hook.remove()
    assert learned == [start, *row["labels"][:-1]]
    asked = [token for ids in seen for token in ids]
    assert asked[: 2 if forced else 1] == learned[: 2 if forced else 1]
    assert backbone.decode(row["labels"]) == "billing"


def test_a_decoder_without_a_start_is_refused() -> None:
    plain = make_backbone("bart")
    plain.model.generation_config.decoder_start_token_id = None
    with pytest.raises(RetainError, match=re.escape("set decoder_start_token_id in generation_")):
        Backbone(plain.model, plain.tokenizer, "x")
