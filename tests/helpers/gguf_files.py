"""GGUF files of the `gguf` package, with a header that says what they are."""

from pathlib import Path

import gguf
import numpy as np


def write_gguf(
    path: Path,
    kind: str | None = "model",
    *,
    architecture: str = "llama",
    texts: int = 3,
    tensor_bytes: int = 4096,
) -> Path:
    """Write a file of this `general.type`, none if it is None, with a vocabulary and a tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), architecture)
    if kind is not None:
        writer.add_type(kind)
    writer.add_name("a model")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_K_M))
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(texts)])
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros(tensor_bytes // 4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
