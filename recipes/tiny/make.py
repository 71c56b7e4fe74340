"""Make the whole embedded model with one command, which goes on where it was stopped.

    python -m recipes.tiny.make --runs runs --out weights

A network that is finished in ``--out`` is not trained again, so a folder that already holds some of them only gets the
others. The transformers train on a CUDA device where there is one.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FILES = {
    "vae": "vae.safetensors",
    "text": "text_encoder.safetensors",
    "clip": "image_encoder.safetensors",
    "t2v": "t2v.safetensors",
    "i2v": "i2v.safetensors",
}
"""The networks in the order in which they are made: each needs those before it."""


def commands(name: str, runs: Path, out: Path, compiled: bool) -> list[list[str]]:
    """The modules to run, with their arguments, to train the network ``name``; its export is not among them."""
    fast = ["--compile"] if compiled else []
    latents, pictures, vae = str(runs / "latents"), str(runs / "pictures"), str(out / FILES["vae"])
    run = ["--out", str(runs / name)]
    given = ["--latents", latents, "--weights", str(out)]
    return {
        "vae": [["train_vae", *run, *fast]],
        "text": [["train_text", *run]],
        "clip": [["train_clip", *run]],
        "t2v": [["latents", "clips", "--vae", vae, "--out", latents], ["train_t2v", *given, *run, *fast]],
        "i2v": [
            ["latents", "pictures", "--vae", vae, "--out", pictures],
            ["train_i2v", *given, "--pictures", pictures, *run, *fast],
        ],
    }[name]


def main() -> None:
    """Parse arguments and run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the unfinished work, about 1 GB")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished networks")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    compiled = not options.eager and any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    for name, file in FILES.items():
        if (options.out / file).exists():
            print(f"{name}: finished, {options.out / file}", flush=True)
            continue
        export = ["export", "--runs", str(options.runs), "--out", str(options.out), "--only", name]
        for module, *rest in [*commands(name, options.runs, options.out, compiled), export]:
            print(f"{name}: recipes.tiny.{module} {' '.join(rest)}", flush=True)
            if subprocess.run([sys.executable, "-m", f"recipes.tiny.{module}", *rest], check=False).returncode:
                raise SystemExit(f"recipes.tiny.{module} stopped; run the same command again to go on")


if __name__ == "__main__":
    main()
