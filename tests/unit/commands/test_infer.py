"""What COMMAND's words say: the server, the model and what goes with it."""

import json
import random
from collections.abc import Sequence

import pytest

from prefetch_cli.base.words import LoadFormat, Server
from prefetch_cli.checkpoint.request import Pick, Reference, Role
from prefetch_cli.commands.infer import Inferred, completed, infer
from tests.helpers.requests import request

HOME = {"HOME": "/home/me"}


def inferred(text: str | Sequence[str], **environ: str) -> Inferred:
    return infer(text.split() if isinstance(text, str) else text, {**HOME, **environ})


def arguments(text: str | Sequence[str], **environ: str) -> list[str]:
    return [one.argument for one in inferred(text, **environ).references]


def model(text: str | Sequence[str], **environ: str) -> Reference:
    found = inferred(text, **environ)
    assert found.model is not None, found
    return found.model


STARTS = {
    "vllm serve org/m": Server.VLLM,
    "/opt/venv/bin/vllm serve org/m": Server.VLLM,
    "vllm serve --model org/m": Server.VLLM,
    "vllm run-batch -i in.jsonl -o out.jsonl --model org/m": Server.VLLM,
    "python -m vllm.entrypoints.openai.api_server --model org/m": Server.VLLM,
    "python -m vllm.entrypoints.api_server --model=org/m": Server.VLLM,
    "python3.12 -u -m vllm.entrypoints.cli.main serve org/m": Server.VLLM,
    "/usr/bin/python3 -um vllm.entrypoints.openai.api_server --model org/m": Server.VLLM,
    "python3 -X importtime -W ignore /opt/venv/bin/vllm serve org/m": Server.VLLM,
    "sglang serve org/m": Server.SGLANG,
    "sglang serve --model-path org/m": Server.SGLANG,
    "python3 -m sglang.launch_server --model-path org/m --tp 8": Server.SGLANG,
    "python3 -m sglang.launch_server --model org/m": Server.SGLANG,
    "trtllm-serve org/m": Server.TENSORRT_LLM,
    "trtllm-serve serve org/m --tp_size 2": Server.TENSORRT_LLM,
    "trtllm-serve --tp_size 2 org/m": Server.TENSORRT_LLM,
    "trtllm-llmapi-launch trtllm-serve org/m": Server.TENSORRT_LLM,
    "python -m tensorrt_llm.commands.serve serve org/m": Server.TENSORRT_LLM,
    "text-generation-launcher --model-id org/m": Server.TGI,
    "text-generation-server serve org/m": Server.TGI,
    "transformers serve org/m": Server.TRANSFORMERS,
    "llama-server -m org/m": Server.LLAMA_CPP,
    "llama-cli --model org/m -p hello": Server.LLAMA_CPP,
    "python -m llama_cpp.server --model org/m": Server.LLAMA_CPP,
    "ollama run org/m": Server.OLLAMA,
    "ollama run --verbose --keepalive 5m org/m hello": Server.OLLAMA,
}


@pytest.mark.parametrize("text", STARTS)
def test_the_server_and_its_model_are_found(text: str) -> None:
    found = inferred(text)
    assert (found.server, found.problem) == (STARTS[text], "")
    assert [one.argument for one in found.references] == ["org/m"]
    assert all(one.inferred for one in found.references)


LAUNCHERS = (
    "env",
    "env -i",
    "env -",
    "env -u HF_HOME -- A=b",
    "env -uHF_HOME",
    "env --unset=HF_HOME -v",
    "/usr/bin/env A=b B=",
    "nice",
    "nice -n 5",
    "nice -n5",
    "nice -10",
    "nice --adjustment=5",
    "ionice -c2 -n7",
    "ionice -c 2 -n 7 -t",
    "numactl --interleave=all",
    "numactl -N 0 -m 0",
    "numactl --cpunodebind 0 --membind 0 --",
    "taskset -c 0-7",
    "taskset 0xff",
    "taskset --cpu-list 0-7",
    "stdbuf -oL -eL",
    "stdbuf --output=L",
    "chrt -b 0",
    "chrt --idle 0",
    "time -f %e -o /tmp/time",
    "timeout 10m",
    "timeout -k 5 --signal=INT --foreground 10m",
    "nohup",
    "setsid -w",
    "tini -s --",
    "dumb-init --",
    "uv run",
    "uv run --with vllm --python 3.12 --no-sync",
    "uv --offline run --extra=cuda --",
    "uv tool run --from vllm",
    "uvx --from vllm==0.33",
    "poetry run",
    "conda run -n serving --no-capture-output",
    "nice env A=b numactl -N 0 timeout 9 taskset -c 1 nohup",
    "uv run python /opt/bin/env",
)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_in_front_of_the_server_is_looked_through(launcher: str) -> None:
    assert arguments(f"{launcher} vllm serve org/m") == ["org/m"]


@pytest.mark.parametrize("launcher", ["uv run", "uv run -v", "uvx --python 3.12"])
@pytest.mark.parametrize("flag", ["-m", "--module"])
def test_a_module_that_uv_runs_is_found(launcher: str, flag: str) -> None:
    assert arguments([*launcher.split(), flag, "sglang.launch_server", "--model", "o/m"]) == ["o/m"]


def test_a_version_that_uvx_is_asked_for_is_no_part_of_the_name() -> None:
    assert arguments("uvx vllm@0.33 serve org/m") == ["org/m"]


SCRIPTS = (
    "vllm serve org/m",
    "  exec vllm serve org/m\n",
    "exec nice -n 5 vllm serve 'org/m' --port \"80\"",
    "A=b C= vllm serve org/m",
    "vllm serve org/m \\\n  --port 80",
    "vllm serve org\\/m",
    "vllm serve $MODEL",
    'vllm serve "${MODEL}"',
    "vllm serve ${ORG}/m",
    'vllm serve org/m --hf-overrides \'{"a": [1, "$x|y"]}\'',
    'vllm serve org/m --hf-overrides "{\\"a\\": 1}"',
    "bash -c 'exec vllm serve org/m'",
)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("shell", ["bash -c", "/bin/sh -ec", "bash -l -c", "bash -o pipefail -c"])
def test_one_simple_command_of_a_shell_is_read(script: str, shell: str) -> None:
    assert arguments([*shell.split(), script], MODEL="org/m", ORG="org") == ["org/m"]


NOT_SIMPLE = (
    "",
    "cd /x && vllm serve org/m",
    "vllm serve org/m | tee log",
    "vllm serve org/m > log",
    "vllm serve org/m &",
    "cd /x; vllm serve org/m",
    "cd /x\nvllm serve org/m",
    "vllm serve $(cat model)",
    "vllm serve `cat model`",
    'vllm serve "`cat model`"',
    'vllm serve "$(cat model)"',
    "vllm serve $UNSET",
    "vllm serve ${MODEL:-org/m}",
    "vllm serve $SPACED",
    'vllm serve "$@"',
    "vllm serve $1",
    "vllm serve /models/*",
    "vllm serve ~/m",
    "vllm serve {a,b}",
    "vllm serve org/m # comment",
    "vllm serve 'org/m",
    'vllm serve "org/m',
    "vllm serve org/m\\",
    "(vllm serve org/m)",
)


@pytest.mark.parametrize("script", NOT_SIMPLE)
def test_what_a_shell_would_make_of_a_text_is_never_guessed(script: str) -> None:
    found = inferred(["bash", "-c", script], MODEL="org/m", SPACED="org/m --port 80")
    assert (found.server, found.references) == (Server.AUTO, ())
    assert found.problem


@pytest.mark.parametrize(
    "text",
    [
        "bash serve.sh",
        "bash",
        "env",
        "env A=b",
        "nice",
        "uv sync",
        "python",
        "python -m",
        "python -c vllm",
        "python serve.py",
        "true",
        "vllm-serve org/m",
        "python -m vllm.unknown --model org/m",
        "torchrun --nproc-per-node 8 serve.py",
        " ".join(["env"] * 100),
    ],
)
def test_another_command_is_no_server(text: str) -> None:
    found = inferred(text)
    assert (found.server, found.references) == (Server.AUTO, ())
    assert found.problem


def test_the_words_of_env_split_string_are_its_own() -> None:
    assert arguments(["env", "-S", "A=b nice vllm serve", "org/m"]) == ["org/m"]
    assert arguments(["env", "-iS", "-u HF_HOME vllm serve org/m"]) == ["org/m"]
    assert arguments(["env", "--split-string=vllm serve org/m"]) == ["org/m"]
    assert arguments(["env", "-S", "vllm serve $(x)"]) == []


def test_the_environment_is_the_one_that_the_server_sees() -> None:
    text = "env -u A B=1 bash -c"
    found = inferred([*text.split(), "C=2 exec vllm serve org/m"], A="0", D="3")
    assert found.environ == {**HOME, "B": "1", "C": "2", "D": "3"}
    assert inferred("env -i A=b vllm serve org/m").environ == {"A": "b"}


@pytest.mark.parametrize(
    "launcher", ["env -C /x", "env --chdir=/x", "uv run --directory /x", "poetry -C /x run"]
)
def test_a_relative_name_in_another_directory_is_not_known(launcher: str) -> None:
    assert arguments(f"{launcher} vllm serve /models/m") == ["/models/m"]
    found = inferred(f"{launcher} vllm serve org/m")
    assert (found.server, found.references) == (Server.VLLM, ())
    assert "another working directory" in found.problem


# Options of vLLM


@pytest.mark.parametrize(
    "text",
    [
        "vllm serve org/m --port 80",
        "vllm serve --port 80 org/m",
        "vllm serve --port=80 org/m",
        "vllm serve --enforce-eager org/m",
        "vllm serve --enforce_eager org/m",
        "vllm serve -tp 8 --max_model_len 4096 org/m --unknown value",
        "vllm serve --unknown=1 org/m",
        "vllm serve --unknown value --model org/m",
        "vllm serve --unknown value --enforce-eager org/m",
        "vllm serve --speculative-config.method ngram org/m",
        "vllm serve --compilation-config.mode 3 org/m",
        "vllm serve --port 80 -- org/m",
        "vllm serve --model org/m --model org/other",
    ],
)
def test_the_model_of_vllm_is_found_among_its_options(text: str) -> None:
    assert arguments(text) == ["org/m"]


@pytest.mark.parametrize(
    "text", ["vllm serve --unknown org/m", "vllm serve --served-model-name a org/m"]
)
def test_a_word_that_may_be_the_value_of_an_option_is_no_model(text: str) -> None:
    found = inferred(text)
    assert (found.server, found.references) == (Server.VLLM, ())
    assert "org/m" in found.problem
    assert "any may be the model" in found.problem


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vllm serve", "no model"),
        ("vllm serve --model", "no model"),
        ("vllm serve --model=", "no model"),
        ("vllm serve --config a.yaml", "options are in a.yaml"),
        ("vllm bench serve --model org/m", "no server"),
        ("vllm", "no server"),
        ("python -m vllm.entrypoints.openai.api_server org/m", "no model"),
        ("python -m sglang.launch_server --config a.yaml", "options are in a.yaml"),
        ("trtllm-serve --config a.yaml", "options are in a.yaml"),
        ("text-generation-launcher", "no model"),
        ("llama-server --port 80", "no model"),
        ("llama-server --gpt-oss-20b-default", "no model"),
        ("ollama serve", "that a request names"),
        ("ollama run", "no model"),
        ("vllm serve org/m --load-format mine", "load format"),
    ],
)
def test_a_server_without_a_model_says_why(text: str, why: str) -> None:
    found = inferred(text)
    assert found.server is not Server.AUTO
    assert not found.references
    assert why in found.problem


@pytest.mark.parametrize(
    "text",
    [
        "--load-format sharded_state --revision v1 --download-dir /cache",
        "--load-format=SHARDED_STATE --revision=v1 --download-dir=/cache",
        "--load_format sharded_state --revision v1 --download_dir /cache",
        "--load-f sharded_state --rev v1 --downl /cache",
        "--load-format pt --load-format sharded_state --revision v1 --download-dir /cache",
    ],
)
def test_format_revision_and_cache_of_vllm_go_with_its_model(text: str) -> None:
    assert model(f"vllm serve org/m {text}") == Reference(
        "org/m",
        "v1",
        load_format=LoadFormat.SHARDED_STATE,
        cache_dir="/cache",
        inferred=True,
    )


def test_a_beginning_that_fits_several_options_is_none_of_them() -> None:
    assert model("vllm serve org/m --lo pt").load_format is None


def test_a_tokenizer_of_its_own_is_opened_first() -> None:
    found = inferred("vllm serve /m --tokenizer org/t --tokenizer-revision v2").references
    assert [(one.argument, one.revision, one.role) for one in found] == [
        ("org/t", "v2", Role.TOKENIZER),
        ("/m", None, Role.MODEL),
    ]
    found = inferred("vllm serve org/m --revision v1 --tokenizer org/t").references
    assert [one.revision for one in found] == ["v1", "v1"]
    assert arguments("vllm serve /m --tokenizer /m/") == ["/m"]


@pytest.mark.parametrize(
    "text",
    [
        ["--lora-modules", "a=/l/a", '{"name": "b", "path": "/l/b", "base_model_name": "m"}'],
        ["--lora-modules", "x=y", "--lora-modules", "a=/l/a", "b=/l/b"],
        ["--lora-modules=x=y", "--lora-modules", "a=/l/a", "b=/l/b", "--port", "80"],
    ],
)
def test_adapters_of_vllm_are_read_behind_the_model(text: list[str]) -> None:
    assert arguments(["vllm", "serve", "/m", *text]) == ["/m", "/l/a", "/l/b"]


def test_the_load_format_is_not_that_of_the_adapters() -> None:
    text = "vllm serve /m --load-format sharded_state --lora-modules a=/l/a"
    formats = [one.load_format for one in inferred(text).references]
    assert formats == [LoadFormat.SHARDED_STATE, LoadFormat.AUTO]


DRAFT = {"method": "eagle3", "model": "org/d", "revision": "v3"}


@pytest.mark.parametrize(
    "text",
    [
        ["--speculative-config", json.dumps(DRAFT)],
        ["--speculative_config", json.dumps(DRAFT)],
        ["-sc", json.dumps(DRAFT)],
        [f"-sc={json.dumps(DRAFT)}"],
        ["-sc.method", "eagle3", "-sc.model", "org/d", "-sc.revision=v3"],
        ["--speculative-config.model=org/d", "--speculative-config.revision", "v3"],
        ["--speculative_config.model", "org/d", "--speculative_config.revision", "v3"],
        ["-sc", json.dumps(DRAFT | {"model": "org/x"}), "-sc.model", "org/d", "-sc.revision", "v3"],
    ],
)
def test_the_draft_model_of_vllm_is_read_behind_the_model(text: list[str]) -> None:
    target, draft = inferred(["vllm", "serve", "/m", "--load-format", "hf", *text]).references
    assert target.argument == "/m"
    expected = Reference("org/d", "v3", load_format=LoadFormat.HF, inferred=True)
    assert draft == expected


def test_a_draft_may_have_a_load_format_of_its_own() -> None:
    nested = {"model": "/d", "draft_load_config": {"load_format": "pt"}}
    text = ["vllm", "serve", "/m", "--load-format", "hf"]
    for more in (
        ["-sc", json.dumps(nested)],
        ["-sc.model", "/d", "-sc.draft_load_config.load_format", "pt"],
    ):
        formats = [one.load_format for one in inferred([*text, *more]).references]
        assert formats == [LoadFormat.HF, LoadFormat.PT]


@pytest.mark.parametrize(
    "config",
    [
        '{"method": "ngram", "model": "org/d"}',
        '{"model": "[ngram]"}',
        '{"method": "mtp", "num_speculative_tokens": 1}',
        '{"model": "/m/"}',
        '{"model": 5}',
        "[1]",
        "no JSON",
        "[" * 100_000,
        "",
    ],
)
def test_speculation_without_a_second_model_adds_nothing(config: str) -> None:
    assert arguments(["vllm", "serve", "/m", "--speculative-config", config]) == ["/m"]


def test_the_short_option_for_a_draft_is_known() -> None:
    assert arguments("vllm serve /m --spec-method eagle3 --spec-model /d") == ["/m", "/d"]


def test_options_in_a_file_are_not_read_and_that_is_said() -> None:
    found = inferred("vllm serve /m --config a.yaml")
    assert [one.argument for one in found.references] == ["/m"]
    assert "a.yaml" in found.notes[0]


# Options of other servers


def test_options_of_sglang_are_understood() -> None:
    text = (
        "sglang serve /m --tokenizer-path /t --load-format pt --revision v1 --download-dir /c "
        "--speculative-draft-model-path /d --speculative-draft-model-revision v2 "
        "--speculative-draft-load-format safetensors --lora-paths /l/a b=/l/b"
    )
    loras = ['{"lora_name": "c", "lora_path": "/l/c", "pinned": true}']
    assert inferred([*text.split(), *loras]).references == (
        Reference("/t", "v1", Role.TOKENIZER, inferred=True),
        Reference("/m", "v1", load_format=LoadFormat.PT, cache_dir="/c", inferred=True),
        Reference("/d", "v2", load_format=LoadFormat.SAFETENSORS, cache_dir="/c", inferred=True),
        *(
            Reference(f"/l/{name}", load_format=LoadFormat.AUTO, inferred=True)
            for name in ("a", "b", "c")
        ),
    )
    assert arguments("sglang serve /m --speculative-draft-model /d") == ["/m", "/d"]


def test_sglang_takes_a_positional_only_in_front_and_no_underscores() -> None:
    assert arguments("sglang serve --tp=2 /m") == []
    assert arguments("sglang serve --model_path /m") == []


def test_options_of_tensorrt_llm_are_understood() -> None:
    text = "trtllm-serve --trust_remote_code --max_batch_size 8 org/m --tokenizer /t --revision v1"
    assert inferred(text).references == (
        Reference("/t", "v1", Role.TOKENIZER, inferred=True),
        Reference("org/m", "v1", inferred=True),
    )


def test_options_and_variables_of_text_generation_inference_are_understood() -> None:
    text = "text-generation-launcher --huggingface-hub-cache /c --lora-adapters org/a,b=/l/b"
    found = inferred(text, MODEL_ID="org/m", REVISION="v1").references
    assert found == (
        Reference("org/m", "v1", cache_dir="/c", inferred=True),
        Reference("org/a", load_format=LoadFormat.AUTO, inferred=True),
        Reference("/l/b", load_format=LoadFormat.AUTO, inferred=True),
    )
    assert model("text-generation-launcher --model-id org/n", MODEL_ID="org/m").argument == "org/n"
    assert model("text-generation-server serve org/m v1 --port 80").revision == "v1"


def test_files_of_llama_cpp_are_found() -> None:
    text = "llama-server -m /m.gguf --mmproj /p.gguf -md /d.gguf --lora /l/a.gguf,/l/b.gguf"
    assert arguments(text) == ["/m.gguf", "/p.gguf", "/d.gguf", "/l/a.gguf", "/l/b.gguf"]
    text = "llama-server --model /m.gguf -mm /p.gguf --model_draft /d.gguf --lora /a --lora /b"
    assert arguments(text) == ["/m.gguf", "/p.gguf", "/d.gguf", "/a", "/b"]
    assert arguments("llama-server -m /m --spec-draft-model /d") == ["/m", "/d"]
    # It has no such form.
    assert arguments("llama-server --model=/m.gguf") == []


def test_variables_of_llama_cpp_count_less_than_its_options() -> None:
    variables = {
        "LLAMA_ARG_MODEL": "/m.gguf",
        "LLAMA_ARG_MMPROJ": "/p.gguf",
        "LLAMA_ARG_SPEC_DRAFT_MODEL": "/d.gguf",
    }
    assert arguments("llama-server", **variables) == ["/m.gguf", "/p.gguf", "/d.gguf"]
    assert arguments("llama-server -m /n.gguf", **variables)[0] == "/n.gguf"
    assert arguments("env -u LLAMA_ARG_MODEL llama-server", **variables) == []
    assert arguments("env LLAMA_ARG_MODEL=/n.gguf llama-server", **variables)[0] == "/n.gguf"


CACHES: tuple[tuple[dict[str, str], str], ...] = (
    ({}, "/home/me/.cache/huggingface/hub"),
    ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
    ({"HUGGINGFACE_HUB_CACHE": "/u", "HF_HOME": "/h"}, "/u"),
    ({"HF_HUB_CACHE": "/c", "HUGGINGFACE_HUB_CACHE": "/u"}, "/c"),
    ({"LLAMA_CACHE": "/l", "HF_HUB_CACHE": "/c"}, "/l"),
    ({"LLAMA_CACHE": "", "HF_HUB_CACHE": "/c"}, "/c"),
)


@pytest.mark.parametrize(("environ", "cache"), CACHES)
def test_a_repo_of_llama_cpp_is_in_its_own_cache(environ: dict[str, str], cache: str) -> None:
    for option in ("-hf", "-hfr", "--hf-repo", "--hf_repo"):
        found = model(f"llama-server {option} org/m:Q8_0 -m /m.gguf", **environ)
        assert found == Reference("org/m:Q8_0", cache_dir=cache, pick=Pick(), inferred=True)


def test_a_file_of_a_repo_and_its_projector_are_chosen() -> None:
    assert model("llama-server -hf org/m -hff a/b.gguf").pick == Pick("a/b.gguf")
    assert model("llama-server -hf org/m --no-mmproj").pick == Pick(projector=False)
    assert model("llama-server -hf org/m -mm /p.gguf").pick == Pick(projector=False)
    target, draft = inferred("llama-server -hf org/m -hfd org/d:Q4_0 -md /d.gguf").references
    assert (draft.argument, draft.pick, draft.cache_dir) == (
        "org/d:Q4_0",
        Pick(projector=False),
        target.cache_dir,
    )


# What the user says wins


COMMAND = "env A=b sglang serve org/m --revision v1 --load-format pt --download-dir /c"


def test_a_checkpoint_that_is_given_wins() -> None:
    given = completed(request(Reference("org/x")), inferred(COMMAND), None)
    assert given == request(Reference("org/x"), server=Server.SGLANG)


@pytest.mark.parametrize("name", ["org/m", "org/m/"])
def test_the_same_model_gets_what_the_command_says_of_it(name: str) -> None:
    found = completed(request(Reference(name)), inferred(COMMAND), None)
    expected = Reference(name, "v1", load_format=LoadFormat.PT, cache_dir="/c")
    assert found.references == (expected,)
    assert found.environ == {**HOME, "A": "b"}


def test_options_that_are_given_win_over_those_of_the_command() -> None:
    mine = request(load_format=LoadFormat.HF, cache_dir="/mine", server=Server.TGI)
    found = completed(mine, inferred(f"{COMMAND} --lora-paths /l"), "v9")
    assert found.server is Server.TGI
    assert found.references == (
        Reference("org/m", "v9", inferred=True),
        Reference("/l", load_format=LoadFormat.AUTO, inferred=True),
    )
    mine = request(Reference("org/m", "v9"), load_format=LoadFormat.HF, cache_dir="/mine")
    assert completed(mine, inferred(COMMAND), "v9").references == mine.references


def test_a_server_whose_model_is_not_known_is_noted_where_something_else_is_warmed() -> None:
    found = completed(request(), inferred("vllm serve --config a.yaml"), None)
    assert found.references == ()
    assert "no checkpoint is warmed" in found.notes[0]
    assert completed(request(), inferred("python serve.py"), None) == request()


def test_no_words_are_too_odd() -> None:
    pieces = (
        *("vllm", "serve", "sglang", "llama-server", "python", "-m", "env", "-S", "bash", "-c"),
        *("uv", "run", "timeout", "--", "-", "--model", "-sc", "-sc.", "--.", "-.a.b", "=", "--=x"),
        *("", "\0", "\udcff", "\x1b[", "{", '{"path": 1}', "[]", "--lora-modules", "--lora-paths"),
        *("vllm.entrypoints.openai.api_server", "sglang.launch_server", "-hf", ":", "org/m", "$A"),
        *(
            "--speculative-config.a.b",
            "--speculative-config.a",
            "--load-format",
            "-hff",
            "trtllm-serve",
        ),
    )
    chooser = random.Random(3)
    for _ in range(20_000):
        text = chooser.choices(pieces, k=chooser.randint(1, 9))
        found = inferred(text, A="b")
        assert found.problem.isprintable(), text
        assert bool(found.problem) is not bool(found.references), text
