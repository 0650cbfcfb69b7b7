#!/usr/bin/env bash
# bash docs/processes.sh [DIR]: heat dissipation, blurring diffusion, Gaussian diffusion and heat flow matching with the same data,
# network, number of steps and random streams, on the embedded digits and emoji. Each training takes about four minutes on two cores,
# all of it about two hours; interrupted, the same command continues. Tables by python docs/processes.py DIR, of what there is so far.
# From the program's own directory; docs/processes.md discusses what comes out.
set -euo pipefail
out=${1:-runs/processes}

# DATA PROCESS SEED [--config...]: train, draw 16 samples at 25 calls, measure at several numbers of calls
arm() {
  local data=$1 process=$2 seed=$3 run=$out/$1/$2-$3 steps=5,10,25,50,100
  shift 3
  [ ! -e "$run/finished" ] || return 0
  local configs=mnist
  [ "$data" = digits ] || configs=emoji
  python train.py --config "configs/$configs/quickstart.py" --workdir "$run" --config.seed="$seed" "$@"
  score() { python evaluate.py --workdir "$run" --out "$run/scores" --seed=1 "$@"; }
  local fid=(--mode=fid --feature_extractor=robust_classifier --num_gen=500)
  if [ "$process" = heat ]; then
    score "${fid[@]}" --delta=calibrated --steps=5,10,25,30
    score "${fid[@]}" --delta=isotropic
    score --mode=elbo --exact --num_images=100 --steps=10,25,30
    score --mode=spectrum --num_gen=500 --steps=25
    score --mode=copying --num_gen=500 --steps=25
  else
    for eta in 0 1; do score "${fid[@]}" --steps="$steps" --eta="$eta"; done
    python -m scripts.tools.calibrate --workdir "$run"
    score --mode=elbo --exact --num_images=100 --steps=10,25,50 --delta=posterior,calibrated --eta=1
    score --mode=spectrum --num_gen=500 --steps=25
    score --mode=copying --num_gen=500 --steps=25
    case $process in flow*) score "${fid[@]}" --steps=5,13,25 --sampler=heun --eta=0 ;; esac
  fi
  python sample.py --workdir "$run" --batch_size=16 --steps=25
  touch "$run/finished"
}

diffusion=(--config.data.uniform_dequantization=False --config.model.K=100)
flow=("${diffusion[@]}" --config.model.process=flow_matching)
for seed in 1 2; do
  for data in digits emoji; do
    arm $data heat $seed
    arm $data blurring $seed "${diffusion[@]}" --config.model.process=velocity_blurring_diffusion
    arm $data gaussian $seed "${diffusion[@]}" --config.model.process=gaussian_diffusion
    arm $data flow_8 $seed "${flow[@]}" --config.model.blur_sigma_max=8
    arm $data flow_4 $seed "${flow[@]}" --config.model.blur_sigma_max=4
  done
done
for data in digits emoji; do
  for blur in 0 2 20; do arm $data flow_$blur 1 "${flow[@]}" --config.model.blur_sigma_max=$blur; done
done
PYTHONPATH=. python docs/processes.py "$out"
