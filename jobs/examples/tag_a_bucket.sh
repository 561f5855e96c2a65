#!/usr/bin/env bash
# Tag the photos below an S3 prefix: jobs/examples/tag_a_bucket.sh s3://bucket/photos s3://bucket/geotags
# Credentials, region and endpoint come from the environment, as for every AWS tool.
set -euo pipefail
photos=$1 output=$2

graticule geotag-archive --photos "$photos" --output "$output"
# Once more: what has its row is not looked at again.
graticule geotag-archive --photos "$photos" --output "$output"
# Read every byte that was published, and compare it with the records of the runs.
graticule geotag-archive --verify "$output"
graticule query "$output" "SELECT status, error_code, count(*) AS photos FROM photos GROUP BY ALL ORDER BY ALL"
