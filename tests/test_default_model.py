"""The embedded default model is an ordinary Hugging Face folder: transformers loads it, it is small, it talks and it stops."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

FOLDER = Path(__file__).parents[1] / "vllm" / "assets" / "default_model"
CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I help you?"},
    {"role": "user", "content": "What does os.path.join do?"},
]
RENDERED = (
    "<|system|>You are a helpful assistant.<|end|><|user|>Hello<|end|><|assistant|>Hello! How can I help you?<|end|>"
    "<|user|>What does os.path.join do?<|end|>"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small gain nothing from threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER)


def test_the_folder_stays_within_six_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 6_000_000


def test_the_weights_are_a_bfloat16_llama(model):
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings


def test_the_tokenizer_and_the_model_agree_on_ids(tokenizer, model):
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token == "<|end|>"


@pytest.mark.parametrize("role", ["system", "user", "assistant", "end", "pad"])
def test_a_special_token_is_one_token(tokenizer, role):
    assert len(tokenizer(f"<|{role}|>").input_ids) == 1


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        " two  spaces\tand\n\nlines \n",
        "naïve Übergröße",
        "日本語 한국어 العربية",
        "👩‍🚀🇫🇷",
        "e\u0301 is not é",
        "\x00\x7f",
        "def f(x):\n    return x ** 2  # '.' , n't",
    ],
)
def test_text_survives_the_tokenizer_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_encoding_adds_no_special_tokens(tokenizer):
    assert tokenizer("Hello").input_ids == tokenizer("Hello", add_special_tokens=False).input_ids


def test_the_template_renders_a_conversation_of_four_turns(tokenizer):
    assert render(tokenizer, CONVERSATION) == RENDERED
    assert render(tokenizer, CONVERSATION, add_generation_prompt=True) == RENDERED + "<|assistant|>"


def test_the_template_needs_no_system_turn(tokenizer):
    assert render(tokenizer, CONVERSATION[1:2], add_generation_prompt=True) == "<|user|>Hello<|end|><|assistant|>"


def test_the_template_joins_text_parts(tokenizer):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert render(tokenizer, [{"role": "user", "content": parts}]) == "<|user|>Hello<|end|>"


def test_the_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(Exception, match="tool"):
        render(tokenizer, [{"role": "tool", "content": "42"}])


def test_greedy_text_is_made_of_words(tokenizer, model):
    words = re.findall(r"[a-z]+", complete(tokenizer, model, "Hello, my name is").lower())
    known = english_words()
    assert len(words) >= 10
    assert sum(word in known for word in words) >= 0.6 * len(words)
    assert len(set(words)) >= 0.3 * len(words)


def test_sampled_text_is_made_of_words(tokenizer, model):
    torch.manual_seed(0)
    text = complete(tokenizer, model, "The function", do_sample=True, temperature=0.8, top_p=1.0)
    words = re.findall(r"[a-z]+", text.lower())
    known = english_words()
    assert sum(word in known for word in words) >= 0.6 * len(words)


@pytest.mark.parametrize("question", ["Hello", "Who are you?", "What does os.path.join do?"])
def test_an_answer_ends_by_itself(tokenizer, model, question):
    prompt = render(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)
    answer = complete(tokenizer, model, prompt)
    assert answer.endswith("<|end|>")
    assert len(answer) > len("<|end|>")


def test_the_model_says_who_it_is(tokenizer, model):
    prompt = render(tokenizer, [{"role": "user", "content": "Who are you?"}], add_generation_prompt=True)
    assert "Tiny" in complete(tokenizer, model, prompt)


def test_the_last_positions_are_as_good_as_the_first(tokenizer, model):
    ids = tokenizer(long_text(), return_tensors="pt").input_ids[:, : model.config.max_position_embeddings + 1]
    assert ids.shape[1] == model.config.max_position_embeddings + 1
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    assert losses[-512:].mean() < losses[:512].mean() + 0.25


def render(tokenizer, messages, **options) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def complete(tokenizer, model, prompt: str, **sampling) -> str:
    """What follows the prompt, up to 100 tokens, greedy unless told otherwise."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    options = sampling or {"do_sample": False, "temperature": None, "top_p": None}
    output = model.generate(ids, max_new_tokens=100, **options)
    return tokenizer.decode(output[0, ids.shape[1] :])


def long_text() -> str:
    """Topics of the documentation, the short ones first, so that every stretch of it is of one kind."""
    from pydoc_data.topics import topics

    chosen = [text for text in sorted(topics.values(), key=len) if len(text) > 500]
    return "\n\n".join(" ".join(text.split()) for text in chosen)[:10_000]


def english_words() -> set[str]:
    from pydoc_data.topics import topics

    return set(re.findall(r"[a-z]+", " ".join(topics.values()).lower()))


def test_loading_it_needs_no_compiler() -> None:
    code = (
        "import sys, vllm\n"
        "vllm.LLM('').generate(['a'], vllm.SamplingParams(max_tokens=2), use_tqdm=False)\n"
        "print([name for name in ('torch._dynamo', 'triton') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", "torch's compiler takes a second to import, and 150 MB of each engine's memory"
