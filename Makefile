# `make quickstart` and `make test` need Python 3.11 to 3.14 with venv, and nothing else: they keep their own environment in .venv.

SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
QUICKSTART := --config configs/mnist/flow_matching_quickstart.py --workdir runs/mnist/quickstart
SAMPLE_INCLUDED := $(RUN) sample.py --workdir runs/mnist/pretrained --steps=50
SAMPLE := $(RUN) sample.py --workdir runs/mnist/quickstart --steps=25 --sampler=multistep

.PHONY: help quickstart gallery test test-numbers test-cluster lint types clean

help:
	@echo "make quickstart   install, sample from the included weights in all four ways, train on the embedded digits, sample (about five minutes on two cores)"
	@echo "make gallery      install, draw the README's pictures from the included weights again (about two minutes)"
	@echo "make test         install, lint, types, test suite"
	@echo "make test-numbers the numerical tests alone; ATEN_CPU_CAPABILITY=default runs them as without AVX2"
	@echo "make test-cluster several machines, SLURM and Open MPI on this one: root, Debian or Ubuntu; installs those (about five minutes)"
	@echo "make clean        remove the environment and the quickstart run"

# A stamp file per requirements file: the environment is brought up to date when that file changes.
$(VENV)/runtime.stamp: requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 here; on Debian: apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "error: $(PYTHON) is not Python 3.11 to 3.14; name another: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make environments; on Debian: apt install python3-venv"; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/runtime.stamp
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

quickstart: $(VENV)/runtime.stamp
	@echo "Digits from the included weights by heat dissipation, in all four ways, before anything is trained:"
	$(SAMPLE_INCLUDED) --batch_size=16
	$(SAMPLE_INCLUDED) --batch_size=16 --same_init
	$(SAMPLE_INCLUDED) --batch_size=16 --share_noise
	$(SAMPLE_INCLUDED) --interpolate --num_points=20
	@echo "Now a network of your own, by heat flow matching:"
	$(RUN) train.py $(QUICKSTART)
	$(SAMPLE) --batch_size=16 --eta=1
	$(SAMPLE) --interpolate --num_points=20
	$(RUN) -m scripts.tools.report runs/mnist/quickstart
	@echo; echo "Pictures, and process.gif and process.mp4 beside them:"
	@ls $(foreach run,pretrained quickstart,$(addprefix runs/mnist/$(run)/additional_samples/checkpoint_0/*/,final.png interpolation.png))

gallery: $(VENV)/runtime.stamp
	PYTHONPATH=. $(RUN) docs/gallery/draw.py runs/mnist/pretrained docs/gallery
	PYTHONPATH=. $(RUN) docs/gallery/draw.py runs/emoji/conditional docs/gallery/emoji

test: lint types
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

# Numbers that depend on the order of sums: ATEN_CPU_CAPABILITY=default (or avx2) has other ones.
test-numbers: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal \
		tests/model_code tests/sampling tests/training/test_step.py tests/test_golden.py tests/test_seam.py

test-cluster: $(VENV)/dev.stamp
	tests/cluster/run

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/dev.stamp
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) runs/mnist/quickstart
