"""Lists of photos as tools write them: Parquet, CSV and its kin, JSON lines and plain lists, each read as it stands."""
