#!/bin/sh
# From nothing to pictures: builds, compiles a small PVDM, trains its autoencoder and its diffusion
# model on a real video, reconstructs, samples. Less than 10 minutes on 2 cores. Results are in
# out/demo/.
set -eu
cd "$(dirname "$0")/.."
started=$(date +%s)
say() { printf '\n[%3d s] %s\n' $(($(date +%s) - started)) "$*"; }

say "set-up: Debian packages"
sh build/setup.sh demo
video=/usr/lib/python3/dist-packages/imageio/resources/images/cockatoo.mp4
[ -f "$video" ] || { echo "demo: $video is missing (package python3-imageio)" >&2; exit 3; }

say "building the compiler and the runtime"
cmake --preset release >/dev/null
cmake --build --preset release >/dev/null

out=out/demo
rm -rf "$out"
mkdir -p "$out/data"
cp "$video" "$out/data/"

say "compiling models/pvdm-tiny.model"
out/release/pvdmc models/pvdm-tiny.model -o "$out/pvdm-tiny"

say "training the autoencoder"
"$out/pvdm-tiny" train autoencoder --config build/demo.yaml --data "$out/data" \
    --out "$out/autoencoder" --set steps="${DEMO_AE_STEPS:-2400}"
ae=$(ls "$out"/autoencoder/step-*.safetensors | tail -n 1)

say "training the diffusion model in its latent space"
"$out/pvdm-tiny" train diffusion --config build/demo.yaml --data "$out/data" --weights "ae=$ae" \
    --out "$out/diffusion" --set steps="${DEMO_UNET_STEPS:-1500}"
unet=$(ls "$out"/diffusion/step-*.safetensors | tail -n 1)

say "reconstruction beside the original"
"$out/pvdm-tiny" reconstruct "$video" --weights "ae=$ae" --side-by-side -o "$out/reconstruction.mp4"
"$out/pvdm-tiny" reconstruct "$video" --weights "ae=$ae" --side-by-side -o "$out/reconstruction.png"

say "samples"
sample() { "$out/pvdm-tiny" sample --weights "ae=$ae" --weights "unet=$unet" --seed 1 "$@"; }
sample --batch 4 --steps 50 -o "$out/samples.mp4"
sample --batch 4 --steps 50 -o "$out/samples.png"
sample --clips 6 --steps 50,25 -o "$out/long.mp4"
sample --clips 6 --steps 50,25 -o "$out/long.png"

say "done; look at"
for file in reconstruction.mp4 reconstruction.png samples.mp4 samples.png long.mp4 long.png \
            autoencoder/loss.png diffusion/loss.png; do
    [ -s "$out/$file" ] || { echo "demo: $out/$file was not made" >&2; exit 1; }
    echo "  $(pwd)/$out/$file"
done
