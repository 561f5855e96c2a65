#!/usr/bin/env bash
# What cron, systemd or a person calls once a night: jobs/examples/every_night.sh PHOTOS GEOTAGS
# Called again on the same date it does nothing; a night that was cut short goes on where it stopped.
set -euo pipefail
photos=$1 output=$2

graticule nightly --photos "$photos" --output "$output" --max-hours 6 --keep-days 30
graticule geotag-archive --verify "$output"
# What failed last night, for a person to look at in the morning.
graticule query "$output" "SELECT error_code, count(*) AS photos, min(uri) AS example FROM failures GROUP BY ALL"
