"""What happens to photos: listing, planning, decoding, locating, publishing, querying."""
