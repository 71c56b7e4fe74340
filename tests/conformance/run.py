"""Clients that others wrote complete a job on the studio, and a fuzzer tries its routes; each in its own environment.

    scripts/conformance              # or the names of some: comfy-cli simplified script sdk schemathesis

Environments are kept in ``.conformance`` (400 MB). A line for each client and deed; fails if one fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from studio_process import Studio, launched

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / ".conformance"
STARTER = ROOT / "src" / "cygnet" / "starters" / "tiny_text_to_video.json"
PICTURE = ROOT / "docs" / "assets" / "first-frame.png"
PACKAGES = {
    "comfy-cli": ["comfy-cli==1.23.0"],
    "simplified": ["comfy_api_simplified==1.6.0"],
    "script": ["comfy-script[client]==0.6.1", "nest_asyncio2", "tqdm"],
    "schemathesis": ["schemathesis==4.32.5"],
}
SDK = ["@saintno/comfyui-sdk@0.3.1"]


def environment(name: str) -> Path:
    """The folder of programs of a client's own Python environment."""
    folder = KEPT / name
    ready = folder / ".ready"
    if not ready.exists() or ready.read_text() != repr(PACKAGES[name]):
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *PACKAGES[name]], check=True)
        ready.write_text(repr(PACKAGES[name]))
    return folder / "bin"


def said(command: Sequence[object], cwd: Path) -> str:
    """What a program says on stdout; RuntimeError with everything it said if it fails."""
    settings = {"DO_NOT_TRACK": "1", "HOME": str(cwd), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [str(it) for it in command], cwd=cwd, env={**os.environ, **settings}, timeout=600, text=True,
        capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def comfy_cli(studio: Studio, prompt: Path, work: Path) -> None:
    program = environment("comfy-cli") / "comfy"
    port = studio.url.rstrip("/").rpartition(":")[2]
    at = ["--host", "127.0.0.1", "--port", port]

    def comfy(*words: object) -> dict[str, object]:
        text = said([program, "--skip-prompt", "--json", "--where", "local", *words], work)
        answer: dict[str, object] = json.loads(text.strip().splitlines()[-1] if text.strip()[0] != "{" else text)
        assert answer.get("ok") is True, answer
        return answer

    for file in (STARTER, prompt):
        ran = json.dumps(comfy("run", "--workflow", file, *at, "--wait"))
        assert ".mp4" in ran, ran
    assert "completed" in json.dumps(comfy("jobs", "ls", *at))
    comfy("upload", PICTURE, *at)
    assert (studio.base / "input" / PICTURE.name).exists()
    assert "WanImageToVideo" in json.dumps(comfy("nodes", "ls", *at))
    comfy("validate", "--workflow", prompt, *at)


def simplified(studio: Studio, prompt: Path, work: Path) -> None:
    said([environment("simplified") / "python", HERE / "simplified.py", studio.url.rstrip("/"), prompt, PICTURE], work)


def script(studio: Studio, prompt: Path, work: Path) -> None:
    said([environment("script") / "python", HERE / "script.py", studio.url], work)


def sdk(studio: Studio, prompt: Path, work: Path) -> None:
    if shutil.which("npm") is None:
        raise RuntimeError("npm is not installed")
    folder = KEPT / "sdk"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        subprocess.run(["npm", "install", "--silent", *SDK], cwd=folder, check=True)
    program = folder / "client.mjs"
    shutil.copyfile(HERE / "sdk.mjs", program)
    said(["node", program, studio.url.rstrip("/"), prompt], work)


def schemathesis(studio: Studio, prompt: Path, work: Path) -> None:
    """Requests of every kind to every documented route; none may end in a server error."""
    program = environment("schemathesis") / "schemathesis"
    options = ["--checks", "not_a_server_error", "--no-color", "--request-timeout", "60", "--max-examples", "50"]
    said([program, "run", f"{studio.url}api/openapi.json", *options, "--phases", "examples,coverage,fuzzing"], work)
    errors = [line for line in studio.lines if "Traceback" in line or " ERROR " in line]
    assert not errors, errors


CLIENTS: dict[str, Callable[[Studio, Path, Path], None]] = {
    "comfy-cli": comfy_cli,
    "simplified": simplified,
    "script": script,
    "sdk": sdk,
    "schemathesis": schemathesis,
}


def main(names: Sequence[str]) -> int:
    """Run the named clients, or all; the number of failures."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        command = [sys.executable, "-m", "cygnet", "run", STARTER, "--base-directory", work / "x", "--print-prompt"]
        prompt = json.loads(said(command, work))
        next(it for it in prompt.values() if it["class_type"] == "KSampler")["inputs"]["steps"] = 2
        (work / "prompt.json").write_text(json.dumps(prompt))
        for name in names or CLIENTS:
            studio = launched(work / name)
            try:
                (work / f"{name}-home").mkdir()
                CLIENTS[name](studio, work / "prompt.json", work / f"{name}-home")
                print(f"ok    {name}", flush=True)
            except (AssertionError, RuntimeError, subprocess.SubprocessError, ValueError) as error:
                failed += 1
                print(f"FAIL  {name}: {error}", flush=True)
            finally:
                studio.stop()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
