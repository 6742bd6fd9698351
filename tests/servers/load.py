"""Load models as their users do, one after the other.

    build/servers/bin/python tests/servers/load.py JOBS

JOBS is a JSON list of objects: `name`, `library`, `model` (a folder or a repo id) and `options`
for what loads it. Each model computes something: what is only mapped would not be read. Before
each, the path `/case/NAME` is opened, so that a trace shows where it begins. Prints a JSON object
of the failures by name. It runs in the servers' own environment, so it imports nothing of this
repository, and the libraries only as they are needed.
"""

import contextlib
import json
import sys
import traceback
from typing import Any

MARK = "/case/"


def main(jobs: str) -> None:
    """Load all, whatever fails."""
    failures = {}
    for job in json.loads(jobs):
        with contextlib.suppress(FileNotFoundError):
            open(MARK + job["name"], "rb").close()
        try:
            LIBRARIES[job["library"]](job["model"], **job["options"])
        except Exception:  # noqa: BLE001  the others' results count all the same
            failures[job["name"]] = traceback.format_exc()
    print(json.dumps(failures))


def with_transformers(model: str, **options: Any) -> None:
    """Load a tokenizer and a language model, and run it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(model, **options)
    language_model = AutoModelForCausalLM.from_pretrained(model, **options)
    language_model(**tokenizer("hello world", return_tensors="pt"))


def with_sentence_transformers(model: str, **options: Any) -> None:
    """Load an encoder, and encode with each of its routes."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    encoder = SentenceTransformer(model, device="cpu", **options)
    encoder.encode_query("hello")
    encoder.encode_document("world")


def with_sparse_encoder(model: str, **options: Any) -> None:
    """Load a sparse encoder, and encode."""
    from sentence_transformers import SparseEncoder  # noqa: PLC0415

    SparseEncoder(model, device="cpu", **options).encode(["hello"])


def with_cross_encoder(model: str, **options: Any) -> None:
    """Load a reranker, and score a pair."""
    from sentence_transformers import CrossEncoder  # noqa: PLC0415

    CrossEncoder(model, device="cpu", **options).predict([("hello", "world")])


def with_diffusers(model: str, **options: Any) -> None:
    """Load a pipeline, and do one step."""
    from diffusers import DiffusionPipeline  # noqa: PLC0415
    from torch import float32  # noqa: PLC0415

    pipeline = DiffusionPipeline.from_pretrained(model, torch_dtype=float32, **options)
    pipeline("hello", num_inference_steps=1, output_type="latent", height=16, width=16)


LIBRARIES = {
    "transformers": with_transformers,
    "sentence-transformers": with_sentence_transformers,
    "sparse-encoder": with_sparse_encoder,
    "cross-encoder": with_cross_encoder,
    "diffusers": with_diffusers,
}

if __name__ == "__main__":
    main(sys.argv[1])
