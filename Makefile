# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PICTURE := docs/assets/first-frame.png

.PHONY: setup demo test check conformance bench clean

setup: $(VENV)/.ready

# torch comes first and alone, so that nothing else may choose another build of it.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,mcp,studio]"
	touch $@

demo: setup
	mkdir -p out
	$(BIN)/cygnet generate "a red ball moves right on a black background" --seed 1 --overwrite --out out/text-to-video.mp4
	$(BIN)/cygnet generate "a yellow star spins on a navy background" --image $(PICTURE) --seed 1 --overwrite --out out/image-to-video.mp4

test: setup
	scripts/check
	scripts/browser
	scripts/test

check: setup
	scripts/check

conformance: setup
	scripts/conformance

# Beside Diffusers and transformers, within fifteen minutes; see docs/speed.md.
bench: setup
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,mcp,studio,bench]"
	mkdir -p out/bench
	$(BIN)/python -m benchmarks --rounds 5 --budget 780 --json out/bench/cpu.json --table out/bench/cpu.md --plot out/bench/cpu.png

clean:
	rm -rf $(VENV) .conformance out .mypy_cache .ruff_cache .pytest_cache
