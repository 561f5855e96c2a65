"""From a photo's bytes to the network's pixels, and what its EXIF data says."""
