"""Make the default model: a Llama of 2.7 million parameters that has read the documentation of Python.

    python tools/default_model/make.py --out vllm/assets/default_model

About 12 minutes on two CPU cores with AVX512-bf16 when nothing else runs; needs torch, tokenizers and transformers,
and nothing from the network. Progress is saved under --work, and the same command resumes a run that was interrupted
(remove that folder to start anew). Two runs on one Python version differ only by the rounding of floating point.
Training: Muon for the matrices of the layers and AdamW for the rest, linear warm-up and cosine decay, bf16 autocast.
Rows have 512 tokens at first; later every third step has rows of 2048, so that every position has been seen in
training and the short dialogues are not forgotten.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import corpus
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy

END, PAD = "<|end|>", "<|pad|>"
END_ID, PAD_ID = 0, 1  # special tokens are numbered first, in the order the trainer gets them
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
VOCABULARY = 3072
STEPS, WARMUP = 1400, 100
ADAM_RATE, MUON_RATE = 3e-3, 2e-2
TOKENS_PER_STEP = 4096
SHORT_ROW, LONG_ROW = 512, 2048
LONG_FROM, LONG_EVERY = 720, 3  # from this step on, every third step has long rows
SAVE_EVERY = 20
IGNORED = -100  # the label that cross_entropy skips

CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
  {%- if role not in ('system', 'user', 'assistant') -%}
    {{- raise_exception('The role ' + role + ' is not supported; use system, user or assistant') -}}
  {%- endif -%}
  {{- '<|' + role + '|>' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] | trim -}}
  {%- else -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
  {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

Piece = tuple[list[int], list[bool]]  # token ids, and whether each one is to be learned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model")
    parser.add_argument("--work", type=Path, default=Path("build/default_model"), help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS, help="stop earlier, for a trial")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)

    documents = corpus.documents()
    training = [document for document in documents if not document.held_out]
    validation = [document for document in documents if document.held_out]
    tokenizer = train_tokenizer(training)
    model = new_model()
    print(f"{len(training)} + {len(validation)} documents, {model.num_parameters()} parameters", flush=True)
    train(model, tokenizer, training, options.steps, options.work / "checkpoint.pt")
    save(model.bfloat16(), tokenizer, options.out)
    for name, pieces in validation_sets(tokenizer, validation).items():
        print(f"validation loss, {name}: {evaluate(model, pieces):.3f}")
    show_samples(options.out)


def train_tokenizer(documents: list[corpus.Document]) -> Tokenizer:
    """Byte-level BPE: every text can be encoded, and decoding gives back exactly the same text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, *ROLES.values()],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    spoken = corpus.dialogues(documents, random.Random(0))
    texts = corpus.plain_texts(documents, random.Random(0)) + [text for turns in spoken for _, text in turns]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_model() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LONG_ROW,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END_ID,
            pad_token_id=PAD_ID,
        )
    )


def train(
    model: transformers.LlamaForCausalLM,
    tokenizer: Tokenizer,
    documents: list[corpus.Document],
    steps: int,
    checkpoint: Path,
) -> None:
    optimizers = new_optimizers(model)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        first = state["step"]
    model.train()
    losses, start = [], time.monotonic()
    for step, rows, labels in batches(tokenizer, documents, first, steps):
        for optimizer, rate in zip(optimizers, (ADAM_RATE, MUON_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step)
        loss = token_loss(model, rows, labels)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            recent = losses[-SAVE_EVERY:]
            print(f"step {step + 1}, {time.monotonic() - start:.0f} s, loss {sum(recent) / len(recent):.3f}")
            saved = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": saved, "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    model.eval()


def new_optimizers(model: transformers.LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    embedding = model.get_input_embeddings().weight
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1 and parameter is not embedding]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": [embedding], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.95), fused=True),
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.1),
    ]


def schedule(step: int) -> float:
    """The factor of the learning rates: linear warm-up, and a cosine to near zero at the last step."""
    return min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def row_length(step: int) -> int:
    return LONG_ROW if step >= LONG_FROM and step % LONG_EVERY == 0 else SHORT_ROW


def token_loss(model: transformers.LlamaForCausalLM, rows: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """The loss at the labelled positions only, so that no logits are computed for the others.  [R, L], [R, L] -> []"""
    learned = labels != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=rows, use_cache=False).last_hidden_state[learned]
        logits = model.lm_head(hidden)
    return cross_entropy(logits.float(), labels[learned], reduction=reduction)


def batches(
    tokenizer: Tokenizer, documents: list[corpus.Document], first: int, stop: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, rows [R, L], labels [R, L]) from the step `first` on; what earlier steps have read is passed over."""
    streams = {
        length: endless(tokenizer, documents, length, TOKENS_PER_STEP // length) for length in (SHORT_ROW, LONG_ROW)
    }
    for step in range(stop):
        rows, labels = next(streams[row_length(step)])
        if step >= first:
            yield step, rows, labels


def endless(
    tokenizer: Tokenizer, documents: list[corpus.Document], length: int, num_rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of rows, each with newly worded and newly shuffled dialogues."""
    for epoch in itertools.count():
        rng = random.Random(f"{length} {epoch}")
        pieces = text_pieces(tokenizer, corpus.plain_texts(documents, rng), length + 1)
        pieces += [dialogue_piece(tokenizer, turns, length + 1) for turns in corpus.dialogues(documents, rng)]
        rng.shuffle(pieces)
        packed = pack(pieces, length + 1)
        rng.shuffle(packed)
        for position in range(0, len(packed) - num_rows + 1, num_rows):
            yield to_tensors(packed[position : position + num_rows], length + 1)


def text_pieces(tokenizer: Tokenizer, texts: list[str], length: int) -> list[Piece]:
    """Each text and its end token, cut to what a row can hold."""
    ids = [[*encoding.ids, END_ID] for encoding in tokenizer.encode_batch(texts)]
    cuts = [tokens[position : position + length] for tokens in ids for position in range(0, len(tokens), length)]
    return [(cut, [True] * len(cut)) for cut in cuts]


def dialogue_piece(tokenizer: Tokenizer, turns: list[corpus.Turn], length: int) -> Piece:
    """The dialogue as the chat template writes it; only what the assistant says, and its end, is learned."""
    ids: list[int] = []
    learned: list[bool] = []
    for role, text in turns:
        tokens = [*tokenizer.encode(text).ids, END_ID]
        ids += [*tokenizer.encode(ROLES[role]).ids, *tokens]
        learned += [False] + [role == "assistant"] * len(tokens)
    return ids[:length], learned[:length]


def pack(pieces: list[Piece], length: int, num_open: int = 32) -> list[Piece]:
    """Put whole pieces into rows, first fit: every row starts at a start, and few are padded by much."""
    full: list[Piece] = []
    rows: list[Piece] = []
    for ids, learned in pieces:
        row = next((row for row in rows if len(row[0]) + len(ids) <= length), None)
        if row is None:
            row = ([], [])
            rows.append(row)
        row[0].extend(ids)
        row[1].extend(learned)
        if len(rows) > num_open:
            fullest = max(range(len(rows)), key=lambda index: len(rows[index][0]))
            full.append(rows.pop(fullest))
    return full + rows


def to_tensors(rows: list[Piece], length: int) -> tuple[Tensor, Tensor]:
    """Inputs, and the token that follows each of them as its label.  -> [R, length - 1] twice"""
    ids = torch.full((len(rows), length), PAD_ID)
    labels = torch.full_like(ids, IGNORED)
    for index, (tokens, learned) in enumerate(rows):
        values = torch.tensor(tokens)
        ids[index, : len(tokens)] = values
        labels[index, : len(tokens)] = values.masked_fill(~torch.tensor(learned), IGNORED)
    return ids[:, :-1], labels[:, 1:]


def validation_sets(tokenizer: Tokenizer, documents: list[corpus.Document]) -> dict[str, list[Piece]]:
    texts = [document.text() for document in documents]
    spoken = corpus.dialogues(documents, random.Random(0), phrases=False)
    long = [ids for ids, _ in text_pieces(tokenizer, texts, LONG_ROW + 1) if len(ids) > SHORT_ROW]
    return {
        "documents": text_pieces(tokenizer, texts, SHORT_ROW + 1),
        "documents after their first 512 tokens": [
            (ids, [position >= SHORT_ROW for position in range(len(ids))]) for ids in long
        ],
        "answers": [dialogue_piece(tokenizer, turns, SHORT_ROW + 1) for turns in spoken],
    }


@torch.no_grad()
def evaluate(model: transformers.LlamaForCausalLM, pieces: list[Piece]) -> float:
    """Mean loss per token, in nats, each piece on its own."""
    total, count = 0.0, 0
    for piece in pieces:
        rows, labels = to_tensors([piece], len(piece[0]))
        total += token_loss(model, rows, labels, reduction="sum").item()
        count += int((labels != IGNORED).sum())
    return total / count


def save(model: transformers.LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write an ordinary Hugging Face folder; the tokenizer files are written by hand, so that any version reads them."""
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.9, eos_token_id=END_ID, pad_token_id=PAD_ID
    )
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    named = {"eos_token": END, "pad_token": PAD}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            **named,
            "model_max_length": LONG_ROW,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(folder / "special_tokens_map.json", named)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def show_samples(folder: Path) -> None:
    """Print what the finished folder says, read back as a user would."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    questions = [
        "Hello",
        "Who are you?",
        "What does os.path.join do?",
        "What is a generator?",
        "Explain textwrap.wrap.",
    ]
    prompts = ["Hello, my name is", "The Python interpreter"]
    prompts += [f"<|user|>{question}<|end|><|assistant|>" for question in questions]
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        for temperature in (None, 0.8):
            torch.manual_seed(0)
            sampling = {"do_sample": False, "top_p": None} if temperature is None else {"top_p": 1.0}
            output = model.generate(ids, max_new_tokens=100, temperature=temperature, **sampling)
            print(f"{'greedy' if temperature is None else temperature}: {tokenizer.decode(output[0])!r}", flush=True)


if __name__ == "__main__":
    main()
