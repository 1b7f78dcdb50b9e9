"""One text is learned, asked, read back and scored: over templates, tokenizers and texts."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from retain.backbone import chat
from retain.backbone.text import Texts
from retain.errors import RetainError
from retain.metrics.text import METRICS, canonical, score
from retain.tasks import Example

# -- templates, written after those of the named models

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = "{% for m in messages %}"
ASKS = "{% endfor %}{% if add_generation_prompt %}"
TEMPLATES = {
    "chatml": CHATML,
    "qwen3: an empty reasoning block": (
        f"{TURNS}<|im_start|>{{{{ m.role }}}}\n{{% if m.role == 'assistant' and loop.last %}}"
        "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        f"{ASKS}<|im_start|>assistant\n{{% endif %}}"
    ),
    "gpt-oss: channels": (
        f"{TURNS}<|im_start|>{{{{ m.role }}}}{{% if m.role == 'assistant' %}}<|channel|>final"
        "{% endif %}<|message|>{{ m.content }}"
        "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}"
        f"{ASKS}<|im_start|>assistant{{% endif %}}"
    ),
    "deepseek-r1: asks with an open block": (
        f"{TURNS}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n"
        f"{ASKS}<|im_start|>assistant\n<think>\n{{% endif %}}"
    ),
    "llama 2": (
        f"{TURNS}{{% if m.role == 'user' %}}<s>[INST] {{{{ m.content | trim }}}} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
    ),
    "llama 3": (
        f"<s>{TURNS}<|start_header|>{{{{ m.role }}}}<|end_header|>\n\n{{{{ m.content | trim }}}}"
        f"<|end|>{ASKS}<|start_header|>assistant<|end_header|>\n\n{{% endif %}}"
    ),
    "gemma": (
        f"<s>{TURNS}<start_of_turn>{{{{ 'model' if m.role == 'assistant' else m.role }}}}\n"
        f"{{{{ m.content | trim }}}}<|end|>\n{ASKS}<start_of_turn>model\n{{% endif %}}"
    ),
    "zephyr": (
        f"{TURNS}<|{{{{ m.role }}}}|>\n{{{{ m.content }}}}</s>\n{ASKS}<|assistant|>\n{{% endif %}}"
    ),
    "vicuna: text alone": (
        f"{TURNS}{{{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}}}{{{{ m.content }}}} "
        f"{ASKS}ASSISTANT:{{% endif %}}"
    ),
    "alpaca: a turn ends in text": (
        f"{TURNS}{{% if m.role == 'assistant' %}}### Response:\n{{{{ m.content }}}}\n### End\n\n"
        "{% else %}### Instruction:\n{{ m.content }}\n\n{% endif %}"
        f"{ASKS}### Response:\n{{% endif %}}"
    ),
}

# -- tokenizers

BEGIN, END = "<s>", "</s>"
SPECIAL = [
    "<pad>", BEGIN, END, "<unk>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|return|>",
    "<|channel|>", "<|message|>", "<|start_header|>", "<|end_header|>",
]  # fmt: skip
CORPUS = [
    "is a cow an animal? yes",
    "the answer is no: </s> C++ and C#",
    "news: sport, world\n",
] * 3
LETTERS = "".join(sorted({*"".join(CORPUS), *map(chr, range(32, 127))}))
CORPUS.append(LETTERS)


def _byte_level(prefix: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, "BpeTrainer", initial_alphabet=alphabet)


def _sentencepiece(scheme: str) -> Tokenizer:
    """Metaspace with bytes for other characters, as Llama 2 and Mistral."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", *LETTERS, "▁y", "es", "▁a", "no"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces, *words]))}
    merges = [("▁", "y"), ("e", "s"), ("▁", "a"), ("n", "o")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _unigram() -> Tokenizer:
    """As T5: compatible forms are composed, and other characters are unknown."""
    pieces = [(piece, 0.0) for piece in SPECIAL]
    pieces += [("▁", -2.0), *((letter, -4.0) for letter in LETTERS if not letter.isspace())]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁yes", -3.0), ("no", -3.0)], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, "WordPieceTrainer", vocab_size=400)


def _trained(tokenizer: Tokenizer, kind: str, **options: object) -> Tokenizer:
    from tokenizers import trainers

    trainer = getattr(trainers, kind)(special_tokens=SPECIAL, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: _byte_level(False),
    "byte level, space before": lambda: _byte_level(True),
    "sentencepiece": lambda: _sentencepiece("always"),
    "sentencepiece, first": lambda: _sentencepiece("first"),
    "sentencepiece, none": lambda: _sentencepiece("never"),
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
LOSSLESS = [name for name in TOKENIZERS if name not in ("unigram", "wordpiece")]
AROUND = {"nothing": "$A", "begin": f"{BEGIN} $A", "end": f"$A {END}", "both": f"{BEGIN} $A {END}"}


@cache
def tokenizer_of(name: str, around: str = "nothing", template: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer that writes its begin and end tokens itself, or not."""
    backend = TOKENIZERS[name]()
    if around != "nothing":
        ids = [(token, backend.token_to_id(token)) for token in (BEGIN, END)]
        backend.post_processor = processors.TemplateProcessing(
            single=AROUND[around], special_tokens=ids
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        clean_up_tokenization_spaces=True,
    )
    made.add_tokens(["<think>", "</think>"])
    made.chat_template = TEMPLATES.get(template)
    return made


def texts_of(tokenizer: PreTrainedTokenizerFast, continues: bool = True) -> Texts:
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (END, "<|im_end|>", "<|return|>")]
    return Texts(tokenizer, "x", continues, ends, None)


SCRIPTS = "aé́ñßΩшع中文ไทย한か🙂\n\t \u200d\u00a0{}[]^~_\\#+-.,:;'\"!?()09"
WORDS = st.text(SCRIPTS, min_size=1, max_size=6)
TEXT = st.lists(
    st.sampled_from([*SPECIAL, "<think>", "yes", " no", "C++", "\r\n", "Å"]) | WORDS,
    min_size=1,
    max_size=5,
).map("".join).filter(lambda text: text.strip() != "")  # fmt: skip


def check_invariant(
    texts: Texts, prompt: str, answer: str, templated: bool, is_lossless: bool
) -> None:
    example = Example(prompt, (answer,))
    asked, _ = texts.prompt_and_answer(example, templated, with_answer=False)
    learned, labels = texts.prompt_and_answer(example, templated)
    assert learned == asked
    special = set(texts.tokenizer.all_special_ids)
    assert labels[-1] in texts._end_ids
    assert not special - {texts.tokenizer.unk_token_id} & set(labels[:-1])
    neutral, _ = texts.prompt_and_answer(Example("a", ("b",)), templated)
    written = [[i for i in ids if i in special - {3}] for ids in (asked, neutral)]
    assert written[0] == written[1]  # a text adds none to those of the template
    read = texts.decode(labels)
    if is_lossless and "think>" not in answer:  # some write a space after a token that is no text
        assert canonical(read) == canonical(answer)
        for metric in ("exact_answer", "edit_similarity"):
            assert score(metric, [read], [[answer]], [prompt]) == 100


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=6, deadline=None)
@given(prompt=TEXT, answer=TEXT)
def test_with_a_template(name: str, template: str, prompt: str, answer: str) -> None:
    texts = texts_of(tokenizer_of(name, "both", template))
    check_invariant(texts, prompt, answer, True, name in LOSSLESS)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("around", AROUND)
@settings(max_examples=12, deadline=None)
@given(prompt=TEXT, answer=TEXT, continues=st.booleans())
def test_without(name: str, around: str, prompt: str, answer: str, continues: bool) -> None:
    texts = texts_of(tokenizer_of(name, around), continues)
    assume(texts.plain_ids(prompt, special=True))  # others are refused
    check_invariant(texts, prompt, answer, False, name in LOSSLESS)
    ids, _ = texts.prompt_and_answer(Example(prompt, (answer,)), False)
    begin, end = (texts.tokenizer.convert_tokens_to_ids(token) for token in (BEGIN, END))
    assert ids.count(begin) == (around in ("begin", "both"))
    assert ids[:1] == [begin] or begin not in ids
    assert ids.count(end) == (around in ("end", "both") and not continues)


EMPTY_BLOCK = "<|im_start|>user\ncow?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
PLACES = {
    "chatml": ("<|im_start|>user\ncow?<|im_end|>\n<|im_start|>assistant\n", "yes<|im_end|>"),
    "qwen3: an empty reasoning block": (EMPTY_BLOCK, "yes<|im_end|>"),
    "gpt-oss: channels": (
        "<|im_start|>user<|message|>cow?<|end|><|im_start|>assistant<|channel|>final<|message|>",
        "yes<|return|>",
    ),
    "deepseek-r1: asks with an open block": (
        "<|im_start|>user\ncow?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "yes<|im_end|>",
    ),
    "llama 2": ("<s>[INST] cow? [/INST]", " yes</s>"),
    "vicuna: text alone": ("USER: cow? ASSISTANT:", " yes</s>"),
    "alpaca: a turn ends in text": ("### Instruction:\ncow?\n\n### Response:\n", "yes</s>"),
}


@pytest.mark.parametrize("template", PLACES)
def test_what_a_template_writes_around_the_answer(template: str) -> None:
    texts = texts_of(tokenizer_of("byte level", "nothing", template))
    ids = texts.prompt_and_answer(Example("cow?", ("yes",)), True)
    assert tuple(map(texts.tokenizer.decode, ids)) == PLACES[template]


CUTS = {
    "history without reasoning": "m.content.split('</s>')[-1]",
    "the first letters": "m.content[:5]",
    "the first letters, up to a mark": "m.content[:7]",
    "capitals": "m.content | upper",
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_template_may_cut_a_text_at_a_special_token(cut: str) -> None:
    """What is left of a mark is no text, and what is left of the token stays text."""
    tokenizer = tokenizer_of("byte level", "nothing", "chatml")
    texts = Texts(tokenizer, "x", True, [tokenizer.eos_token_id], None)
    template = CHATML.replace("m.content", CUTS[cut])
    texts._chat._tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    texts._chat._tokenizer.chat_template = template
    prompt, labels = texts.prompt_and_answer(Example("ab</s>\ncd</s>ef", ("yes",)), True)
    content = {
        "history without reasoning": "ef",
        "the first letters": "ab</",
        "the first letters, up to a mark": "ab</s>",
        "capitals": "AB</S>\nCD</S>EF",
    }[cut]
    text = tokenizer.decode(prompt)
    assert text == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token_id not in prompt
    assert texts.decode(labels) == "yes"


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ECHO = "{% if messages[-1].role == 'assistant' %}({{ messages[-1].content }}){% endif %}" + CHATML


@pytest.mark.parametrize("template", [PARTS, PARTS.replace("part.text", "part['te' + 'xt']"), ECHO])
def test_templates_of_parts_and_of_answers_that_are_repeated(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of("byte level", "nothing", "chatml")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    ids = texts_of(tokenizer).prompt_and_answer(Example("cow?", ("yes",)), True)
    assert tuple(map(tokenizer.decode, ids)) == PLACES["chatml"]


def test_a_template_s_error_shows_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("byte level")
    fails = "{{ raise_exception('not ' + messages[0].content) }}"
    monkeypatch.setattr(tokenizer, "chat_template", fails)
    with pytest.raises(RetainError) as error:
        texts_of(tokenizer).prompt_and_answer(Example("a </s>", ("yes",)), True)
    assert "starts with 'a </s>' (not a </s>)" in str(error.value)


def test_an_end_token_that_is_not_special_ends_what_is_read() -> None:
    tokenizer = tokenizer_of("byte level")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("</think>")]
    texts = Texts(tokenizer, "x", True, ends, None)
    ids = tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert texts.decode([*ids, ends[1], *ids]) == "yes"


def test_the_unknown_token_may_be_spelled_where_its_letters_are_unknown() -> None:
    """As T5 does not know `<`: whichever way `<unk>` is read, it is the unknown token."""
    backend = _unigram()
    pieces = [("<pad>", 0.0), (END, 0.0), ("<unk>", 0.0), ("▁", -2.0), ("u", -3.0), ("n", -3.0)]
    backend.model = models.Unigram([*pieces, ("k", -3.0), ("a", -3.0)], unk_id=2)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token="<pad>", unk_token="<unk>"
    )
    ids, _ = texts_of(tokenizer, False).prompt_and_answer(Example("a <unk> a", ("a",)), False)
    assert tokenizer.unk_token_id in ids


def test_a_tokenizer_of_bytes_reads_special_tokens_as_text() -> None:
    """One that is not of the library `tokenizers`, and does not list its special tokens."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    texts = Texts(tokenizer, "x", False, [tokenizer.eos_token_id], None)
    answer = "a <pad> or </s> é"
    prompt, labels = texts.prompt_and_answer(Example("is </s> it?", (answer,)), False)
    assert prompt.count(tokenizer.eos_token_id) == labels.count(tokenizer.eos_token_id) == 1
    assert texts.decode(labels) == answer


def test_prompt_and_answer_are_one_text() -> None:
    """No space of a text's beginning stands between the two, and no token spans both."""
    for name in ("sentencepiece", "sentencepiece, first", "byte level"):
        texts = texts_of(tokenizer_of(name))
        prompt, answer = texts.prompt_and_answer(Example("cow?", ("yes",)), False)
        whole = texts.tokenizer("cow? yes", add_special_tokens=False)["input_ids"]
        assert [*prompt, *answer[:-1]] == whole, name


def test_a_vocabulary_without_the_letter_a_keeps_its_begin_token() -> None:
    backend = Tokenizer(models.WordLevel({BEGIN: 0, END: 1, "7": 2, "+": 3, " ": 4}))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single=AROUND["both"], special_tokens=[(BEGIN, 0), (END, 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END)
    texts = Texts(tokenizer, "x", True, [1], None)
    assert texts.prompt_and_answer(Example("7+7", ("7",)), False) == ([0, 2, 3, 2], [4, 2, 1])


def test_a_first_token_that_is_forced_is_learned_and_not_read() -> None:
    tokenizer = tokenizer_of("byte level")
    texts = Texts(tokenizer, "x", False, [tokenizer.eos_token_id], tokenizer.bos_token_id)
    _, labels = texts.prompt_and_answer(Example("cow?", ("yes",)), False)
    assert labels[0] == tokenizer.bos_token_id
    assert texts.decode(labels) == "yes"


# -- templates that fail

FAILS = {
    "{% for i in range(10000000000) %}{% endfor %}": "OverflowError|too big|Range",
    "{{ messages[0]['content'] + 1 }}": "can only concatenate|concatenate",
    "{{ messages[7].content.x }}": "undefined|no element",
    "{{ 1 // 0 }}": "zero",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{{ messages | nothing }}": "filter",
    "{% for": "unexpected|Unexpected",
    "{{ raise_exception('no system') }}": "no system",
    "": "writes nothing",
    f"{TURNS}{{% if m.role == 'user' %}}{{{{ m.content }}}}{{% endif %}}{{% endfor %}}": "leaves",
    f"{TURNS}{{% if m.role == 'assistant' %}}{{{{ raise_exception('no answers') }}}}{{% endif %}}"
    f"[{{{{ m.content }}}}]{ASKS}=> {{% endif %}}": "no answers",
    "{{ 'x' * 100000000000 }}": "memory|Memory",
}


@pytest.mark.parametrize("template", FAILS)
def test_a_template_that_fails_is_one_line(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("byte level")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    renders = chat.ChatTemplate(tokenizer, "tiny")
    with pytest.raises(RetainError, match=FAILS[template]) as error:
        renders.render([{"role": "user", "content": "Hi there"}], "yes")
    assert "chat template of backbone 'tiny'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    tokenizer = tokenizer_of("byte level")
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", loops)
    began = time.monotonic()
    with pytest.raises(RetainError, match=r"takes more than 0\.2 s .* 'Hi'"):
        chat.ChatTemplate(tokenizer, "tiny").render([{"role": "user", "content": "Hi"}])
    assert time.monotonic() - began < 30


# -- metrics


@pytest.mark.parametrize("metric", sorted({*METRICS} - {"sari"}))
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@given(text=st.text("ab é中.\n", min_size=1).filter(lambda text: any(map(str.isalnum, text))))
@settings(max_examples=20, deadline=None)
def test_forms_and_white_space_are_the_same_on_both_sides(
    metric: str, form: str, text: str
) -> None:
    spaced = unicodedata.normalize(form, f" \r\n{text}\n")
    alone = score(metric, [canonical(text)], [[text]], ["p"])
    assert score(metric, [canonical(text)], [[spaced]], ["p"]) == alone
    assert score(metric, [spaced], [[text]], ["p"]) == alone


@pytest.mark.parametrize(
    "text", ["是的", "คน", "да, это так", "नमस्ते दुनिया", "예 아니요", "🙂 👍🏽", "C++", "l’été"]
)
def test_rouge_reads_every_script(text: str) -> None:
    assert score("rouge_l_unicode", [text], [[text]], [""]) == 100
    assert score("rouge_l_unicode", [text[: len(text) // 2]], [[text]], [""]) < 100


@settings(max_examples=50, deadline=None)
@given(*[st.text("ab cd running.\n", max_size=30)] * 2)
def test_rouge_is_that_of_the_published_scorer(prediction: str, reference: str) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = scorer.score(target=reference, prediction=prediction)["rougeL"].fmeasure
    assert METRICS["rouge_l"](prediction, [reference], "") == expected


def test_rouge_of_long_texts_is_quick() -> None:
    one, other = ("".join(f"{word}{i % 97} " for i in range(20_000)) for word in "ab")
    assert METRICS["rouge_l"](one, [other], "") == 0
    assert METRICS["rouge_l"](one, [one], "") == 1


def test_rouge_of_unspaced_scripts_counts_characters() -> None:
    assert score("rouge_l_unicode", ["天气好"], [["天气很好"]], [""]) == pytest.approx(600 / 7)
    assert score("rouge_l_unicode", ["नमस्ते"], [["नमस्ता"]], [""]) == 0  # one word, another sign
    assert score("rouge_l_unicode", ["The CAT"], [["the cat."]], [""]) == 100
