#!/usr/bin/env bash
# Train the bundled model on with photos whose cameras wrote positions: jobs/examples/fine_tune.sh GEOTAGS FOLDER
# GEOTAGS is an output of geotag-archive. Further words go to the training, such as --recipe.epochs 3.
set -euo pipefail
geotags=$1 folder=$2
shift 2
mkdir -p "$folder"

# Photos with GPS, in parts that share no place and no photographer.
graticule build-training-manifest --source "$geotags" --output "$folder/photos.parquet" --by-folder never
graticule train --manifest "$folder/photos.parquet" --output "$folder/model" --init bundled --recipe.preset finetune "$@"
# On photos that it has not seen; beside it what needs no picture at all.
graticule evaluate --model "$folder/model" --manifest "$folder/photos.parquet"
