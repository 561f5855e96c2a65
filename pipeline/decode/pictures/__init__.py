"""Formats that need more than one call of a codec, and how any picture becomes what the model looks at."""
