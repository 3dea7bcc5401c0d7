"""The data plane: reading sources, packing, the tar + index format, random access, sample order."""
