"""The command `llama-server`, with the words that the tests use.

It runs llama.cpp's own HTTP server, model loader and engine: xllamacpp compiles llama.cpp's
tools/server into a module for Python, without its `main`. environment.py makes a command of this.
"""

import argparse
import signal

import xllamacpp

_DRAFT = xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE


def main() -> None:
    """Serve until SIGTERM; prints the address once the model is loaded."""
    parser = argparse.ArgumentParser(prog="llama-server")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-mm", "--mmproj", default="")
    parser.add_argument("-md", "--model-draft", default="")
    parser.add_argument("--lora", action="append", default=[])
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parameters = xllamacpp.CommonParams()
    parameters.model.path = given.model
    parameters.mmproj.path = given.mmproj
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in given.lora]
    if given.model_draft:
        parameters.speculative.draft.mparams.path = given.model_draft
        parameters.speculative.types = [_DRAFT]
    parameters.port = given.port
    parameters.n_ctx = 128
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
